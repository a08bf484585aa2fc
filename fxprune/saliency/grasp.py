"""GraSP: keep the weights whose removal would hurt gradient flow most (Wang, Zhang, Grosse, ICLR 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from fxprune.program import Program
from fxprune.saliency.trial import Data, ScoresOnce, cooled, needed, same_draws, slopes_of, trial_network, weights_of


@dataclass(frozen=True)
class Grasp:
    """score = w * (H g), with g the gradient and H the Hessian of the loss of logits / temperature; training mode.

    The paper's score is -w * (H g) and its highest ones go; here the lowest ones go, hence the other sign. H g comes
    from one more backward pass through the gradient: H g = d(g . dL/dw)/dw with g held fixed.

    batches   how many are summed; the paper takes ten pictures of each class
    """

    data: Data | None
    seed: int = 0
    temperature: float = 200.0
    batches: int = 1
    name: ClassVar[str] = "grasp"
    _found: ScoresOnce = field(default_factory=ScoresOnce, repr=False)

    def scores(self, program: Program, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        found = self._found.get(program, lambda: self._work(program, names))
        return ((name, found[name]) for name in names)

    def _work(self, program: Program, names: Sequence[str]) -> dict[str, Tensor]:
        data = needed(self.data, self.name)
        batches = data.take(self.batches, self.name)
        network = trial_network(program, training=True)
        weights = weights_of(network, names)
        order = list(weights.values())

        def slopes(number: int, graph: bool) -> tuple[Tensor, ...]:
            inputs, labels = batches[number]
            with same_draws(self.seed + number):
                loss = data.loss_of(cooled(network(*inputs), self.temperature), labels)
                return slopes_of(loss, weights, create_graph=graph)

        flow = [sum(parts) for parts in zip(*(slopes(k, False) for k in range(len(batches))), strict=True)]
        curved = [torch.zeros_like(weight) for weight in order]
        for number in range(len(batches)):
            with torch.enable_grad():
                along = sum((ours * fixed).sum() for ours, fixed in zip(slopes(number, True), flow, strict=True))
                parts = torch.autograd.grad(along, order, allow_unused=True, materialize_grads=True)
            curved = [total + part for total, part in zip(curved, parts, strict=True)]
        pairs = zip(weights.items(), curved, strict=True)
        return {name: weight.detach() * hessian for (name, weight), hessian in pairs}
