"""expect: shapes -> SparsityReport. How sparse magnitude masks are at Kaiming initialisation, without any weight."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from fxprune.averages import average_sparsity
from fxprune.drawing import fan_in
from fxprune.facts import Prunable, Share, SparsityReport
from fxprune.program import Program
from fxprune.rounding import rounded

_HALVINGS = 200  # of the interval that holds the threshold: far beyond the last bit


@dataclass(frozen=True)
class Expect:
    """Before: Prunable. After: SparsityReport, as `mask` and `sparsity` would state it on average over seeds.

    Weights of layer l are normal with variance 2 / fan_in_l, so that a threshold t on |w| masks a share of
    erf(t / sqrt(4 / fan_in_l)) of them. One t meets the sparsity over all weights together.

    sparsity  fraction of weights that masks would zero
    average   see `fxprune.averages`
    """

    sparsity: float
    average: str = "prunable"
    name: ClassVar[str] = "expect"
    requires: ClassVar[tuple[type, ...]] = (Prunable,)

    def run(self, program: Program) -> Program:
        shapes = {name: program.module.get_parameter(name).shape for name in program.fact(Prunable).kinds}
        sizes = {name: shape.numel() for name, shape in shapes.items()}
        shares = expected_shares({name: (fan_in(shape), sizes[name]) for name, shape in shapes.items()}, self.sparsity)
        wanted = [shares[name] * size for name, size in sizes.items()]
        zeros = rounded(wanted, 0, list(sizes.values()), round(self.sparsity * sum(sizes.values())))
        layers = {name: Share(count, sizes[name]) for name, count in zip(sizes, zeros, strict=True)}
        return program.with_facts(SparsityReport(layers, average_sparsity(program, layers, self.average)))


def expected_shares(layers: Mapping[str, tuple[int, int]], sparsity: float) -> dict[str, float]:
    """Sparsity of each layer of (fan-in, weights) when `sparsity` of all weights are masked by magnitude."""
    total = sum(size for _, size in layers.values())
    by_fan: dict[int, int] = {}
    for inputs, size in layers.values():
        by_fan[inputs] = by_fan.get(inputs, 0) + size

    def masked(threshold: float) -> float:
        return sum(size * _share(inputs, threshold) for inputs, size in by_fan.items())

    low, high = 0.0, 10 * math.sqrt(2 / min(by_fan))  # ten standard deviations of the widest layer
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if masked(middle) < sparsity * total else (low, middle)
    return {name: _share(inputs, high) for name, (inputs, _) in layers.items()}


def _share(inputs: int, threshold: float) -> float:
    return math.erf(threshold / math.sqrt(4 / inputs))
