"""S_avg: what the sparsity of a layer is compared with (Reconvene, Equation 1)."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

from fxprune.errors import OptionError
from fxprune.facts import Prunable, Share
from fxprune.program import Program

AVERAGES = ("prunable", "conv", "all-params", "layer-mean")


def average_sparsity(program: Program, layers: Mapping[str, Share], average: str) -> Fraction:
    """The average sparsity of these layers, exactly.

    average   "prunable" over all masked weights (the reading that reproduces the paper's VGG-19), "conv" over those of
              convolutions, "all-params" zeros over all parameters, "layer-mean" the unweighted mean of the layers
    """
    if average not in AVERAGES:
        raise OptionError(f"unknown average {average!r}: choose {', '.join(AVERAGES)}")
    if average == "layer-mean":
        return sum((Fraction(one.zeros, one.total) for one in layers.values()), Fraction(0)) / len(layers)
    kinds = program.fact(Prunable).kinds
    counted = [one for name, one in layers.items() if average != "conv" or kinds[name] == "conv"]
    total = sum(one.total for one in counted)
    if average == "all-params":
        total = sum(parameter.numel() for parameter in program.module.parameters())
    return Fraction(sum(one.zeros for one in counted), total) if total else Fraction(0)
