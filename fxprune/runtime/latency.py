"""Latency of two networks side by side. Passes alternate, so that whatever else the machine does meets both sides."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, median, quantiles, stdev

Once = Callable[[], float]  # one pass of a network; returns its seconds


@dataclass(frozen=True)
class Rounds:
    """How many rounds are run; a round is one pass of each side.

    warm_up   rounds that do not count, at least 1
    passes    rounds that count
    lasting   seconds of counted rounds below which more are run, so that a network of microseconds is not judged by 30
              of them
    at_most   counted rounds at which that ends
    fewest    counted rounds below which there is no statistic
    patience  seconds that these may take even when no time is left
    """

    warm_up: int = 10
    passes: int = 30
    lasting: float = 1.0
    at_most: int = 300
    fewest: int = 5
    patience: float = 10.0

    @classmethod
    def exactly(cls, passes: int) -> Rounds:
        """As many counted rounds as somebody asked for, and no more."""
        return cls(passes=passes, lasting=0.0, at_most=passes, fewest=min(5, passes))


@dataclass(frozen=True)
class Latency:
    """Seconds of one pass. `p90` interpolates linearly between passes, `deviation` is that of a sample."""

    median: float
    p90: float
    mean: float
    deviation: float


@dataclass(frozen=True)
class Ratio:
    """First side over second, within each round: the middle one, and the range of the middle 80 %."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Timed:
    """Both sides over the same rounds. `full` is False where time ran out before all rounds that were wanted."""

    first: Latency
    second: Latency
    ratio: Ratio
    warm_up: int
    passes: int
    full: bool


def alternate(first: Once, second: Once, rounds: Rounds, left: Callable[[], float]) -> Timed | None:
    """Run rounds of first and second in turns while `left()` seconds allow it; None where not even the fewest can be
    run.

    Where time is short the warm-up shrinks first, to one round. A pass that runs is never interrupted.
    """
    found = in_turns((first, second), rounds, left)
    if found is None:
        return None
    times, warm_up = found
    ours, theirs = zip(*times, strict=True)
    full = len(times) >= rounds.passes and warm_up >= rounds.warm_up
    return Timed(latency(ours), latency(theirs), ratio(list(zip(ours, theirs, strict=True))), warm_up, len(times), full)


def in_turns(
    sides: Sequence[Once], rounds: Rounds, left: Callable[[], float]
) -> tuple[list[tuple[float, ...]], int] | None:
    """(seconds of each side in each round that counts, rounds to warm up), as `alternate` for any number of sides."""
    warm_up, took = _warm_up(sides, rounds, left)
    if took * rounds.fewest > max(left(), rounds.patience):
        return None
    times: list[tuple[float, ...]] = []
    while _wants_more(times, rounds) and (left() > 0 or len(times) < rounds.fewest):
        times.append(_round(sides))
    return times, warm_up


def _round(sides: Sequence[Once]) -> tuple[float, ...]:
    return tuple(once() for once in sides)


def _warm_up(sides: Sequence[Once], rounds: Rounds, left: Callable[[], float]) -> tuple[int, float]:
    """(how many uncounted rounds were run: all that leave time for the counted ones; seconds of the last)."""
    done, took = 1, sum(_round(sides))
    while done < rounds.warm_up and left() >= took * (rounds.passes + 1):
        done, took = done + 1, sum(_round(sides))
    return done, took


def _wants_more(times: Sequence[tuple[float, ...]], rounds: Rounds) -> bool:
    if len(times) < rounds.passes:
        return True
    return len(times) < rounds.at_most and sum(map(sum, times)) < rounds.lasting


def latency(seconds: Sequence[float]) -> Latency:
    """Statistics of at least one pass; the deviation of a single one is 0."""
    spread = stdev(seconds) if len(seconds) > 1 else 0.0
    return Latency(median(seconds), _tenths(seconds)[8], fmean(seconds), spread)


def ratio(pairs: Sequence[tuple[float, float]]) -> Ratio:
    """Statistics of first / second over pairs of one round each: what slowed both sides of a round cancels."""
    ratios = [first / second for first, second in pairs]
    tenths = _tenths(ratios)
    return Ratio(median(ratios), tenths[0], tenths[8])


def _tenths(values: Sequence[float]) -> list[float]:
    """The nine values that cut the sorted ones into ten parts."""
    return quantiles(values, n=10, method="inclusive") if len(values) > 1 else [*values] * 9
