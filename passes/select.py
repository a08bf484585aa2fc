"""select: Couplings -> Prunable. Which weights take part, after the user's --only and --ignore."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar

from fxprune.channels.groups import Couplings
from fxprune.errors import NothingPrunableError, OptionError
from fxprune.facts import Prunable
from fxprune.program import Program


@dataclass(frozen=True)
class Select:
    """Before: Couplings. After: Prunable.

    only, ignore   patterns (as in a shell) for module names; a layer that is left out is not masked and keeps its
                   outputs
    """

    only: Sequence[str] | None = None
    ignore: Sequence[str] | None = None
    name: ClassVar[str] = "select"
    requires: ClassVar[tuple[type, ...]] = (Couplings,)

    def run(self, program: Program) -> Program:
        couplings = program.fact(Couplings)
        kinds = _weights(couplings)
        chosen = {name: kind for name, kind in kinds.items() if self._takes_part(name)}
        self._check_patterns(kinds)
        frozen = {
            group.index: "kept by --only or --ignore"
            for group in couplings.prunable()
            if any(name not in chosen for name in group.producers)
        }
        if not any(group.index not in frozen and group.width > 1 for group in couplings.prunable()):
            raise NothingPrunableError(_blockers(couplings, frozen))
        return program.with_facts(Prunable(chosen, frozen))

    def _takes_part(self, weight: str) -> bool:
        module = weight.rpartition(".")[0]
        if self.only is not None and not any(fnmatchcase(module, pattern) for pattern in self.only):
            return False
        return not any(fnmatchcase(module, pattern) for pattern in self.ignore or ())

    def _check_patterns(self, kinds: dict[str, str]) -> None:
        modules = [weight.rpartition(".")[0] for weight in kinds]
        for pattern in (*(self.only or ()), *(self.ignore or ())):
            if not any(fnmatchcase(module, pattern) for module in modules):
                raise OptionError(f"no prunable layer matches {pattern!r}; layers are named like {modules[:3]}")


def _weights(couplings: Couplings) -> dict[str, str]:
    """Weights of convolutions and linear layers, depthwise ones excluded (a width of their own they have not)."""
    depthwise = {one.weight for one in couplings.analysis.producers if one.kind == "depthwise"}
    return {one.weight: one.kind for one in couplings.analysis.producers if one.weight not in depthwise}


def _blockers(couplings: Couplings, frozen: dict[int, str]) -> str:
    reasons = [
        f"{group.producers[0]}: {group.frozen}" for group in couplings.groups if group.frozen and group.producers
    ]
    alone = [group for group in couplings.groups if group.prunable and group.width == 1]
    reasons += [f"{group.producers[0]}: all its channels hang together and can only go as a whole" for group in alone]
    reasons += [f"{couplings.groups[index].producers[0]}: {why}" for index, why in frozen.items()]
    return "no channel of this network can be removed. " + (
        "; ".join(reasons[:5]) or "It has no convolution or linear layer with more than one channel"
    )
