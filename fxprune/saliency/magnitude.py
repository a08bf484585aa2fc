"""Magnitude: a small weight matters little (Han et al. 2015; at initialisation, Frankle et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fxprune.program import Program


@dataclass(frozen=True)
class Magnitude:
    """score = |w|"""

    name: ClassVar[str] = "magnitude"

    def scores(self, program: Program, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.of(program.tensors[name].detach())) for name in names)

    @staticmethod
    def of(weight: Tensor) -> Tensor:
        """Scores of any part of a weight, from that part alone."""
        return weight.abs().float()
