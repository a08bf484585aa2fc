"""sparsity: WeightMasks -> SparsityReport. How sparse did each layer become, and what is the average?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.averages import average_sparsity
from fxprune.facts import Prunable, Share, SparsityReport, WeightMasks
from fxprune.program import Program


@dataclass(frozen=True)
class Sparsity:
    """Before: WeightMasks. After: SparsityReport (Reconvene, Algorithm 1, lines 1-13).

    average   what S_avg runs over, see `fxprune.averages`
    """

    average: str = "prunable"
    name: ClassVar[str] = "sparsity"
    requires: ClassVar[tuple[type, ...]] = (WeightMasks, Prunable)

    def run(self, program: Program) -> Program:
        masks = program.fact(WeightMasks).masks
        layers = {name: Share(mask.numel() - int(mask.count_nonzero()), mask.numel()) for name, mask in masks.items()}
        return program.with_facts(SparsityReport(layers, average_sparsity(program, layers, self.average)))
