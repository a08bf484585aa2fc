"""crop: SparsityReport -> WidthPlan. Both sides of a layer shrink to meet its density (PreCrop)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from fxprune.channels.groups import ChannelGroup, Couplings
from fxprune.channels.scores import feasible, strongest
from fxprune.facts import Prunable, SparsityReport, WeightMasks, WidthPlan
from fxprune.program import Program


@dataclass(frozen=True)
class Crop:
    """Before: SparsityReport. After: WidthPlan; masks are dropped, what remains is dense.

    A layer of density D asks for sqrt(D) of its channels, at least one: inputs and outputs both lose, so that D of the
    weights remain (Cai et al., arXiv 2203.02549). Of coupled layers the largest request counts. The first channels
    stay.

    up   round up, instead of to the nearest
    """

    up: bool = False
    name: ClassVar[str] = "plan"
    requires: ClassVar[tuple[type, ...]] = (Couplings, Prunable, SparsityReport)

    def run(self, program: Program) -> Program:
        couplings = program.fact(Couplings)
        alike = np.zeros(couplings.analysis.atoms.total)
        kept = {}
        for group in couplings.prunable():
            if group.index in program.fact(Prunable).frozen:
                continue
            count = self._width(group, program.fact(SparsityReport))
            if count < group.width:
                kept[group.index] = strongest(group, count, alike[group.roots])
        facts = {kind: fact for kind, fact in program.facts.items() if kind is not WeightMasks}
        return replace(program, facts=facts).with_facts(WidthPlan(feasible(couplings, kept, alike)))

    def _width(self, group: ChannelGroup, report: SparsityReport) -> int:
        shares = [report.layers[name] for name in group.producers if name in report.layers]
        wanted = max((math.sqrt(one.kept / one.total) for one in shares), default=1.0) * group.width
        return max(1, math.ceil(round(wanted, 9)) if self.up else math.floor(wanted + 0.5))
