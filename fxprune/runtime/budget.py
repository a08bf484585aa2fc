"""A number of seconds that several measurements share."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Counts down from `seconds` since it was made."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._end = clock() + seconds

    def left(self) -> float:
        """Seconds that remain, below zero once they are spent."""
        return self._end - self._clock()

    def part(self, share: float) -> Budget:
        """A budget of its own that ends after this share of what is left."""
        return Budget(max(0.0, self.left()) * share, self._clock)
