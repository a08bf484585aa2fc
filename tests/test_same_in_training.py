"""What a compiled network does in training is what the user's does, and where it is not, a note says so."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from types import MethodType
from typing import Any

import pytest
import torch
from small_network import Small, X
from torch import Tensor, nn
from torch.autograd import Function

import fxprune
from fxprune.errors import CaptureError


class Sign(Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sign()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Scale(Function):
    """Asks which gradients are wanted, and whether it is watched."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, k: float) -> Tensor:
        y = x * k
        return y + 1 if ctx.needs_input_grad[1] or torch.is_grad_enabled() else y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * 2.0, None


class Noisy(Function):
    """Swish with chance in it; its backward is right."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x.sigmoid() + torch.rand_like(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] * x.sigmoid() * (1 + x * (1 - x.sigmoid()))


class OneWay(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.tanh()


class Net(Small):
    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.middle = middle
        self.register_buffer("run", torch.ones(12))
        self.register_buffer("steps", torch.zeros(()))
        self.register_buffer("alpha", torch.tensor(0.25))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.middle(self, self.features(x)))


def scaled(net: Any, x: Tensor) -> Tensor:
    return Scale.apply(x, 2.0) if net.training else x * 2.0  # type: ignore[no-any-return]


def averages(net: Any, x: Tensor) -> Tensor:
    if net.training:
        net.run.data = net.run.data * 0.5 + 0.5 * x.detach().mean((0, 2, 3))
    return x * net.run.view(1, -1, 1, 1)


def counts(net: Any, x: Tensor) -> Tensor:
    if net.training:
        net.steps += 1
    return x * (1 + net.steps / 10)


def quantised(_: Any, x: Tensor) -> Tensor:
    """Other numbers, and the gradients of x."""
    x.data = x.data.mul(4).round() / 4
    return x


def seen_through_a_view(net: Any, x: Tensor) -> Tensor:
    if net.training:
        part = x[:, :6]
        part.data = part.data * 3
    return x


def by_chance(_: Any, x: Tensor) -> Tensor:
    return x * torch.bernoulli(torch.ones(12, 1, 1) * 0.9)


def noisy(_: Any, x: Tensor) -> Tensor:
    return Noisy.apply(x)  # type: ignore[no-any-return]


def clamped(net: Any, x: Tensor) -> Tensor:
    """The assignment makes torch.export take over."""
    x = x.clone()
    x[x > 0.5] = 0.5
    return x * torch.tensor(0.1 if net.training else 1.0)


def trained(network: nn.Module) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
    network = copy.deepcopy(network).train()
    torch.manual_seed(3)
    output = network(X.clone())
    output.square().sum().backward()
    gradients = {name: one.grad for name, one in network.named_parameters() if one.grad is not None}
    return output.detach(), gradients, dict(network.named_buffers())


SAME = [scaled, averages, counts, quantised, seen_through_a_view, by_chance, noisy, clamped]


@pytest.mark.parametrize("middle", SAME)
def test_same_results_gradients_and_buffers(middle: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model = Net(middle)
    done = fxprune.compile(model, X, keep_rate=1.0, keep_weights=True)
    theirs, ours = trained(model), trained(done.module)
    torch.testing.assert_close(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for place in (1, 2):
        for name in theirs[place].keys() & ours[place].keys():
            torch.testing.assert_close(ours[place][name], theirs[place][name], msg=name)
    assert not any("gradients" in note or "in train mode" in note for note in done.report.notes)


def only_in_training(net: Any, x: Tensor) -> Tensor:
    return Sign.apply(x) if net.training else x  # type: ignore[no-any-return]


def in_both(_: Any, x: Tensor) -> Tensor:
    return Sign.apply(x)  # type: ignore[no-any-return]


def notes(middle: Callable[[Any, Tensor], Tensor], prepare: Callable[[nn.Module], Any] = id, **options: Any) -> str:
    torch.manual_seed(0)
    model = Net(middle)
    prepare(model)
    return " ".join(fxprune.compile(model, X, keep_rate=1.0, keep_weights=True, **options).report.notes)


def test_other_gradients_are_told_whenever_they_are_others() -> None:
    assert "gradients of Sign" in notes(in_both)
    assert "gradients of Sign" in notes(only_in_training)
    assert "gradients of Sign" in notes(in_both, lambda model: model.requires_grad_(False))
    assert "nobody has compared them" in notes(in_both, proof=False)


def test_a_function_that_nobody_can_train_through_is_no_obstacle() -> None:
    assert "gradients" not in notes(lambda _, x: OneWay.apply(x))  # type: ignore[no-any-return]


def test_numbers_that_only_training_reads_are_told() -> None:
    def reads(net: Any, x: Tensor) -> Tensor:
        x = x.clone()
        x[x > 0.5] = 0.5
        return x * net.alpha.item() if net.training else x

    assert "reads from alpha" in notes(reads)


def test_what_no_graph_can_hold_is_told() -> None:
    def frozen(net: Any, x: Tensor) -> Tensor:
        y = x.clone()
        y[y > 0.5] = 0.5
        with torch.no_grad():
            z = y * 2 if net.training else y * 3
        return y + z

    assert "torch.export cannot follow" in notes(frozen)


def test_a_count_that_decides_is_refused() -> None:
    def decides(net: Any, x: Tensor) -> Tensor:
        net.steps += 1
        return x * 2 if net.steps > 3 else x

    with pytest.raises(CaptureError, match="cannot be captured"):
        notes(decides)


def test_a_forward_of_the_instance_is_the_one_that_is_traced() -> None:
    model = Small()
    model.forward = MethodType(lambda self, x: self.scores(self.features(x)) * (2 if self.training else 3), model)  # type: ignore[method-assign]
    torch.manual_seed(0)
    done = fxprune.compile(model, X, keep_rate=1.0, keep_weights=True)
    assert done.report.front_end == "fx"
    torch.testing.assert_close(trained(done.module)[0], trained(model)[0])


def test_the_users_random_numbers_are_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    model = Net(noisy)
    torch.manual_seed(5)
    fxprune.compile(model, X, keep_rate=0.5)
    assert torch.equal(torch.rand(1), expected)


def test_threads_take_turns() -> None:
    """What tracing patches is put back as it was."""
    held = torch.rand, torch.is_tensor, vars(Function)["apply"], torch.get_default_dtype()
    faults: list[Exception] = []

    def work() -> None:
        try:
            fxprune.compile(Net(noisy), X, keep_rate=0.5)
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert not faults
    assert held == (torch.rand, torch.is_tensor, vars(Function)["apply"], torch.get_default_dtype())
    assert type(torch.rand(1)) is Tensor
