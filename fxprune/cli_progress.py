"""Progress on stderr: the phases of a command with the seconds they take. rich is imported when there is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING

from fxprune.cli_signals import heed
from fxprune.phases import Clock, measured

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_WORTH_NAMING = 0.05  # seconds


@contextmanager
def shown_phases(wanted: bool) -> Iterator[Clock]:
    """A clock whose phases are shown on stderr while they run; what was shown vanishes at the end.

    Shows nothing unless stderr is a terminal. What the user's network or script prints meanwhile goes to stderr, too:
    stdout holds what a command answers and nothing else.
    """
    shown = wanted and sys.stderr.isatty()
    with measured(_HeedingClock()) as clock, _screen(clock) if shown else nullcontext(), redirect_stdout(sys.stderr):
        yield clock


class _HeedingClock(Clock):
    """Ends a run that was asked to end and did not hear it: Python swallows what is raised in a destructor."""

    def begin(self, name: str) -> None:
        heed()
        super().begin(name)

    def end(self) -> None:
        super().end()
        heed()


def _screen(clock: Clock) -> Live:
    from rich.console import Console
    from rich.live import Live

    return Live(_View(clock), console=Console(file=sys.stderr), transient=True, redirect_stdout=False)


class _View:
    """The phases of a clock as they are when rich asks."""

    def __init__(self, clock: Clock) -> None:
        from rich.spinner import Spinner

        self.clock = clock
        self.spinner = Spinner("dots")

    def __rich__(self) -> RenderableType:
        from rich.table import Table

        running = self.clock.running
        table = Table.grid(padding=(0, 1))
        table.add_column(width=1)
        table.add_column()
        table.add_column(justify="right")
        for name, seconds in self.clock.seconds().items():
            table.add_row(self.spinner if name == running else "", name, f"{seconds:.1f} s")
        return table


def time_line(seconds: Mapping[str, float]) -> str:
    """`6.1 s: start 1.9, load 0.4, ...`: all of them, and the ones worth naming."""
    named = [f"{name} {one:.1f}" for name, one in seconds.items() if one >= _WORTH_NAMING]
    return f"{sum(seconds.values()):.1f} s" + (f": {', '.join(named)}" if named else "")
