"""even: shapes -> SparsityReport in which every layer that is not full keeps the same number of weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.averages import average_sparsity
from fxprune.densities import even_weights
from fxprune.facts import Prunable, Share, SparsityReport
from fxprune.program import Program


@dataclass(frozen=True)
class Even:
    """Before: Prunable. After: SparsityReport, the densities of PreCrop (Cai et al., arXiv 2203.02549).

    Maximising the sum of log densities under a budget of weights gives D_l = min(1, c / n_l), with n_l weights in layer
    l and one c that meets the budget. A reconstruction: no code of the authors is public.
    """

    sparsity: float
    name: ClassVar[str] = "even"
    requires: ClassVar[tuple[type, ...]] = (Prunable,)

    def run(self, program: Program) -> Program:
        names = list(program.fact(Prunable).kinds)
        sizes = [program.module.get_parameter(name).numel() for name in names]
        kept = even_weights(sizes, sum(sizes) - round(self.sparsity * sum(sizes)))
        layers = {name: Share(size - count, size) for name, size, count in zip(names, sizes, kept, strict=True)}
        return program.with_facts(SparsityReport(layers, average_sparsity(program, layers, "prunable")))
