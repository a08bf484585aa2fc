"""Phases: what a run is doing now, and how many seconds each part of it took. Every second is counted once: a
phase that begins inside another one stops the outer one's clock until it ends.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Clock:
    """Seconds by phase, in the order in which they first began. A phase inside another one stops it for a while."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._open: list[str] = []
        self._since = time.perf_counter()

    @property
    def running(self) -> str | None:
        """The innermost open phase."""
        return self._open[-1] if self._open else None

    def begin(self, name: str) -> None:
        self._settle()
        self._open.append(name)
        self._seconds.setdefault(name, 0.0)

    def end(self) -> None:
        self._settle()
        self._open.pop()

    def seconds(self) -> dict[str, float]:
        """Seconds of each phase up to now. Another thread may ask."""
        running, since = self.running, self._since
        found = dict(self._seconds)
        if running is not None:
            found[running] += time.perf_counter() - since
        return found

    def _settle(self) -> None:
        now = time.perf_counter()
        if self._open:
            self._seconds[self._open[-1]] += now - self._since
        self._since = now


_clocks: ContextVar[tuple[Clock, ...]] = ContextVar("clocks", default=())


@contextmanager
def measured(clock: Clock | None = None) -> Iterator[Clock]:
    """A clock for the phases that begin while this is open. Clocks around it go on counting."""
    clock = clock or Clock()
    token = _clocks.set((*_clocks.get(), clock))
    try:
        yield clock
    finally:
        _clocks.reset(token)


def seconds_so_far() -> dict[str, float]:
    """Seconds on the outermost open clock, empty without one."""
    clocks = _clocks.get()
    return clocks[0].seconds() if clocks else {}


@contextmanager
def phase(name: str) -> Iterator[None]:
    """What runs inside counts as this phase on every open clock. Costs nothing worth mentioning without one."""
    clocks = _clocks.get()
    for clock in clocks:
        clock.begin(name)
    try:
        yield
    finally:
        for clock in clocks:
            clock.end()
