"""Scores that are asked for many times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from fxprune.channels.groups import Couplings
from fxprune.channels.scores import Scores
from fxprune.program import Program
from fxprune.saliency import Criterion
from fxprune.saliency.channels import ChannelCriterion


@dataclass(frozen=True)
class Remembered:
    """A criterion whose scores are kept from the first call on: a search for a budget ranks the same weights often."""

    criterion: Criterion
    name: ClassVar[str] = "remembered"
    _known: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def scores(self, program: Program, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        if not self._known:
            self._known.update(self.criterion.scores(program, names))
        return ((name, self._known[name]) for name in names)


@dataclass(frozen=True)
class RememberedChannels:
    """The same for channels."""

    criterion: ChannelCriterion
    name: ClassVar[str] = "remembered"
    _known: list[Scores] = field(default_factory=list, repr=False)

    def scores(self, program: Program, couplings: Couplings) -> Scores:
        if not self._known:
            self._known.append(self.criterion.scores(program, couplings))
        return self._known[0]
