"""What a measurement was taken on: processor, cores, other load, versions."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

_NAMES = ("model name", "Model", "Hardware")  # x86; Raspberry Pi and others; older ARM


@dataclass(frozen=True)
class Machine:
    """`cores` that this process may use; `load`: programs that wanted to run in the minute before, on average."""

    processor: str
    cores: int
    load: float | None
    system: str
    versions: dict[str, str]

    @property
    def busy(self) -> bool:
        """More programs wanted to run than there are cores: times are longer than they need be."""
        return self.load is not None and self.load > self.cores + 0.5


def this_machine(packages: Iterable[str]) -> Machine:
    """The machine, with the versions of Python and these installed packages."""
    versions = {"python": platform.python_version(), **{name: version(name) for name in packages}}
    return Machine(processor(), _cores(), _load(), f"{platform.system()} {platform.machine()}", versions)


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the processor, or of its architecture where the system does not tell more."""
    known: dict[str, str] = {}
    with suppress(OSError):
        pairs = [line.partition(":") for line in cpuinfo.read_text("utf-8", "replace").splitlines()]
        known = {key.strip(): value.strip() for key, _, value in pairs}
    found = (known[name] for name in _NAMES if known.get(name))
    return next(found, platform.processor() or platform.machine() or "unknown")


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _load() -> float | None:
    with suppress(AttributeError, OSError):
        return round(os.getloadavg()[0], 2)
    return None
