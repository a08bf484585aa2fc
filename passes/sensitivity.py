"""sensitivity: SparsityReport -> SensitivityReport. Which layers keep their mask, which are shrunk?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch

from fxprune.channels.groups import Couplings
from fxprune.drawing import generator
from fxprune.errors import OptionError
from fxprune.facts import Prunable, SensitivityReport, Share, SparsityReport
from fxprune.program import Program


@dataclass(frozen=True)
class Sensitivity:
    """Before: SparsityReport. After: SensitivityReport (Reconvene, Equation 1).

    policy   "reconvene": resilient where S_l >= S_avg; "all": every layer (SPaI); "none": no layer (UPaI);
             "inverted": resilient where S_l < S_avg; "random": a fair coin for each layer, from the seed

    Marked are convolutions, and linear layers whose outputs can be cut; a classifier's outputs are the classes.
    """

    policy: str = "reconvene"
    seed: int = 0
    name: ClassVar[str] = "sensitivity"
    requires: ClassVar[tuple[type, ...]] = (SparsityReport, Prunable, Couplings)

    def run(self, program: Program) -> Program:
        if self.policy not in POLICIES:
            raise OptionError(f"unknown policy {self.policy!r}: choose {', '.join(POLICIES)}")
        report = program.fact(SparsityReport)
        kinds = program.fact(Prunable).kinds
        cuttable = {name for group in program.fact(Couplings).prunable() for name in group.producers}
        marked = [name for name in report.layers if kinds[name] == "conv" or name in cuttable]
        decide = POLICIES[self.policy]
        return program.with_facts(
            SensitivityReport({name: decide(self, name, report.layers[name], report.average) for name in marked})
        )

    def _coin(self, layer: str) -> bool:
        return bool(torch.randint(2, (1,), generator=generator(self.seed, "sensitivity", layer)))


def _dense_enough(share: Share, average: Fraction) -> bool:
    return Fraction(share.zeros, share.total) < average


POLICIES: dict[str, Callable[[Sensitivity, str, Share, Fraction], bool]] = {
    "reconvene": lambda step, name, share, average: not _dense_enough(share, average),
    "all": lambda step, name, share, average: True,
    "none": lambda step, name, share, average: False,
    "inverted": lambda step, name, share, average: _dense_enough(share, average),
    "random": lambda step, name, share, average: step._coin(name),
}
