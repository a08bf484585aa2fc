"""Where a trace enters a network: forwards under decorators, and those that take any number of arguments."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_network import Small, X, halved
from torch import Tensor, nn

import fxprune
from fxprune.capture.entry import ENTRY, flat_arguments
from fxprune.capture.module import capture
from fxprune.errors import CaptureError
from fxprune.program import Inputs


def as_dict(forward: Callable[..., Any]) -> Callable[..., Any]:
    """As transformers wrap theirs."""

    @functools.wraps(forward)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        named = kwargs.pop("return_dict", True)
        found = forward(self, *args, **kwargs)
        return {"scores": found} if named else found

    return wrapper


class Decorated(Small):
    @as_dict
    def forward(self, pixels: Tensor, labels: Tensor | None = None, scale: Any = 1.0, **_: Any) -> Tensor:
        if pixels.shape[1] != 3:
            raise ValueError("three channels are expected")
        found = self.scores(self.features(pixels) * scale)
        return found if labels is None else found - labels


class TakesAnything(Small):
    """As ultralytics write theirs."""

    def forward(self, x: Any, /, *args: Any, mode: str = "plain", **kwargs: Any) -> Any:
        if isinstance(x, dict):
            return self.loss(x, *args, **kwargs)
        for one in args:
            x = x + one
        found = self.scores(self.features(x * math.sqrt(4.0)))
        return found * kwargs.get("gain", 1.0) if mode == "plain" else found.relu()

    def loss(self, *_: Any, **__: Any) -> Tensor:
        raise NotImplementedError


ONE = torch.full((2, 1), 3.0)


@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Decorated, Inputs((X,))),
        (Decorated, Inputs((), {"pixels": X, "scale": torch.tensor(2.0)})),
        (Decorated, Inputs((X, ONE), {"return_dict": False})),
        (TakesAnything, Inputs((X,))),
        (TakesAnything, Inputs((X, X, X), {"gain": ONE, "mode": "plain"})),
        (TakesAnything, Inputs((X,), {"mode": "cut"})),
    ],
    ids=range(6),
)
def test_the_arguments_of_the_example_are_those_of_the_compiled_network(
    make: Callable[[], nn.Module], inputs: Inputs
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    done = fxprune.compile(model, inputs, keep_rate=1.0, keep_weights=True)
    assert done.report.front_end == "fx" and done.program.dynamic_batch
    expected = model(*inputs.args, **inputs.kwargs)
    found = done.module.eval()(*inputs.args, **inputs.kwargs)
    assert type(found) is type(expected)
    torch.testing.assert_close(found, expected)
    assert not hasattr(type(model), ENTRY)


def test_half_of_it_goes() -> None:
    done = halved(Decorated(), X)
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    assert done.report.after.parameters < 0.6 * done.report.before.parameters
    assert done.to_source().difference == 0


def test_arguments_that_forward_does_not_take_are_refused() -> None:
    with pytest.raises(CaptureError, match="do not fit Decorated.forward"):
        capture(Decorated(), Inputs((X, X, X, X)))


def test_flat_arguments() -> None:
    """Those of *args are numbered, those of **kwargs go by their own names."""
    given = {"x": 1, "args": (2, 3), "kwargs": {"gain": 4}}
    assert flat_arguments(TakesAnything(), given) == {"x": 1, "args_0": 2, "args_1": 3, "gain": 4}
