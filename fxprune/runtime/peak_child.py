"""Run as a script in a fresh process: load one network, run it, print the peak of memory as JSON.

Reads a job from stdin, see `fxprune.runtime.peak`. Of fxprune it imports what makes a network of a model.py, and for an
ONNX file nothing. Memory counts from after the imports and before the network is loaded. On Linux the kernel's own peak
(VmHWM) is set back at that point; elsewhere ru_maxrss before and after is all there is, which misses what fits into
memory that the imports have used and given back.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

Run = Callable[[], object]


def main() -> None:
    job = json.load(sys.stdin)
    runtime = {"onnxruntime": _onnxruntime, "torch": _torch}[job["runtime"]]
    load = runtime(job)
    method, peak = _peak_counter()
    before = peak()
    run = load()
    for _ in range(job["passes"]):
        run()
    print(json.dumps({"bytes": peak() - before, "method": method}))


def draw(feeds: Sequence[tuple[str, Sequence[int], str]]) -> dict[str, Any]:
    """A numpy array for each (name, shape, dtype): normal numbers, or zeros of a whole type (0 is a valid index)."""
    import numpy as np

    rng = np.random.default_rng(0)
    return {
        name: (rng.standard_normal(shape) if np.issubdtype(dtype, np.floating) else np.zeros(shape)).astype(dtype)
        for name, shape, dtype in feeds
    }


def _onnxruntime(job: dict[str, Any]) -> Callable[[], Run]:
    import onnxruntime

    feeds = draw(job["feeds"])

    def load() -> Run:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = job["threads"], 1
        options.log_severity_level = 4
        session = onnxruntime.InferenceSession(job["model"], options, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, feeds)

    return load


def _torch(job: dict[str, Any]) -> Callable[[], Run]:
    sys.path.append(job["package"])
    import torch
    from safetensors.torch import load_file

    from fxprune.artefacts import bake
    from fxprune.emit.source_run import network_from
    from fxprune.example import rebuilt

    torch.set_num_threads(job["threads"])
    inputs = rebuilt(job["feeds"], "the job")
    text, file = Path(job["model"], "model.py").read_text("utf-8"), Path(job["model"], "model.safetensors")

    def network(weights: dict[str, Any]) -> torch.nn.Module:
        return network_from(text, weights, "model.py", trust=job["trust"])

    network({name: one.to("meta") for name, one in load_file(file).items()})  # torch imports as it goes along

    def load() -> Run:
        loaded = bake(network(load_file(file)), job["masked"])

        def run() -> None:
            with torch.inference_mode():
                loaded(*inputs.args, **inputs.kwargs)

        return run

    return load


def _peak_counter() -> tuple[str, Callable[[], int]]:
    """(how it is measured, the most bytes this process has held since now)."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # memory that the imports gave back would hide as much of the network's
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
    except OSError:
        return "ru_maxrss", _most_ever
    return "VmHWM", _most_since


def _most_since() -> int:
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith("VmHWM:"))


def _most_ever() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()
