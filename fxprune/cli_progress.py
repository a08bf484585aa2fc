"""Progress on stderr: the phases of a command with the seconds they take."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn


class Phases:
    """A context manager that shows the phase begun last as running and the ones before it with their seconds.

    Shows nothing unless stderr is a terminal; what it showed vanishes at the end.
    """

    def __init__(self, shown: bool) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("{task.description}", markup=False),
            TextColumn("{task.elapsed:.1f} s", justify="right"),
            console=Console(file=sys.stderr),  # this one, whoever takes its place for a while
            transient=True,
            redirect_stdout=False,
            disable=not (shown and sys.stderr.isatty()),
        )
        self._current: TaskID | None = None

    def begin(self, phase: str) -> None:
        """End the phase that runs, if any, and start this one."""
        self._end()
        self._current = self._progress.add_task(phase, total=1)

    def _end(self) -> None:
        if self._current is not None:
            self._progress.update(self._current, completed=1)
            self._progress.stop_task(self._current)  # or its seconds would go on counting

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()
        self._progress.stop()
