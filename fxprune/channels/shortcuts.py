"""Leaves of a graph that make one ATen call which is known beforehand. The walk need not run them to learn it.

Convolutions, batch norms and activations are nine in ten leaves of a convolutional network, and the way of a call
through torch.nn.functional, the dispatcher and back costs more than its rule. Answered only where nothing can be
unusual; every other leaf is run.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.metarun import blank, met, plain_floats

_aten = torch.ops.aten


@dataclass(frozen=True)
class KnownCall:
    """An ATen call, what it returns on the meta device, and what the module makes of that."""

    function: Any
    args: tuple[Any, ...]
    result: Any
    value: Tensor


def known_call(module: nn.Module, x: Any) -> KnownCall | None:
    """The call that this leaf makes of its argument; None where it has to be run to find out."""
    answer = _ANSWERS.get(type(module))
    if answer is None or "forward" in vars(module) or not plain_floats(x):
        return None
    return answer(module, x)


def known_function(function: Any, left: Any, right: Any) -> KnownCall | None:
    """The call that a function makes of two tensors; None where it has to be run to find out."""
    name = _ARITHMETIC.get(function)
    shape = met(left, right) if name else None
    if name is None or shape is None or (name.endswith("_") and shape != left.shape):
        return None
    result = left if name.endswith("_") else blank(left, shape)
    return KnownCall(getattr(_aten, name).Tensor, (left, right), result, result)


def _convolution(module: Any, x: Tensor) -> KnownCall | None:
    weight, bias, padding, groups = module.weight, module.bias, module.padding, module.groups
    window = weight.shape[2:]
    usual = module.padding_mode == "zeros" and not isinstance(padding, str) and x.ndim == weight.ndim
    if not usual or x.dtype != weight.dtype or x.shape[1] != weight.shape[1] * groups or weight.shape[0] % groups:
        return None
    places = zip(x.shape[2:], window, module.stride, padding, module.dilation, strict=True)
    sizes = [(size + 2 * pad - gap * (reach - 1) - 1) // step + 1 for size, reach, step, pad, gap in places]
    if min(sizes) < 1 or (bias is not None and bias.shape != weight.shape[:1]):
        return None
    settings = [list(one) for one in (module.stride, padding, module.dilation)]
    result = blank(x, (x.shape[0], weight.shape[0], *sizes))
    args = (x, weight, bias, *settings, False, [0] * len(window), groups)
    return KnownCall(_aten.convolution.default, args, result, result)


def _batch_norm(module: Any, x: Tensor) -> KnownCall | None:
    mean, var = module.running_mean, module.running_var
    if module.training or mean is None or var is None or x.ndim not in _DIMS[type(module)]:
        return None
    vectors = (module.weight, module.bias, mean, var)
    if any(one is not None and (one.shape != x.shape[1:2] or one.dtype != x.dtype) for one in vectors):
        return None
    momentum = 0.0 if module.momentum is None else module.momentum
    result = blank(x, x.shape)
    nothing = blank(x, (0,))
    args = (x, *vectors, False, momentum, module.eps)
    return KnownCall(_aten.native_batch_norm.default, args, (result, nothing, nothing), result)


def _activation(name: str, *limits: float) -> Callable[[Any, Tensor], KnownCall]:
    pure, writing = getattr(_aten, name).default, getattr(_aten, f"{name}_").default

    def call(module: Any, x: Tensor) -> KnownCall:
        in_place = getattr(module, "inplace", False)
        result = x if in_place else blank(x, x.shape)
        return KnownCall(writing if in_place else pure, (x, *limits), result, result)

    return call


def _average(module: Any, x: Tensor) -> KnownCall | None:
    if x.ndim != 4 or module.output_size not in (1, (1, 1)):
        return None
    result = blank(x, (*x.shape[:2], 1, 1))
    return KnownCall(_aten.mean.dim, (x, [-1, -2], True), result, result)


_ARITHMETIC: dict[Any, str] = {
    **{operator.add: "add", operator.mul: "mul", torch.add: "add", torch.mul: "mul"},
    **{operator.iadd: "add_", operator.imul: "mul_"},
}
_DIMS = {nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,), nn.BatchNorm3d: (5,)}
_ANSWERS: dict[type[nn.Module], Callable[[Any, Tensor], KnownCall | None]] = {
    **dict.fromkeys((nn.Conv1d, nn.Conv2d, nn.Conv3d), _convolution),
    **dict.fromkeys(_DIMS, _batch_norm),
    nn.AdaptiveAvgPool2d: _average,
    nn.ReLU: _activation("relu"),
    nn.ReLU6: _activation("hardtanh", 0.0, 6.0),
    nn.SiLU: _activation("silu"),
    nn.Sigmoid: _activation("sigmoid"),
    nn.Tanh: _activation("tanh"),
    nn.Hardswish: _activation("hardswish"),
    nn.Hardsigmoid: _activation("hardsigmoid"),
}
