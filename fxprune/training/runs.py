"""`fxprune train` and `fxprune learn` from Python: a run from its first step, or its last checkpoint, to its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.compiled import Compiled
from fxprune.data import classes_in
from fxprune.emit.folder import EMITTED, Result, Written, write_folder
from fxprune.errors import OptionError
from fxprune.phases import phase
from fxprune.program import Inputs
from fxprune.training.checkpoints import Checkpoints, fingerprint
from fxprune.training.head import classes_of, replace_head
from fxprune.training.keeping import Keeping, Watch, alone_in, check_output
from fxprune.training.learning import Asked, Learning
from fxprune.training.loop import Training
from fxprune.training.picture import picture
from fxprune.training.randomness import own_randomness
from fxprune.training.retrained import Retrained
from fxprune.training.rundata import RunData, run_data
from fxprune.training.settings import LearnSettings, Settings

_NO_PICTURE = "there is no learning.png: it needs matplotlib (pip install matplotlib)"


@dataclass(frozen=True)
class RunOptions:
    """Where a run happens and what it leaves; nothing here decides which weights come out, but for their last bits.

    output   folder for checkpoints, and in the end for the artefacts
    force    replace a folder of an earlier run
    resume   go on from the checkpoint in `output`, where there is one
    every    steps between checkpoints, besides the one after each epoch; None: no others
    device   as torch names it. On a GPU the same run does not give the same bits unless torch is told to
    workers  processes that read picture files
    """

    output: Path
    force: bool = False
    resume: bool = True
    every: int | None = None
    device: str = "cpu"
    workers: int = 0
    watch: Watch = lambda _training: None

    def check(self) -> None:
        """Raises ExportError where nothing can be written."""
        check_output(self.output, self.force, self.resume)

    def keeping(self, identity: Mapping[str, Any]) -> Keeping:
        """Checkpoints of this run alone; without `resume` there are none to begin with."""
        machine = {"threads": torch.get_num_threads(), "device": self.device, "torch": str(torch.__version__)}
        checkpoints = Checkpoints(self.output, identity, machine)
        if not self.resume:
            checkpoints.remove()
        return Keeping(checkpoints, self.every, self.watch)


@dataclass(frozen=True)
class Finished:
    """`resumed_at`: steps that had been taken when the run was taken up again, None for one that was not. `compiled` is
    what structure learning found. `notes` are those that are not in report.json.
    """

    written: Written
    history: Mapping[str, Any]
    resumed_at: int | None
    notes: tuple[str, ...] = ()
    compiled: Compiled | None = None

    def noted(self, notes: Sequence[str]) -> Finished:
        """The same with more notes, each once."""
        return replace(self, notes=tuple(dict.fromkeys((*self.notes, *notes))))


def train(network: Retrained, data: str, validation: str | None, settings: Settings, options: RunOptions) -> Finished:
    """Train the network of a compiled folder; masked weights stay zero. Writes the same artefacts with its weights.

    network     see `fxprune.training.retrained.open_folder`
    data        as for `fxprune.data.open_data`
    validation  data to validate with; None: a part of `data`, see `Settings.held_out`

    Raises OptionError, TrainingError, LoadError for a checkpoint that does not fit, ExportError.
    """
    options.check()
    found = run_data(data, validation, network.inputs, classes_of(network.network, network.inputs), settings)
    identity = _identity("train", settings, network.network, found)
    with alone_in(options.output), own_randomness(settings.seed):
        options.check()  # what has come meanwhile
        keeping = options.keeping(identity)
        training = Training(network.network, found.parts, settings, torch.device(options.device), options.workers)
        state = keeping.checkpoints.read()
        if state is not None:
            training.load_state_dict(state)
        resumed_at = None if state is None else training.steps_done
        keeping.attach(training, training.state_dict)
        with phase("train"):
            while not training.finished:
                training.train_epoch()
                keeping.checkpoints.write(training.state_dict())
                keeping.watch(training)
        network.network.cpu()
        history = {"settings": asdict(settings), **found.told(), "epochs": training.history}
        emit = [kind for kind, name in EMITTED.items() if name in network.recipe.files]
        finished = _written(network, options, history, {}, resumed_at, emit)
    return finished.noted(keeping.checkpoints.notes)


@dataclass(frozen=True, eq=False)
class Given:
    """A network to begin with, as it was loaded.

    network  trained in place; its last layer is replaced where the data have another number of classes
    inputs   as for `fxprune.compile`
    about    what report.json says first
    notes    what loading had to decide
    trained  its last layer is worth keeping, see `learn`
    classes  of the data; None: as their labels say
    """

    network: nn.Module
    inputs: Inputs
    about: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    trained: bool = False
    classes: int | None = None

    def fitted(self, data: str) -> Given:
        """The same with a last layer for the classes of the data, and a note where it was replaced. Raises OptionError
        where it would be lost by a guess.
        """
        outputs = classes_of(self.network, self.inputs)
        classes = self.classes or classes_in(data) or outputs
        if self.trained and not self.classes and data.endswith(".npz") and classes < outputs:
            raise OptionError(
                f"the labels in {data} speak of {classes} classes and the network tells {outputs} apart: give "
                f"--classes {outputs} to keep its last layer, or --classes {classes} for a fresh one"
            )
        told = () if classes == outputs else (replace_head(self.network, self.inputs, classes),)
        return replace(self, classes=classes, notes=(*self.notes, *told))


def learn(
    given: Given, data: str, validation: str | None, settings: Settings, learning: LearnSettings, options: RunOptions
) -> Finished:
    """Learn the widths of a network while it trains, cut it, train on. Writes the artefacts of the compact network.

    Arguments are as for `train`, and see `Given` and `LearnSettings`. The last layer is replaced where the data have
    another number of classes; labels in an .npz file do not say how many there are, and do not cost a trained network
    its last layer. Raises what `train` does, and what StructureLearner does.
    """
    options.check()
    learning.longest(settings.epochs)
    asked = Asked(settings, learning, torch.device(options.device), options.workers)
    with alone_in(options.output), own_randomness(settings.seed):
        given = given.fitted(data)
        assert given.classes is not None
        found = run_data(data, validation, given.inputs, given.classes, settings)
        options.check()  # what has come meanwhile
        keeping = options.keeping({**_identity("learn", settings, given.network, found), **asdict(learning)})
        run = Learning(given.network, given.inputs, found.parts, asked)
        resumed_at = run.restore(keeping.checkpoints)
        with phase("train"):
            done = run.run(keeping)
        done.module.cpu()
        done = replace(done, report=replace(done.report, notes=(*given.notes, *run.notes(), *done.report.notes)))
        history = {**run.told(), **found.told(), "epochs": run.training.history}
        finished = _written(done, options, history, given.about, resumed_at)
    return replace(finished.noted(keeping.checkpoints.notes), compiled=done)


def _identity(command: str, settings: Settings, network: nn.Module, data: RunData) -> dict[str, Any]:
    return {
        "command": command,
        **asdict(settings),
        "network fingerprint": fingerprint(network),
        **data.identity(),
    }


def _written(
    done: Result, options: RunOptions, history: dict[str, Any], about: Mapping[str, Any], resumed_at: int | None,
    emit: Sequence[str] = tuple(EMITTED),
) -> Finished:  # fmt: skip
    """The folder with everything in it takes the place of the one with checkpoints."""
    drawn = picture(history)
    beside = {"history.json": json.dumps(history, indent=1).encode()}
    if drawn is not None:
        beside["learning.png"] = drawn
    summary = {**{name: one for name, one in history.items() if name != "epochs"}, "last_epoch": history["epochs"][-1]}
    written = write_folder(
        done, options.output, force=True, emit=emit, about={**about, "training": summary}, beside=beside,
    )  # fmt: skip
    return Finished(written, history, resumed_at, () if drawn else (_NO_PICTURE,))
