"""Known calls of leaf modules: exactly what running them would issue, and no answer where anything is unusual."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.channels.engine import analyse
from fxprune.channels.shortcuts import known_call, known_function

X1, X2, X3 = (torch.empty(2, 8, *[9] * dims, device="meta") for dims in (1, 2, 3))
VECTOR = torch.empty(2, 8, device="meta")
USUAL = [
    (nn.Conv1d(8, 4, 3, stride=2), X1),
    (nn.Conv2d(8, 4, (3, 1), (2, 1), (1, 0), bias=False), X2),
    (nn.Conv2d(8, 16, 3, dilation=2, groups=4), X2),
    (nn.Conv2d(8, 8, 3, groups=8, padding=1), X2),
    (nn.Conv3d(8, 2, 2), X3),
    (nn.BatchNorm1d(8), VECTOR),
    (nn.BatchNorm1d(8, affine=False), X1),
    (nn.BatchNorm2d(8, eps=1e-3, momentum=None), X2),
    (nn.BatchNorm3d(8), X3),
    *((kind(inplace=flag), X2) for kind in (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish) for flag in (False, True)),
    (nn.Hardsigmoid(), X2),
    (nn.Sigmoid(), X2),
    (nn.Tanh(), VECTOR),
    (nn.AdaptiveAvgPool2d(1), X2),
]
UNUSUAL = [
    (nn.Conv2d(8, 4, 3, padding="same"), X2),
    (nn.Conv2d(8, 4, 3, padding=1, padding_mode="circular"), X2),
    (nn.Conv2d(8, 4, 3), X2[0]),
    (nn.Conv2d(8, 4, 11), X2),
    (nn.Conv2d(6, 4, 3), X2),
    (nn.Conv2d(8, 4, 3), X2.permute(0, 1, 3, 2)[..., ::2]),
    (nn.Conv2d(8, 4, 3), X2.double()),
    (nn.BatchNorm2d(8, track_running_stats=False), X2),
    (nn.BatchNorm2d(8), X1),
    (nn.BatchNorm2d(6), X2),
    (nn.ReLU(), torch.empty(2, 8, dtype=torch.int64, device="meta")),
    (nn.Linear(8, 4), VECTOR),
    (nn.AdaptiveAvgPool2d(3), X2),
]


class Recorder(TorchDispatchMode):
    """Keeps the calls of operators that compute something."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is not torch.ops.aten.empty.memory_format:
            self.calls.append((func, args))
        return result


def form(value: Any) -> Any:
    """Tensors as shape, type and layout."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype, value.stride()
    return [form(one) for one in value] if isinstance(value, list | tuple) else value


@pytest.mark.parametrize(("module", "x"), USUAL, ids=str)
def test_the_answer_is_what_running_would_issue(module: nn.Module, x: Tensor) -> None:
    module = module.to("meta").eval()
    known = known_call(module, x)
    assert known is not None
    with torch.no_grad(), Recorder() as recorder:
        value = module(x)
    [(function, args)] = recorder.calls
    assert known.function is function
    assert form(known.args) == form(args)
    assert [one is x or one is None for one in known.args[:3]] == [one is x or one is None for one in args[:3]]
    assert form(known.value) == form(value) and (known.value is x) == (value is x)


@pytest.mark.parametrize(("module", "x"), UNUSUAL, ids=str)
def test_no_answer_where_anything_is_unusual(module: nn.Module, x: Tensor) -> None:
    assert known_call(module.to("meta").eval(), x) is None


def test_no_answer_for_what_somebody_has_changed() -> None:
    class Doubled(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    patched = nn.ReLU()
    patched.forward = lambda x: x * 2  # type: ignore[method-assign,misc]
    assert known_call(Doubled(), X2) is None
    assert known_call(patched, X2) is None
    assert known_call(nn.BatchNorm2d(8).to("meta").train(), X2) is None


def test_an_analysis_is_the_same_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from fxprune.capture.module import capture
    from fxprune.zoo import build

    program = capture(build("mobilenet10"), torch.empty(2, 3, 32, 32, device="meta"))
    found = analyse(program)
    monkeypatch.setattr("fxprune.channels.engine.known_call", lambda module, x: None)
    run = analyse(program)
    assert found.flops == run.flops > 0
    assert found.atoms.sites == run.atoms.sites and found.atoms.axes == run.atoms.axes
    for ours, theirs in zip(found.atoms.ties, run.atoms.ties, strict=True):
        assert ours[2] == theirs[2] and torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])


@pytest.mark.parametrize("function", [operator.add, operator.mul, torch.add, torch.mul, operator.iadd, operator.imul])
@pytest.mark.parametrize("right", [X2, torch.empty(2, 8, 1, 1, device="meta")], ids=["alike", "broadcast"])
def test_sums_and_products_of_two_tensors(function: Any, right: Tensor) -> None:
    left = torch.empty_like(X2)
    known = known_function(function, left, right)
    assert known is not None
    with torch.no_grad(), Recorder() as recorder:
        value = function(left, right)
    [(issued, args)] = recorder.calls
    assert known.function is issued and known.args[0] is args[0] and known.args[1] is args[1]
    assert form(known.value) == form(value) and (known.value is left) == (value is left)


@pytest.mark.parametrize(
    ("function", "right"),
    [
        (operator.add, X2.double()),
        (operator.add, X1),
        (operator.add, 2.0),
        (operator.sub, X2),
        (operator.add, torch.empty(3, 8, 9, 9, device="meta")),
    ],
    ids=["types", "dimensions", "a number", "not known", "sizes"],
)
def test_no_answer_for_other_sums(function: Any, right: Any) -> None:
    assert known_function(function, X2, right) is None


def test_no_answer_for_a_write_that_would_grow() -> None:
    assert known_function(operator.iadd, torch.empty(2, 8, 1, 1, device="meta"), X2) is None
