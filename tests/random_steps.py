"""The steps that random networks are made of: what each runs, which parts it owns, and what becomes of channels.

A value is a map (N, C, pixels...), tokens (N, L, C) or a vector (N, F). `run` gets the step's own part (a module,
parameter or buffer, or None), the values it reads and its numbers. `alive` says how channels of the result hang on
those of the values, for the oracle in `random_oracle.py`:

    "same"   the result has the channels of its operands, which must have lost the same ones
    "moved"  elements only move: the step itself, run on 1 for what stays and 0 for what goes, tells
    "made"   a weight makes new channels; the recipe says which of them stay
    "folded" parts of the channels meet each other, and must have lost the same ones
    "third"  the result has the channels of the third operand; the first two are summed over theirs
    "all"    the result has no channels that could go
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Operation:
    run: Callable[..., Any]
    alive: str
    part: Callable[..., Any] | None
    few: Callable[..., Any] | None  # what the result is over surviving channels only, where a weightless sum runs


OPERATIONS: dict[str, Operation] = {}


def operation(alive: str, part: Callable[..., Any] | None = None, few: Callable[..., Any] | None = None) -> Any:
    """Register the function below as what a step of its name runs."""

    def register(run: Callable[..., Any]) -> Callable[..., Any]:
        OPERATIONS[run.__name__.rstrip("_")] = Operation(run, alive, part, few)
        return run

    return register


def draw(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape) / max(1, torch.Size(shape[1:]).numel()) ** 0.5)


_CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_UPS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_INSTANCE = {1: nn.InstanceNorm1d, 2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


# -- weights ---------------------------------------------------------------------------------------------------------


def _conv(rank: int, inputs: int, outputs: int, size: int, stride: int, groups: int, bias: bool) -> nn.Module:
    return _CONVS[rank](inputs, outputs, size, stride, size // 2, groups=groups, bias=bias)


def _up(rank: int, inputs: int, outputs: int, size: int, groups: int) -> nn.Module:
    stride = 2 if size == 2 else 1
    return _UPS[rank](inputs, outputs, size, stride, (size - stride) // 2, groups=groups)


def _kernel(rank: int, inputs: int, outputs: int, groups: int) -> nn.Parameter:
    return draw(outputs, inputs // groups, *[3] * rank)


@operation("made", _conv)
def conv(part: nn.Module, x: Tensor, *_: Any) -> Tensor:
    return part(x)


@operation("made", _up)
def up(part: nn.Module, x: Tensor, *_: Any) -> Tensor:
    return part(x)


@operation("made", nn.Linear)
def linear(part: nn.Module, x: Tensor, *_: Any) -> Tensor:
    return part(x)


@operation("made", _kernel)
def function_conv(part: Tensor, x: Tensor, rank: int, inputs: int, outputs: int, groups: int) -> Tensor:
    return _FUNCTIONS[rank](x, part, None, 1, 1, 1, groups)


def _standardise(weight: Tensor) -> Tensor:
    dims = tuple(range(1, weight.ndim))
    return (weight - weight.mean(dims, keepdim=True)) / (weight.std(dims, keepdim=True) + 1e-5)


def _few_standardised(part: Tensor, alive: Tensor, x: Tensor, rank: int, inputs: int, outputs: int) -> Tensor:
    return _FUNCTIONS[rank](x[:, alive], _standardise(part[:, alive]), None, 1, 1)


@operation("made", lambda rank, inputs, outputs: draw(outputs, inputs, *[3] * rank), _few_standardised)
def standardised_conv(part: Tensor, x: Tensor, rank: int, inputs: int, outputs: int) -> Tensor:
    return _FUNCTIONS[rank](x, _standardise(part), None, 1, 1)


@operation("made", lambda inputs, outputs: draw(outputs, inputs))
def einsum(part: Tensor, x: Tensor, inputs: int, outputs: int) -> Tensor:
    return torch.einsum("bc...,oc->bo...", x, part)


@operation("made", lambda inputs, outputs: draw(inputs, outputs))
def matmul(part: Tensor, x: Tensor, inputs: int, outputs: int) -> Tensor:
    """Tokens or vectors times a matrix."""
    return torch.matmul(x, part)


# -- channel by channel ----------------------------------------------------------------------------------------------

_ACTIVATIONS: list[Callable[[Tensor], Tensor]] = [
    F.relu, F.silu, torch.sigmoid, torch.tanh, F.relu6, F.hardswish, F.gelu, lambda x: F.leaky_relu(x, 0.2),
    lambda x: x.clamp(-1, 2), lambda x: x * 0.5 + 1, lambda x: (x + x.abs()) / 2,
]  # fmt: skip
ACTIVATIONS = len(_ACTIVATIONS)


@operation("same")
def act(part: None, x: Tensor, which: int) -> Tensor:
    return _ACTIVATIONS[which](x)


@operation("same", lambda which: [nn.ReLU(inplace=True), nn.ReLU6(), nn.SiLU(inplace=True), nn.Dropout(0.2)][which])
def act_module(part: nn.Module, x: Tensor, *_: Any) -> Tensor:
    return part(x)


@operation("same", lambda rank, width: _NORMS[rank](width))
def norm(part: nn.Module, x: Tensor, *_: Any) -> Tensor:
    return part(x)


@operation("same", lambda rank, width, affine: _INSTANCE[rank](width, affine=affine))
def instance_norm(part: nn.Module, x: Tensor, *_: Any) -> Tensor:
    return part(x)


@operation("same", nn.PReLU)
def prelu(part: nn.Module, x: Tensor, *_: Any) -> Tensor:
    return part(x)


@operation("same", lambda width, rank: draw(width, *[1] * rank))
def layer_scale(part: Tensor, x: Tensor, *_: Any) -> Tensor:
    return x * part


@operation("same", lambda width, rank: torch.rand(width, *[1] * rank) + 0.5)
def buffer_scale(part: Tensor, x: Tensor, *_: Any) -> Tensor:
    return part * x + part


@operation("same")
def add(part: None, x: Tensor, y: Tensor) -> Tensor:
    return x + y


@operation("same")
def add_into(part: None, x: Tensor, y: Tensor) -> Tensor:
    x = x * 1.0
    x += y
    return x


@operation("same")
def mul(part: None, x: Tensor, y: Tensor) -> Tensor:
    return x * torch.sigmoid(y)


@operation("same")
def stack_sum(part: None, *values: Tensor) -> Tensor:
    return torch.stack(values, dim=1).sum(dim=1)


@operation("same")
def branches(part: None, x: Tensor, y: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Selective kernels: two branches, weighed against each other by a softmax."""
    weights = torch.softmax(torch.stack([left, right], 1), dim=1)
    return (torch.stack([x, y], 1) * weights).sum(1)


@operation("same")
def pool(part: None, x: Tensor, rank: int, which: int) -> Tensor:
    if which == 0:
        return _POOLS[rank](x, 2)
    if which == 1:
        return F.interpolate(x, scale_factor=2, mode="nearest")
    return x.mean(dim=tuple(range(2, 2 + rank)), keepdim=True)


import random_moves  # noqa: E402, F401  (imported for the steps it registers)
