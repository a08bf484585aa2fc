"""Structure and weights, learned in one run: widths first, one cut, then the compact network, Algorithm 2 of "channel
redistribution". The learning rate falls over both phases together.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from fxprune.compiled import Compiled
from fxprune.errors import LoadError
from fxprune.learner import CONVERGED, StructureLearner
from fxprune.program import Inputs
from fxprune.training.batches import Part
from fxprune.training.checkpoints import AT_THE_CUT, Checkpoints
from fxprune.training.keeping import Keeping
from fxprune.training.loop import Training
from fxprune.training.settings import LearnSettings, Settings
from fxprune.wording import counted

_STRUCTURE, _WEIGHTS = "structure", "weights"


@dataclass(frozen=True)
class Asked:
    """How to train, how to learn the widths, and on which device."""

    settings: Settings
    learning: LearnSettings
    device: torch.device = torch.device("cpu")
    workers: int = 0


class Learning:
    """A network whose widths are learned, and which is trained on after the cut.

    network  trained in place until the cut
    inputs   as for `fxprune.compile`

    `done` is the compact network once the cut has been made. Raises what StructureLearner does.
    """

    def __init__(self, network: nn.Module, inputs: Inputs, parts: tuple[Part, Part], asked: Asked) -> None:
        self.asked, options = asked, asked.learning
        self.learner = StructureLearner(
            network, inputs, options.keep_rate, scope=options.scope, fraction=options.fraction, decay=options.decay,
            mode=options.mode, max_epochs=options.longest(asked.settings.epochs), seed=asked.settings.seed,
            only=options.only, ignore=options.ignore,
        )  # fmt: skip
        self.training = Training(
            network, parts, asked.settings, asked.device, asked.workers, after_backward=self.learner.update
        )
        self.done: Compiled | None = None

    @property
    def phase(self) -> str:
        """ "structure" until the cut, "weights" after it."""
        return _STRUCTURE if self.done is None else _WEIGHTS

    def run(self, keeping: Keeping) -> Compiled:
        """Train to the end. Raises TrainingError, OSError."""
        training, checkpoints = self.training, keeping.checkpoints
        keeping.attach(training, self.state_dict)
        while not training.finished:
            if self.done is None and self.learner.converged:
                checkpoints.write(self.state_dict(), AT_THE_CUT)
                self._cut()
            self._epoch()
            checkpoints.write(self.state_dict())
            keeping.watch(training)
        return self.done or self._cut()

    def _epoch(self) -> None:
        phase = self.phase
        line = self.training.train_epoch()
        line["phase"] = phase
        if phase == _STRUCTURE:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # widths that still move are told at the end
                line["moved"] = self.learner.redistribute()
            line["widths"] = list(self.learner.widths)

    def _cut(self) -> Compiled:
        """The compact network takes the place of the full one, its momentum is cut along. On the CPU, where the proof
        runs; parameters keep their identity on the way.
        """
        training = self.training
        training.network.cpu()
        self.done = self.learner.finish(training.optimizer)
        training.network = self.done.module.to(training.device)
        training.after_backward = lambda: None
        return self.done

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        learner = self.learner.state_dict() if self.done is None else None
        return {"phase": self.phase, "training": self.training.state_dict(), "learner": learner}

    def _load(self, state: Mapping[str, Any]) -> None:
        if state["learner"] is not None:
            self.learner.load_state_dict(state["learner"])
        self.training.load_state_dict(state["training"])

    def restore(self, checkpoints: Checkpoints) -> int | None:
        """Go on from the last checkpoint; returns the steps that had been taken, None where there is no checkpoint.

        After the cut, the cut is made once more from what it was made from: the compact network, its report and its
        recipe come out the same. Raises LoadError, OptionError.
        """
        state = checkpoints.read()
        if state is None:
            return None
        if state["phase"] == _WEIGHTS:
            before = checkpoints.read(AT_THE_CUT)
            if before is None:
                raise LoadError(f"{checkpoints.folder / AT_THE_CUT} is missing: --no-resume starts anew")
            self._load(before)
            self._cut()
        self._load(state)
        return self.training.steps_done

    # ---- what came of it

    def told(self) -> dict[str, Any]:
        """Settings, and the groups of channels with their widths before and after; plain data."""
        widths = self.learner.final_widths()
        return {
            "settings": asdict(self.asked.settings),
            "learning": asdict(self.asked.learning),
            "groups": [
                {"layer": group.producers[0], "layers": list(group.producers), "limit": limit, "width": width}
                for group, limit, width in zip(self.learner.groups, self.learner.limits, widths, strict=True)
            ],
        }

    def notes(self) -> tuple[str, ...]:
        """What a reader of the report should know."""
        moved, epochs = self.learner.history[-1].change, counted(len(self.learner.history), "epoch")
        if moved <= CONVERGED:
            return ()
        return (f"the widths still moved by {moved:.1%} when the network was cut, after {epochs}",)
