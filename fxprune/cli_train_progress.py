"""Progress of a training run on stderr: a bar over all steps, one over the epoch, and a line for each epoch that is
done. Silent unless stderr is a terminal.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fxprune.training.loop import Training


@contextmanager
def shown_training(wanted: bool) -> Iterator[Callable[[Training], object]]:
    """What a run calls after each step and each epoch."""
    if not (wanted and sys.stderr.isatty()):
        yield lambda _training: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(bar_width=20), MofNCompleteColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[told]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(file=sys.stderr), transient=True, redirect_stdout=False) as bars:
        yield _Bars(bars)


class _Bars:
    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: tuple[TaskID, TaskID] | None = None
        self.told = 0  # epochs

    def __call__(self, training: Training) -> None:
        of, steps = training.settings.epochs, training.steps
        if self.tasks is None:
            self.told = len(training.history)
            self.tasks = (self.bars.add_task("run", total=of * steps, told=""), self.bars.add_task("", told=""))
        for line in training.history[self.told :]:
            self.bars.console.print(epoch_line(line, of), highlight=False)
        self.told = len(training.history)
        loss, accuracy = training.tally.means()
        seen = "" if loss is None else f"loss {loss:.3f}, {accuracy:.1%} right"
        run, epoch = self.tasks
        doing = "writing" if training.finished else f"epoch {training.epoch + 1}"
        self.bars.update(run, completed=training.steps_done)
        self.bars.update(epoch, completed=training.step, total=steps, description=doing, told=seen)


def epoch_line(line: Mapping[str, Any], of: int) -> str:
    """`epoch 3/160: loss 0.412, 87.1% right; validation 0.398, 88.0% right; widths moved by 4.2%`."""
    told = f"epoch {line['epoch']}/{of}: loss {line['loss']:.3f}, {line['accuracy']:.1%} right"
    if line["validation_loss"] is not None:
        told += f"; validation {line['validation_loss']:.3f}, {line['validation_accuracy']:.1%} right"
    return told + (f"; widths moved by {line['moved']:.1%}" if "moved" in line else "")
