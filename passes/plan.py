"""plan: SensitivityReport + groups -> WidthPlan. How many channels does each group keep, and which?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fxprune.channels.groups import ChannelGroup, Couplings
from fxprune.channels.scores import channel_scores, feasible, strongest
from fxprune.errors import OptionError
from fxprune.facts import Prunable, SensitivityReport, SparsityReport, WeightMasks, WidthPlan
from fxprune.program import Program

COUPLINGS = ("max", "keep", "min")


@dataclass(frozen=True)
class Plan:
    """Before: SensitivityReport, SparsityReport. After: WidthPlan (Reconvene, Algorithm 1, lines 14-18).

    A resilient member asks for ceil(width x density) channels of the group, at least one; a sensitive one for all of
    them.
    coupling   what a group of several members gets: "max" the largest request (never cuts a sensitive layer), "keep"
               all its channels, "min" the smallest request
    Channels with most weights surviving under WeightMasks stay; of equal ones, and without masks, those with the lowest
    index.
    """

    coupling: str = "max"
    name: ClassVar[str] = "plan"
    requires: ClassVar[tuple[type, ...]] = (Couplings, Prunable, SensitivityReport, SparsityReport)

    def run(self, program: Program) -> Program:
        if self.coupling not in COUPLINGS:
            raise OptionError(f"unknown coupling rule {self.coupling!r}: choose {', '.join(COUPLINGS)}")
        couplings = program.fact(Couplings)
        known = program.facts.get(WeightMasks)
        scores = channel_scores(couplings, known.masks.items() if known else ())
        kept = {}
        for group in couplings.prunable():
            if group.index in program.fact(Prunable).frozen:
                continue
            count = self._width(group, program)
            if count < group.width:
                kept[group.index] = strongest(group, count, scores[group.roots])
        return program.with_facts(WidthPlan(feasible(couplings, kept, scores)))

    def _width(self, group: ChannelGroup, program: Program) -> int:
        requests = [self._request(group.width, name, program) for name in group.producers]
        if self.coupling == "keep" and len(requests) > 1:
            return group.width
        return min(requests) if self.coupling == "min" else max(requests)

    def _request(self, width: int, name: str, program: Program) -> int:
        if not program.fact(SensitivityReport).resilient.get(name, False):
            return width
        share = program.fact(SparsityReport).layers[name]
        return max(1, (width * share.kept + share.total - 1) // share.total)
