"""uniform: Prunable -> WidthPlan in which every group keeps the same fraction of its channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from fxprune.channels.groups import Couplings
from fxprune.channels.scores import Scores, channel_scores, feasible, strongest
from fxprune.drawing import generator
from fxprune.errors import OptionError
from fxprune.facts import Prunable, WidthPlan
from fxprune.program import Program
from fxprune.saliency import Criterion

SELECTIONS = ("saliency", "random", "first")


@dataclass(frozen=True)
class Uniform:
    """Before: Prunable. After: WidthPlan.

    keep_rate   kept / original channels of each group, rounded up, at least one
    select      which stay: "saliency" the highest sums of the criterion over their weights, "random" from the seed,
                "first"
    """

    keep_rate: float
    select: str
    criterion: Criterion
    seed: int = 0
    name: ClassVar[str] = "plan"
    requires: ClassVar[tuple[type, ...]] = (Couplings, Prunable)

    def run(self, program: Program) -> Program:
        if self.select not in SELECTIONS:
            raise OptionError(f"unknown selection {self.select!r}: choose {', '.join(SELECTIONS)}")
        couplings = program.fact(Couplings)
        scores = self._scores(program, couplings)
        kept = {}
        for group in couplings.prunable():
            if group.index in program.fact(Prunable).frozen:
                continue
            per_row = max(1, _ceil(group.width // group.row_count * self.keep_rate))
            kept[group.index] = strongest(group, per_row * group.row_count, scores[group.roots])
        return program.with_facts(WidthPlan(feasible(couplings, kept, scores)))

    def _scores(self, program: Program, couplings: Couplings) -> Scores:
        total = couplings.analysis.atoms.total
        if self.select == "first":
            return np.zeros(total)
        if self.select == "random":
            return torch.rand(total, generator=generator(self.seed, "select"), dtype=torch.float64).numpy()
        names = list(program.fact(Prunable).kinds)
        return channel_scores(couplings, self.criterion.scores(program, names))


def _ceil(value: float) -> int:
    """Round up, forgiving the last bits of a product of floats (100 x 0.07 is 7, not 8)."""
    return math.ceil(round(value, 9))
