"""How a network is trained: numbers that a user may choose, with the papers' as defaults. torch stays out."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fxprune.errors import OptionError

OPTIMIZERS = ("sgd", "adamw")
AUGMENTS = ("none", "shift", "shift-mirror")
HALVES = (0.5, 0.75)  # epochs 80 and 120 of 160: Reconvene, Table II
THIRDS = (1 / 3, 2 / 3)  # channel redistribution
EPOCHS = 160
_LONGEST_STRUCTURE = 20  # epochs


@dataclass(frozen=True)
class Settings:
    """What decides, with the network and the data, which weights come out.

    epochs        in all
    batch         pictures in one step
    rate          learning rate at the start
    drops         parts of all steps after which the rate is divided by ten
    momentum      of SGD; AdamW has its own
    weight_decay  on every parameter
    optimizer     "sgd" or "adamw"
    augment       "none"; "shift": pictures move by up to an eighth of their width, their edges filled with grey;
                  "shift-mirror": and half of them are mirrored
    held_out      part of the data that is kept for validation where there are no data of its own for it
    seed          of the order of the pictures, of what is held out, and of everything the network draws; 0 to 2**32 - 1

    Raises OptionError.
    """

    epochs: int = EPOCHS
    batch: int = 128
    rate: float = 0.1
    drops: tuple[float, ...] = HALVES
    momentum: float = 0.9
    weight_decay: float = 1e-4
    optimizer: str = "sgd"
    augment: str = "none"
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name} is at least 1, not {getattr(self, name)}")
        _check_choice("optimizer", self.optimizer, OPTIMIZERS)
        _check_choice("augment", self.augment, AUGMENTS)
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise OptionError(f"--lr is above 0, not {self.rate}")
        if not (0 <= self.momentum < 1):
            raise OptionError(f"--momentum lies between 0 and 1, not at {self.momentum}")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise OptionError(f"--weight-decay is at least 0, not {self.weight_decay}")
        if not (0 <= self.held_out < 1):
            raise OptionError(f"--held-out is a part of the data, from 0 up to 1, not {self.held_out}")
        if not 0 <= self.seed < 2**32:
            raise OptionError(f"--seed lies between 0 and 2**32 - 1, not at {self.seed}")
        if not all(0 < drop < 1 for drop in self.drops):
            raise OptionError("--drop is a part of the training, between 0 and 1, after which the learning rate drops")

    def rate_at(self, step: int, steps: int) -> float:
        """Learning rate of a step, counted from 0, of so many. A function of the step: a run that is taken up again has
        nothing to remember.
        """
        return self.rate * math.prod(0.1 for drop in self.drops if step >= drop * steps)


@dataclass(frozen=True)
class LearnSettings:
    """How the widths are learned; see `fxprune.StructureLearner`. `structure_epochs`: at most so many, None: 20, or
    a tenth of all epochs where that is less, so that most of the training is left to the compact network.
    """

    keep_rate: float = 0.5
    scope: str = "paper"
    mode: str = "conserve"
    fraction: float = 0.5
    decay: float = 0.98
    structure_epochs: int | None = None
    only: tuple[str, ...] | None = None
    ignore: tuple[str, ...] | None = None

    def longest(self, epochs: int) -> int:
        """Epochs of structure learning after which the network is cut in any case. Raises OptionError."""
        asked = self.structure_epochs
        if asked is None:
            return min(_LONGEST_STRUCTURE, max(1, epochs // 10))
        if not 1 <= asked <= epochs:
            raise OptionError(f"--structure-epochs is at least 1 and at most --epochs ({epochs}), not {asked}")
        return asked


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(f"--{name} {value!r} does not exist: choose from {', '.join(choices)}")
