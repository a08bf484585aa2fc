"""A recipe cuts the user's own class only where its code computes the same with the new widths."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cut_networks import compiled, noisy
from torch import Tensor, nn

from fxprune.errors import RewriteError


class Counts(nn.Module):
    """Its code makes a number of a width. Traced, the number of the dense network stands in the graph."""

    def __init__(self, number: Callable[[Any], float]) -> None:
        super().__init__()
        self.number = number
        self.first, self.second, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x).relu() * self.number(self))
        out: Tensor = self.out(x[:, :, :4] if self.second.in_channels > 100 else x)
        return out


class Branches(Counts):
    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x))
        out: Tensor = self.out(x.relu() if self.first.out_channels > 4 else x)
        return out


class Insists(Counts):
    def forward(self, x: Tensor) -> Tensor:
        if self.first.out_channels != 8:
            raise ValueError("eight channels, please")
        out: Tensor = self.out(self.second(self.first(x)))
        return out


class AsksForTheBatch(Counts):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x) * (2 if x.shape[0] > 1 else 3)
        return out


@pytest.mark.parametrize(
    ("kind", "number", "fault"),
    [
        (Counts, lambda net: net.second.in_channels**-0.5, "computes with another number at mul"),
        (Counts, lambda net: net.first.weight.shape[0], "computes with another number at mul"),
        (Counts, lambda net: net.first.weight.numel() / 24, "computes with another number at mul"),
        (Branches, None, "computes with another number at relu"),
        (Insists, None, "does not run .*eight channels, please"),
    ],
    ids=range(5),
)
def test_refuses_a_network_whose_code_makes_a_number_of_a_width(kind: Any, number: Any, fault: str) -> None:
    """The compiled network keeps the number, so that the user's class would compute something else."""
    model = noisy(kind(number))
    done = compiled(model, 8)
    assert not done.recipe.patched and done.report.front_end == "fx"
    with pytest.raises(RewriteError, match=f"the source of {kind.__name__} {fault}.*use the compiled module"):
        done.recipe.apply(model)


def test_a_network_whose_code_makes_the_same_number_is_cut() -> None:
    model = noisy(Counts(lambda net: net.first.in_channels))
    done = compiled(model, 8)
    x = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    assert torch.equal(done.recipe.apply(model).eval()(x), done.module.eval()(x))


def test_what_cannot_be_compared_is_cut_all_the_same() -> None:
    """A recipe that does not tell the inputs, and a network that torch.fx cannot follow."""
    model = noisy(Counts(lambda net: 2.0))
    small = compiled(model, 8).recipe.model_copy(update={"inputs": None}).apply(model)
    assert small.first.out_channels == 4
    asks = noisy(AsksForTheBatch(lambda net: 2.0))
    done = compiled(asks, 8)
    assert done.report.front_end == "export" and done.recipe.apply(asks).first.out_channels == 4
