"""sparsity: WeightMasks -> SparsityReport. How sparse did each layer become, and what is the average?"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

from fxprune.errors import OptionError
from fxprune.facts import Prunable, Share, SparsityReport, WeightMasks
from fxprune.program import Program

AVERAGES = ("prunable", "conv", "all-params", "layer-mean")


@dataclass(frozen=True)
class Sparsity:
    """Before: WeightMasks. After: SparsityReport (paper A, Algorithm 1, lines 1-13).

    average   what S_avg runs over: "prunable" all masked weights (the reading that reproduces the paper's VGG-19),
              "conv" those of convolutions, "all-params" zeros over all parameters, "layer-mean" the unweighted mean
              of the layers
    """

    average: str = "prunable"
    name: ClassVar[str] = "sparsity"
    requires: ClassVar[tuple[type, ...]] = (WeightMasks, Prunable)

    def run(self, program: Program) -> Program:
        masks = program.fact(WeightMasks).masks
        layers = {name: Share(mask.numel() - int(mask.count_nonzero()), mask.numel()) for name, mask in masks.items()}
        return program.with_facts(SparsityReport(layers, self._average(program, layers)))

    def _average(self, program: Program, layers: dict[str, Share]) -> Fraction:
        if self.average not in AVERAGES:
            raise OptionError(f"unknown average {self.average!r}: choose {', '.join(AVERAGES)}")
        if self.average == "layer-mean":
            return sum((Fraction(one.zeros, one.total) for one in layers.values()), Fraction(0)) / len(layers)
        kinds = program.fact(Prunable).kinds
        counted = [one for name, one in layers.items() if self.average != "conv" or kinds[name] == "conv"]
        total = sum(one.total for one in counted)
        if self.average == "all-params":
            total = sum(parameter.numel() for parameter in program.module.parameters())
        return Fraction(sum(one.zeros for one in counted), total) if total else Fraction(0)
