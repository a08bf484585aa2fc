"""What the benchmarks share: a measurement in a process of its own, and that process's memory. Linux only."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from typing import Any

MIB = 1 << 20


def run_alone(script: str, *arguments: str, frugal: bool = False) -> Any:
    """Run `script` in a fresh process; what it prints last is JSON and is returned.

    frugal  memory that is free goes back to the system at once, so that what is counted is what is held; it costs time
    """
    small = {"MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"} if frugal else {}
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env={**os.environ, **small})
    return json.loads(done.stdout.splitlines()[-1])


def forget_peak() -> None:
    """Start counting anew: building the model may have needed more than holding it does."""
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def peak() -> int:
    """The most bytes this process has held since `forget_peak`."""
    with open("/proc/self/status", encoding="ascii") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def resident() -> int:
    """Bytes this process holds now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize()
