"""What a run is trained on: data that fit the network, divided into pictures to learn from and to validate with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fxprune.data import class_names, open_data
from fxprune.errors import OptionError
from fxprune.program import Inputs
from fxprune.training.batches import Part, fingerprint, split
from fxprune.training.settings import Settings


@dataclass(frozen=True, eq=False)
class RunData:
    """`source` and `validation` as the user named them, `shape` of one picture, `parts` to train on and to validate
    with.
    """

    source: str
    validation: str | None
    shape: tuple[int, ...]
    parts: tuple[Part, Part]

    def identity(self) -> dict[str, Any]:
        """What tells it from other data."""
        return {"input": self.shape, "data fingerprint": " ".join(fingerprint(part) for part in self.parts)}

    def told(self) -> Mapping[str, Any]:
        """For report.json."""
        return {
            "data": self.source,
            "validation": self.validation,
            "pictures": {"trained": len(self.parts[0]), "validated": len(self.parts[1])},
        }


def run_data(source: str, validation: str | None, inputs: Inputs, classes: int, settings: Settings) -> RunData:
    """Data for a network that takes `inputs` and tells `classes` apart. Raises OptionError."""
    shape = picture_shape(inputs)
    data = open_data(source, shape, classes, seed=settings.seed)
    other = None if validation is None else open_data(validation, shape, classes, seed=settings.seed + 1)
    if validation is not None and class_names(source) and class_names(source) != class_names(validation):
        raise OptionError(f"{validation} has other classes than {source}: the same folders are wanted in both")
    return RunData(source, validation, shape, split(data, other, settings.held_out, settings.seed, source))


def picture_shape(inputs: Inputs) -> tuple[int, ...]:
    """Shape of one picture. Raises OptionError for a network that takes anything else than pictures."""
    if len(inputs.args) != 1 or inputs.kwargs or not isinstance(inputs.args[0], Tensor):
        raise OptionError("only networks that take one tensor of pictures can be trained here")
    return tuple(inputs.args[0].shape[1:])
