"""Tensors in dataclasses, as arguments and as results."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from small_network import Small, X, halved
from torch import Tensor, nn

from fxprune.errors import CaptureError


@dataclass
class Both:
    scores: Tensor
    maps: Tensor | None = None
    name: str = "both"


@dataclass
class Named(OrderedDict[str, Any]):
    """A dict with attributes, as other libraries have them."""

    scores: Any
    maps: Any = None

    def __post_init__(self) -> None:
        self.update((name, value) for name, value in vars(self).items() if value is not None)


class Unknown:
    def __init__(self, scores: Tensor) -> None:
        self.scores = scores


class Returns(Small):
    def __init__(self, kind: Callable[..., Any]) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Any:
        y = self.features(x)
        return self.kind(self.scores(y))


class BranchesOnTheBatch(Returns):
    """torch.fx cannot follow this."""

    def forward(self, x: Tensor) -> Any:
        y = self.features(x)
        return self.kind(self.scores(y if x.shape[0] > 1 else y * 2))


@pytest.mark.parametrize("make", [Returns, BranchesOnTheBatch])
@pytest.mark.parametrize("kind", [Both, Named])
def test_results_in_dataclasses_keep_their_widths(make: Callable[..., nn.Module], kind: type) -> None:
    """No tensor in them is overlooked, and callers get what they got before."""
    model = make(kind)
    done = halved(model)
    found = done.module.eval()(X)
    assert type(found) is kind and found.scores.shape == (2, 5)
    assert done.report.proof_error is not None and done.report.after.parameters < done.report.before.parameters
    assert "namedtuple" in str(done.to_source().source)


def test_results_that_nobody_can_look_into_are_refused() -> None:
    with pytest.raises(CaptureError, match="the network returns Unknown: results are tensors, tuples, lists, dicts or"):
        halved(Returns(Unknown))


class TakesADataclass(Small):
    def forward(self, given: Both) -> Tensor:
        return self.scores(self.features(given.scores))


def test_arguments_in_dataclasses() -> None:
    done = halved(TakesADataclass(), Both(X))
    assert done.module.eval()(Both(X)).shape == (2, 5)
