"""torch.autograd.Function in a forward: gradients of the compiled network, and what is said where they are others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_network import Small, X, halved
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import _SingleLevelFunction
from torch.utils.checkpoint import checkpoint

import fxprune


class Swish(Function):
    """To save memory, as EfficientNets have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * x.sigmoid() * (1 + x * (1 - x.sigmoid()))


class Scale(Function):
    """The newer form, whose context is set up elsewhere."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor) -> Tensor:
        return x * weight.view(1, -1, 1, 1)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        return grads[0] * weight.view(1, -1, 1, 1), (grads[0] * x).sum((0, 2, 3))


class Sign(Function):
    """A straight-through estimator: its backward is no derivative of its forward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Net(Small):
    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.middle, self.gain = middle, nn.Parameter(torch.rand(12) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.middle(self, self.features(x)))


def swish(_: Any, x: Tensor) -> Tensor:
    return Swish.apply(x)  # type: ignore[no-any-return]


def scale(net: Any, x: Tensor) -> Tensor:
    return Scale.apply(x, net.gain)  # type: ignore[no-any-return]


def again(_: Any, x: Tensor) -> Tensor:
    found: Tensor = checkpoint(torch.tanh, x, use_reentrant=True)
    return found


def sign(_: Any, x: Tensor) -> Tensor:
    return Sign.apply(x)  # type: ignore[no-any-return]


def gradients(network: nn.Module) -> dict[str, Tensor]:
    network.zero_grad()
    network.train()(X).square().sum().backward()
    return {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("middle", [swish, scale, again])
def test_gradients_flow_through(middle: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Net(middle)
    done = fxprune.compile(model, X, keep_rate=1.0, keep_weights=True)
    assert done.report.front_end == "fx" and not any("gradients" in note for note in done.report.notes)
    expected, found = gradients(model), gradients(done.module)
    assert expected.keys() == found.keys()
    for name, one in expected.items():
        torch.testing.assert_close(found[name], one, msg=name)
    assert Function.apply.__func__.__module__ == "torch.autograd.function"  # as it was


def test_another_backward_is_told() -> None:
    torch.manual_seed(0)
    done = fxprune.compile(Net(sign), X, keep_rate=1.0, keep_weights=True)
    (note,) = [note for note in done.report.notes if "gradients" in note]
    assert "gradients of Sign are those of its forward" in note


def test_channels_go_through_a_function() -> None:
    torch.manual_seed(0)
    done = halved(Net(scale))
    assert done.recipe.kept["gain"][0] == done.recipe.kept["conv2.weight"][0]
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9


swish = Swish.apply  # as at the top of many a file: what is patched later does not reach it


class CallsABoundApply(Small):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.conv2(swish(self.conv1(x))).mean((2, 3)))
        return found


def test_gradients_flow_through_an_apply_that_was_bound_before() -> None:
    module = halved(CallsABoundApply()).module.train()
    module(X).sum().backward()
    assert all(one.grad is not None for one in module.parameters())
    assert "apply" not in vars(_SingleLevelFunction)
