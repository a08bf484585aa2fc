"""SNIP: what the loss loses when a weight goes, to first order (Lee, Ajanthan, Torr, ICLR 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from fxprune.program import Program
from fxprune.saliency.trial import Data, ScoresOnce, needed, same_draws, slopes_of, trial_network, weights_of


@dataclass(frozen=True)
class Snip:
    """score = |w * dL/dw|, which is |dL/dm| at m = 1 for a factor m on the weight; one batch, training mode.

    Needs one batch. The paper divides by the sum of all scores, which changes no ranking.
    """

    data: Data | None
    seed: int = 0
    name: ClassVar[str] = "snip"
    _found: ScoresOnce = field(default_factory=ScoresOnce, repr=False)

    def scores(self, program: Program, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        found = self._found.get(program, lambda: self._work(program, names))
        return ((name, found[name]) for name in names)

    def _work(self, program: Program, names: Sequence[str]) -> dict[str, Tensor]:
        data = needed(self.data, self.name)
        [(inputs, labels)] = data.take(1, self.name)
        network = trial_network(program, training=True)
        weights = weights_of(network, names)
        with same_draws(self.seed):
            loss = data.loss_of(network(*inputs), labels)
            slopes = slopes_of(loss, weights)
        pairs = zip(weights.items(), slopes, strict=True)
        return {name: (weight.detach() * slope).abs() for (name, weight), slope in pairs}
