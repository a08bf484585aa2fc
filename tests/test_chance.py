"""Networks that throw dice in Python: no throw is written into a graph, and the dice lie as they lay."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune


class LayerDrop(nn.Module):
    """Blocks that are left out at random in training (Fan, Grave, Joulin, ICLR 2020)."""

    def __init__(self, drawn: Callable[[], float]) -> None:
        super().__init__()
        self.drawn = drawn
        self.stem, self.scores = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        self.blocks = nn.ModuleList([nn.Conv2d(8, 8, 1) for _ in range(8)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            if not (self.training and self.drawn() < 0.5):
                x = x + block(x).relu()
        out: Tensor = self.scores(x)
        return out


DRAWS: dict[str, Callable[[], float]] = {
    "python": random.random,
    "numpy": lambda: float(np.random.rand()),
    "torch": lambda: float(torch.empty(1).uniform_()),
}


@pytest.mark.parametrize("name", DRAWS)
def test_no_block_is_left_out_for_good(name: str) -> None:
    model, x = LayerDrop(DRAWS[name]), torch.randn(2, 3, 6, 6)
    python, drawn = random.getstate(), torch.get_rng_state()
    done = fxprune.compile(model, x, keep_rate=0.5)
    assert random.getstate() == python and torch.equal(torch.get_rng_state(), drawn)
    assert done.report.front_end == "export" and any("random numbers" in note for note in done.report.notes)
    done.module.train()(x).square().sum().backward()
    assert all(one.grad is not None for one in done.module.parameters())


def test_draws_that_are_nodes_of_the_graph_stay_in_it() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(0.5), nn.Conv2d(8, 4, 1))
    done = fxprune.compile(model, torch.randn(2, 3, 6, 6), keep_rate=0.5)
    assert done.report.front_end == "fx"
