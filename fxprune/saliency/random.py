"""Random: the control for every other criterion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.drawing import generator
from fxprune.program import Program


@dataclass(frozen=True)
class Random:
    """score ~ U[0, 1), drawn for each layer from the seed and its name"""

    seed: int
    name: ClassVar[str] = "random"

    def scores(self, program: Program, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        shapes = ((name, program.tensors[name].shape) for name in names)
        return ((name, torch.rand(shape, generator=generator(self.seed, "random", name))) for name, shape in shapes)
