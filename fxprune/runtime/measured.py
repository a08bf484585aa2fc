"""What was measured of two networks side by side, as plain data. Nothing is in it that was not measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Generic, TypeVar

from fxprune.runtime.latency import Timed
from fxprune.runtime.machine import Machine
from fxprune.runtime.peak import Peak

T = TypeVar("T")


@dataclass(frozen=True)
class Pair(Generic[T]):
    """The same thing on both sides."""

    first: T
    second: T


@dataclass(frozen=True)
class Measured:
    """Two networks side by side.

    names     of the sides, as in ("dense", "pruned")
    batch     examples in one pass, for each side
    threads   of each runtime
    files     file name -> bytes on disk
    counts    "parameters", "nonzeros", "macs" (one example); absent where another part of a report holds them
    latency   runtime -> statistics; "torch cuda" is torch on a GPU
    memory    runtime -> peak of loading and running in a fresh process
    notes     what was left out, cut short or differs between the sides, and why
    """

    names: tuple[str, str]
    machine: Machine
    batch: Pair[int]
    threads: int
    files: Mapping[str, Pair[int | None]] = field(default_factory=dict)
    counts: Mapping[str, Pair[int | None]] = field(default_factory=dict)
    latency: Mapping[str, Timed] = field(default_factory=dict)
    memory: Mapping[str, Pair[Peak]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: what belongs to a side stands under its name. Seconds and bytes."""
        return {
            "sides": list(self.names),
            "machine": asdict(self.machine),
            "threads": self.threads,
            "batch": self._sides(self.batch),
            "files": {name: self._sides(pair) for name, pair in self.files.items()},
            "counts": {name: self._sides(pair) for name, pair in self.counts.items()},
            "latency": {runtime: self._timed(timed) for runtime, timed in self.latency.items()},
            "peak_memory": {runtime: self._peaks(pair) for runtime, pair in self.memory.items()},
            "notes": list(self.notes),
        }

    def _sides(self, pair: Pair[Any]) -> dict[str, Any]:
        return dict(zip(self.names, (pair.first, pair.second), strict=True))

    def _timed(self, timed: Timed) -> dict[str, Any]:
        told = asdict(timed)
        return {**self._sides(Pair(told.pop("first"), told.pop("second"))), **told}

    def _peaks(self, pair: Pair[Peak]) -> dict[str, Any]:
        return {**self._sides(Pair(pair.first.bytes, pair.second.bytes)), "method": pair.first.method}
