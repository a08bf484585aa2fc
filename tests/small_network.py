"""A small network with room for something in the middle, and halving it against the oracle."""

from __future__ import annotations

from typing import Any

import torch
from families import randomise
from family_oracle import oracle, relative
from torch import Tensor, nn

import fxprune

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def halved(model: nn.Module, example: Any = X) -> fxprune.Compiled:
    """Half of the channels at random, weights kept."""
    return fxprune.compile(model, example, keep_rate=0.5, select="random", keep_weights=True)


def check_exact(model: nn.Module, *inputs: Tensor) -> fxprune.Compiled:
    """Halved in float64, it computes what its own module does without the consumers' columns."""
    dense = randomise(model).double().eval()
    numbers = tuple(one.double() for one in inputs)
    done = halved(dense, numbers)
    with torch.no_grad():
        assert relative(oracle(dense, done.recipe)(*numbers), done.module.eval()(*numbers)) < 1e-9
    return done


class Small(nn.Module):
    """Two convolutions and a classifier, with room for something between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3), nn.Linear(12, 5)

    def features(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv2(self.conv1(x).relu()).relu()
        return y

    def scores(self, y: Tensor) -> Tensor:
        out: Tensor = self.head(y.mean((2, 3)))
        return out


class ReadsTheInput(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.features(x) * x.max().item())
