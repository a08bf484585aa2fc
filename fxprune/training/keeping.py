"""When checkpoints are written, and where a run may leave its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxprune.emit.atomic import locked
from fxprune.emit.folder import DURING_TRAINING, check_folder
from fxprune.errors import ExportError
from fxprune.training.checkpoints import Checkpoints
from fxprune.training.loop import Training

Watch = Callable[[Training], object]


@dataclass(frozen=True)
class Keeping:
    """Checkpoints of a run, one after each epoch, and one after each `every` steps unless that is None. `watch` is
    called after each step and each epoch.
    """

    checkpoints: Checkpoints
    every: int | None = None
    watch: Watch = lambda _training: None

    def attach(self, training: Training, state: Callable[[], Mapping[str, Any]]) -> None:
        """Have it look after each step of this run, whose whole state `state` gives."""

        def after_step() -> None:
            if self.every and training.steps_done % self.every == 0:
                self.checkpoints.write(state())
            self.watch(training)

        training.after_step = after_step


def check_output(folder: Path, force: bool, resume: bool) -> None:
    """Raise ExportError unless a run may write to `folder`: a new one, one that a killed run left, or with `force` one
    that holds nothing but what fxprune writes.
    """
    held = {one.name for one in folder.iterdir()} if folder.is_dir() else set()
    rest = held - set(DURING_TRAINING)
    check_folder(folder, force or not rest or (resume and rest != held))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """The folder exists, and no other run writes to it meanwhile. Raises ExportError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"cannot write {folder}: {error.strerror}") from error
    with locked(folder.resolve()) as ours:
        if ours is False:
            raise ExportError(f"another run is at work in {folder}: wait for it, or name another folder with -o")
        try:
            yield
        finally:
            with suppress(OSError):  # a run that failed before its first checkpoint leaves nothing
                folder.rmdir()
