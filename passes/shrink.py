"""shrink: WidthPlan -> a smaller program, proved to compute what the dense one computes with the removed channels
zeroed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fxprune.channels.groups import ChannelGroup, Couplings
from fxprune.channels.rewrite import Rewritten
from fxprune.channels.solve import Ints
from fxprune.facts import Ranking, Repairs, SensitivityReport, Shrunk, WeightMasks, WidthPlan
from fxprune.program import Program
from fxprune.verify import rewrite_and_prove

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Shrink:
    """Before: WidthPlan (and WeightMasks, SensitivityReport where there are masks). After: the cut graph; Shrunk,
    WeightMasks, Repairs.

    Resilient layers that were cut become dense. All other masks are sliced with their weights and kept alive: a row
    that slicing has emptied gets its largest weight back; a linear layer that lost inputs, or a classifier with an
    empty row, becomes dense (no class may lose all it sees).

    proof   compare outputs in float64 (structure is always checked)
    retry   leave groups alone that the check refuses; False raises ProofError instead
    """

    proof: bool = True
    retry: bool = True
    seed: int = 0
    name: ClassVar[str] = "shrink"
    requires: ClassVar[tuple[type, ...]] = (Couplings, WidthPlan, Ranking)

    def run(self, program: Program) -> Program:
        couplings = program.fact(Couplings)
        planned = program.fact(WidthPlan).kept
        proved = rewrite_and_prove(program, couplings, planned, numbers=self.proof, retry=self.retry, seed=self.seed)
        result = proved.result
        assert proved.verdict.analysis is not None  # a verdict without one is a fault
        masks, repairs = _Masks(program, couplings, result, proved.kept).cut()
        groups = couplings.groups
        shrunk = Shrunk(
            kept=result.kept,
            kept_per_group=result.kept_per_group,
            renumbered=result.renumbered,
            patched=result.patched,
            widths={index: (groups[index].width, len(kept)) for index, kept in proved.kept.items()},
            refused=proved.refused,
            error=proved.verdict.error if self.proof and not math.isnan(proved.verdict.error) else None,
            signal=proved.verdict.signal if self.proof else None,
            dense=frozenset(_masks_of(program)) - frozenset(masks),
            single=_single_biases(program, groups, proved.kept),
            analysis=proved.verdict.analysis,
        )
        return result.program.with_facts(shrunk, WeightMasks(masks), repairs, program.fact(Ranking))


def _single_biases(program: Program, groups: Sequence[ChannelGroup], kept: Mapping[int, Ints]) -> tuple[str, ...]:
    """Biases of the groups that keep one channel: of normalisations, or, where there are none, of other layers."""
    norms = {path for path, module in program.module.named_modules() if isinstance(module, _NORMS)}
    found: list[str] = []
    for index, positions in kept.items():
        if len(positions) > 1:
            continue
        biases = [member.parameter for member in groups[index].members if member.parameter.endswith("bias")]
        of_norms = [name for name in biases if name.rpartition(".")[0] in norms]
        found += of_norms or biases
    return tuple(dict.fromkeys(found))


def _masks_of(program: Program) -> Mapping[str, Tensor]:
    known = program.facts.get(WeightMasks)
    return known.masks if known else {}


class _Masks:
    """Masks of the dense program on their way to the cut one."""

    def __init__(self, program: Program, couplings: Couplings, result: Rewritten, kept: Mapping[int, Ints]) -> None:
        self.masks = _masks_of(program)
        known = program.facts.get(SensitivityReport)
        self.resilient = known.resilient if known else {}
        self.result = result
        self.labels = couplings.analysis.parameter_labels
        self.outputs = {name for index in kept for name in couplings.groups[index].producers}
        self.linear = {one.weight for one in couplings.analysis.producers if one.kind == "linear"}

    def cut(self) -> tuple[dict[str, Tensor], Repairs]:
        masks: dict[str, Tensor] = {}
        rows: dict[str, int] = {}
        densified = []
        for name, mask in self.masks.items():
            if name in self.outputs and self.resilient.get(name, False):
                continue
            if name in self.linear and 1 in self.result.kept.get(name, {}):
                densified.append(name)
                continue
            masks[name] = self.result.cut.slice(self.labels[name], mask)
            if self._is_starved_head(name, masks[name]):
                densified.append(name)
                del masks[name]
                continue
            revived = self._revive(name, masks[name])
            if revived is not None:
                masks[name], rows[name] = revived
        return masks, Repairs(rows, tuple(densified))

    def _is_starved_head(self, name: str, mask: Tensor) -> bool:
        """A classifier some of whose scores see nothing. One feature each would not do: it may be dead."""
        head = name in self.linear and name not in self.resilient
        return head and not bool(mask.reshape(mask.shape[0], -1).any(dim=1).all())

    def _revive(self, name: str, mask: Tensor) -> tuple[Tensor, int] | None:
        """The mask with the largest weight of each empty row restored, and how many rows that were; None if none
        was.
        """
        empty = ~mask.reshape(mask.shape[0], -1).any(dim=1)
        count = int(empty.sum())
        if not count:
            return None
        weight = self.result.program.tensors[name].detach()[empty]
        revived = mask.clone()
        best = weight.abs().reshape(count, -1).argmax(dim=1)
        fresh = revived[empty].reshape(count, -1)
        fresh[range(count), best] = True
        revived[empty] = fresh.reshape(weight.shape)
        return revived, count
