"""What tests of criteria share: batches, and scores that are the same twice."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxprune.capture.module import capture
from fxprune.saliency import Criterion

NAMES = ["0.weight", "4.weight"]


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(5, 2, 4, 4, generator=draw, dtype=torch.float64), torch.randint(0, 3, (5,), generator=draw))
        for _ in range(count)
    ]


def scored(method: Criterion, model: nn.Module, names: list[str] = NAMES) -> dict[str, Tensor]:
    program = capture(model.train(), batches()[0][0])
    first, second = (dict(method.scores(program, names)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in names)
    return first
