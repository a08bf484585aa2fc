"""mask: weights -> WeightMasks with exactly round(sparsity * n) zeros, chosen globally or layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from torch import Tensor

from fxprune.densities import layer_zeros
from fxprune.errors import OptionError
from fxprune.facts import Prunable, WeightMasks
from fxprune.program import Program
from fxprune.saliency import Criterion
from fxprune.saliency.selection import masks_without_lowest


@dataclass(frozen=True)
class Mask:
    """Before: Prunable. After: WeightMasks over the same weights (Reconvene: global magnitude pruning).

    sparsity   fraction of weights to zero, over all weights together
    criterion  what scores them, in float32 or float64; the lowest go. Among equal scores those at the lowest positions
               stay. A score that is NaN or infinite is an OptionError: its bits would rank above or below all others
    ranking    "global": all weights together; "uniform", "erk": each layer by itself, see `fxprune.densities`
    """

    sparsity: float
    criterion: Criterion
    ranking: str = "global"
    name: ClassVar[str] = "mask"
    requires: ClassVar[tuple[type, ...]] = (Prunable,)

    def run(self, program: Program) -> Program:
        names = list(program.fact(Prunable).kinds)
        shapes = [program.module.get_parameter(name).shape for name in names]
        if self.ranking == "global":
            zeros = round(self.sparsity * sum(shape.numel() for shape in shapes))
            return program.with_facts(WeightMasks(self._masks(program, names, zeros)))
        return program.with_facts(WeightMasks(self._layer_masks(program, names, shapes)))

    def _masks(self, program: Program, names: Sequence[str], zeros: int) -> dict[str, Tensor]:
        return masks_without_lowest(lambda: self._scores(program, names), zeros)

    def _layer_masks(
        self, program: Program, names: Sequence[str], shapes: Sequence[Sequence[int]]
    ) -> dict[str, Tensor]:
        """One walk over the layers: a criterion may work out all of them for the first."""
        zeros = layer_zeros(shapes, self.sparsity, self.ranking)
        masks: dict[str, Tensor] = {}
        for pair, count in zip(self._scores(program, names), zeros, strict=True):
            masks |= masks_without_lowest(partial(iter, (pair,)), count)
        return masks

    def _scores(self, program: Program, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        for name, score in self.criterion.scores(program, names):
            if score.numel() and not all(math.isfinite(one.item()) for one in score.aminmax()):
                raise OptionError(
                    f"the scores of {name} are NaN or infinite: look at the data, the loss and the weights, or choose "
                    "another criterion"
                )
            yield name, score
