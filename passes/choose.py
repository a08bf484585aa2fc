"""choose: Prunable -> WidthPlan that keeps a given share of channels, those with the highest scores."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import ClassVar

import numpy as np

from fxprune.channels.groups import ChannelGroup, Couplings
from fxprune.channels.scores import Scores, feasible, strongest
from fxprune.errors import OptionError
from fxprune.facts import Prunable, WidthPlan
from fxprune.program import Program
from fxprune.saliency.channels import ChannelCriterion

POOLS = ("local", "global", "isomorphic")
KeepRate = float | Mapping[str, float]


@dataclass(frozen=True)
class Choose:
    """Before: Prunable. After: WidthPlan; groups that the scores say nothing about are frozen in Prunable.

    keep_rate   kept / original channels, rounded up, at least one a group; a mapping gives shell patterns of module
                names their own rates: the first that matches a layer of the group counts, others keep all
    channels    what scores them
    pool        what competes: "local" the channels of one group; "global" those of all, "isomorphic" those of groups
                with the same shapes (Fang et al., ECCV 2024): there, groups lose unequally, and each keeps one at least
    """

    keep_rate: KeepRate
    channels: ChannelCriterion
    pool: str = "local"
    name: ClassVar[str] = "plan"
    requires: ClassVar[tuple[type, ...]] = (Couplings, Prunable)

    def run(self, program: Program) -> Program:
        if self.pool not in POOLS:
            raise OptionError(f"unknown pool {self.pool!r}: choose {', '.join(POOLS)}")
        couplings = program.fact(Couplings)
        prunable = program.fact(Prunable)
        groups = [group for group in couplings.prunable() if group.index not in prunable.frozen]
        self._check_patterns(groups)
        scores = self.channels.scores(program, couplings)
        untold = {group.index: "nothing tells its channels apart" for group in groups if _unknown(scores, group)}
        if groups and len(untold) == len(groups):
            raise OptionError(f"{self.channels.name} has no number for any channel: gradients or weights may be NaN")
        groups = [group for group in groups if group.index not in untold]
        counts: dict[int, int] = {}
        for rate, pool in self._pools(program, groups):
            counts |= _local(pool, rate) if self.pool == "local" else _pooled(pool, rate, scores)
        kept = {
            index: strongest(couplings.groups[index], n, scores[couplings.groups[index].roots])
            for index, n in counts.items()
        }
        plan = WidthPlan(feasible(couplings, kept, np.nan_to_num(scores, nan=np.inf)))
        return program.with_facts(plan, replace(prunable, frozen={**prunable.frozen, **untold}))

    def _pools(self, program: Program, groups: Sequence[ChannelGroup]) -> Iterator[tuple[float, list[ChannelGroup]]]:
        """(keep rate, groups that compete with each other)."""
        pools: dict[tuple[object, ...], list[ChannelGroup]] = {}
        for group in groups:
            kind = _shapes(program, group) if self.pool == "isomorphic" else ()
            pools.setdefault((self._rate(group), kind), []).append(group)
        for (rate, _), pool in pools.items():
            assert isinstance(rate, float)
            yield rate, pool

    def _rate(self, group: ChannelGroup) -> float:
        if not isinstance(self.keep_rate, Mapping):
            return float(self.keep_rate)
        modules = [name.rpartition(".")[0] for name in group.producers]
        rates = (rate for pattern, rate in self.keep_rate.items() if _any_match(modules, pattern))
        return float(next(rates, 1.0))

    def _check_patterns(self, groups: Sequence[ChannelGroup]) -> None:
        if not isinstance(self.keep_rate, Mapping):
            return
        modules = [name.rpartition(".")[0] for group in groups for name in group.producers]
        for pattern in self.keep_rate:
            if not _any_match(modules, pattern):
                raise OptionError(
                    f"no layer that can lose channels matches {pattern!r}; they are named like {modules[:3]}"
                )


def _unknown(scores: Scores, group: ChannelGroup) -> bool:
    return bool(np.isnan(scores[group.roots]).any())


def _any_match(modules: Sequence[str], pattern: str) -> bool:
    return any(fnmatchcase(module, pattern) for module in modules)


def _shapes(program: Program, group: ChannelGroup) -> tuple[object, ...]:
    """What groups have in common that look alike: width, rows, and the shapes of their members."""
    shapes = (tuple(program.tensors[one.parameter].shape) for one in group.members)
    dims = (one.dim for one in group.members)
    return (group.width, group.row_count, *sorted(zip(shapes, dims, strict=True)))


def _local(pool: Sequence[ChannelGroup], rate: float) -> dict[int, int]:
    return {group.index: group.row_count * max(1, _ceil(group.width // group.row_count * rate)) for group in pool}


def _pooled(pool: Sequence[ChannelGroup], rate: float, scores: Scores) -> dict[int, int]:
    """How many of each group are among the best of all; ties go to the group that comes first."""
    owner = np.repeat([group.index for group in pool], [group.width for group in pool])
    values = np.concatenate([scores[group.roots] for group in pool])
    best = np.argsort(-values, kind="stable")[: max(1, _ceil(len(values) * rate))]
    counts = np.bincount(owner[best], minlength=int(owner.max()) + 1)
    return {group.index: max(1, int(counts[group.index])) for group in pool}


def _ceil(value: float) -> int:
    """Round up, forgiving the last bits of a product of floats (100 x 0.07 is 7, not 8)."""
    return math.ceil(round(value, 9))
