"""Collects what was measured of two sides, and a note for everything that was not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

from fxprune.errors import FxpruneError, MeasureError, described
from fxprune.runtime.latency import Once, Rounds, Timed, alternate
from fxprune.runtime.machine import Machine
from fxprune.runtime.measured import Pair
from fxprune.runtime.peak import Peak, PeakJob, peak_memory


class Collector:
    """Results by runtime, in the order in which they came. `names` of the two sides, for what goes wrong."""

    def __init__(self, names: tuple[str, str]) -> None:
        self.names = names
        self.latency: dict[str, Timed] = {}
        self.memory: dict[str, Pair[Peak]] = {}
        self.notes: list[str] = []

    @contextmanager
    def tried(self, what: str, done: str = "measured") -> Iterator[None]:
        """Whatever goes wrong inside becomes the note that `what` was not `done`."""
        try:
            yield
        except Exception as error:
            told = str(error) if isinstance(error, FxpruneError) else f"{described(error)}"
            self.notes.append(f"{what} not {done}: {told}")

    def time(self, runtime: str, once: Pair[Once], rounds: Rounds, left: Callable[[], float]) -> None:
        """Passes of both sides in turns, while `left()` seconds allow it."""
        timed = alternate(once.first, once.second, rounds, left)
        if timed is None:
            self.notes.append(f"latency in {runtime} not measured: a pass takes too long for the time allowed")
            return
        self.latency[runtime] = timed
        if not timed.full:
            self.notes.append(
                f"latency in {runtime} is from {timed.passes} passes after {timed.warm_up} to warm up, instead of "
                f"{rounds.passes} after {rounds.warm_up}: the time allowed was spent"
            )

    def peaks(self, jobs: Pair[PeakJob], seconds: float) -> None:
        """Both sides at once: a process's peak does not depend on what else runs. Raises MeasureError."""
        with ThreadPoolExecutor(2) as pool:
            both = [pool.submit(peak_memory, job, seconds) for job in (jobs.first, jobs.second)]
        found = [self._peak(name, one) for name, one in zip(self.names, both, strict=True)]
        self.memory[jobs.first.runtime] = Pair(*found)

    def _peak(self, name: str, done: Future[Peak]) -> Peak:
        try:
            return done.result()
        except MeasureError as error:
            raise MeasureError(f"{name}: {error}") from error

    def note_load(self, machine: Machine) -> None:
        """Times on a busy machine are longer than they need be."""
        if machine.busy:
            self.notes.append(f"other programs were running (load {machine.load} on {machine.cores} cores)")
