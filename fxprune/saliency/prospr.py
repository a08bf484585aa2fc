"""ProsPr: score a mask by the loss after a few steps of training under it (Alizadeh et al., ICLR 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor
from torch.func import functional_call

from fxprune.program import Program
from fxprune.saliency.trial import Data, ScoresOnce, needed, same_draws, slopes_of, trial_network


@dataclass(frozen=True)
class Prospr:
    """score = |dL(w_M)/dm| at m = 1, where w_0 = m * w, w_(t+1) = w_t - rate * v_t, v_t = momentum * v_(t-1) + dL/dw_t.

    Needs steps + 1 batches: one for each step and one for the last loss. Training mode, second order.

    steps         M
    first_order   do not differentiate through the gradients of the steps (cheaper, less exact)
    """

    data: Data | None
    seed: int = 0
    steps: int = 3
    rate: float = 0.1
    momentum: float = 0.0
    first_order: bool = False
    name: ClassVar[str] = "prospr"
    _found: ScoresOnce = field(default_factory=ScoresOnce, repr=False)

    def scores(self, program: Program, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        found = self._found.get(program, lambda: self._work(program, names))
        return ((name, found[name]) for name in names)

    def _work(self, program: Program, names: Sequence[str]) -> dict[str, Tensor]:
        data = needed(self.data, self.name)
        batches = data.take(self.steps + 1, self.name)
        network = trial_network(program, training=True)
        buffers = {name: one.clone() for name, one in network.named_buffers()}
        state = {name: one.detach().requires_grad_() for name, one in network.named_parameters()}
        with same_draws(self.seed):
            masks = {name: torch.ones_like(state[name]).requires_grad_() for name in names}
            weights = {name: masks[name] * one if name in masks else one for name, one in state.items()}

            def loss(number: int) -> Tensor:
                inputs, labels = batches[number]
                return data.loss_of(functional_call(network, (weights, buffers), inputs), labels)

            speed: dict[str, Tensor] = {}
            for number in range(self.steps):
                graph = not self.first_order
                slopes = torch.autograd.grad(
                    loss(number), list(weights.values()), create_graph=graph, allow_unused=True, retain_graph=True
                )
                for (name, weight), slope in zip(list(weights.items()), slopes, strict=True):
                    if slope is None:
                        continue
                    speed[name] = slope + self.momentum * speed[name] if name in speed else slope
                    weights[name] = weight - self.rate * speed[name]
            found = slopes_of(loss(self.steps), masks)
        return {name: slope.abs() for name, slope in zip(names, found, strict=True)}
