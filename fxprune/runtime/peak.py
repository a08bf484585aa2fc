"""Peak memory of loading and running a network, measured in a fresh process of its own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxprune.errors import MeasureError

Feed = tuple[str, tuple[int, ...], str]  # name, shape, numpy dtype

_MODULE = re.compile(r"^(\w+\.)+(?=\w+: )")  # of an exception's class
_CHILD = Path(__file__).with_name("peak_child.py")


@dataclass(frozen=True)
class PeakJob:
    """What the process loads and runs.

    runtime  "onnxruntime" or "torch"
    model    path of an ONNX file; for torch, of a folder with model.py and model.safetensors
    feeds    a name, shape and dtype for each input; for torch, inputs as `fxprune.example.described` tells them
    masked   for torch: weights that model.py multiplies with masks; they are multiplied once, for inference
    trust    for torch: run model.py whatever it says
    """

    runtime: str
    model: str
    feeds: Sequence[Feed] | Mapping[str, Any]
    threads: int = 1
    passes: int = 3
    masked: Sequence[str] = ()
    trust: bool = False


@dataclass(frozen=True)
class Peak:
    """`bytes` beyond what the process held with the runtime imported; `method` is VmHWM (Linux) or ru_maxrss."""

    bytes: int
    method: str


def peak_memory(job: PeakJob, seconds: float, child: Path = _CHILD) -> Peak:
    """Peak of one network in a fresh process, which is ended after `seconds`. Raises MeasureError."""
    told = _run(job, seconds, child)
    try:
        found = json.loads(told)
        return Peak(int(found["bytes"]), str(found["method"]))
    except (ValueError, TypeError, KeyError) as error:
        raise MeasureError(f"the process that runs it in {job.runtime} gave no number") from error


def _run(job: PeakJob, seconds: float, child: Path) -> str:
    """What the process prints. -P: it must not import what lies in the user's folder under a library's name."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(child)],
            input=json.dumps({**asdict(job), "package": str(_CHILD.parents[2])}),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env=_environment(job.threads),
        )
    except subprocess.TimeoutExpired:
        raise MeasureError(f"loading and running it in {job.runtime} took more than {seconds:.0f} s") from None
    except OSError as error:
        raise MeasureError(f"no process can be started to run it in {job.runtime}: {error.strerror}") from error
    if done.returncode:
        raise MeasureError(_why(job.runtime, done.returncode, done.stderr))
    return done.stdout


def _environment(threads: int) -> Mapping[str, str]:
    return {"ORT_DISABLE_TELEMETRY": "1", **os.environ, "OMP_NUM_THREADS": str(threads)}  # as fxprune.onnx_runtime


def _why(runtime: str, status: int, told: str) -> str:
    """A process that was killed tells nothing; one that raised tells it in its last line."""
    if status < 0:
        return f"{runtime} was ended while running it, by {_signal(-status)}"
    lines = [line for line in told.splitlines() if line.strip()]
    reason = _MODULE.sub("", lines[-1])[:300] if lines else f"exit status {status}"
    return f"{runtime} cannot run it: {reason}"


def _signal(number: int) -> str:
    name = signal.Signals(number).name if number in set(signal.Signals) else f"signal {number}"
    return f"{name} (often: out of memory)" if name == "SIGKILL" else name
