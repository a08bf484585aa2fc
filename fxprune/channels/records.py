"""What rules read and what they leave behind, one small record each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fxprune.channels.layers import Labels


@dataclass(frozen=True)
class CallKey:
    """Names one ATen call: the n-th call of an operator that a node of a graph issued."""

    mode: str
    node: str
    operator: str
    nth: int


@dataclass(frozen=True)
class Contraction:
    """Operand `operand` of the call is summed over; removed entries of `layer` must count as zero in a dense
    reference.
    """

    key: CallKey
    operand: int
    layer: Tensor


@dataclass(frozen=True)
class Normalisation:
    """The call computes a statistic over channels of its first tensor.

    outputs  labels of its outputs, in order; None for one that keeps its size
    first    dimension of that tensor that dimension 0 of each further tensor lies along; None where these stay whole.
             Their own labels are not asked: the proof must not trust them
    """

    key: CallKey
    tensor: Labels
    outputs: tuple[Labels | None, ...]
    first: int | None = None


@dataclass(frozen=True)
class Claim:
    """A number in the source that a width is hidden in. `layer` holds the atoms from which the new value follows.

    kind: "groups" (rows of conv groups), "num_groups" (rows of norm groups), "pad" (amount, one layer a side),
    "roll" (the atoms rolled over), "index" (a constant index tensor to be renumbered)
    """

    kind: str
    mode: str
    node: str
    layer: Tensor
    detail: Any = None


@dataclass(frozen=True)
class Producer:
    """A weight whose output channels can be cut: the weight operand of a convolution or a matrix product."""

    weight: str
    outputs: Tensor  # one atom an output channel
    kind: str  # "conv", "depthwise" or "linear"
    mode: str
    node: str


@dataclass(frozen=True)
class Scale:
    """A normalisation that multiplies each channel by an entry of `weight` and adds one of `bias`, if it has one."""

    weight: str
    bias: str | None
    mode: str
    node: str


@dataclass(frozen=True)
class Call:
    """One ATen call as rules see it: arguments by schema name and as they came, and the result on the meta device."""

    arguments: Mapping[str, Any]
    rest: tuple[tuple[Any, ...], Mapping[str, Any]]  # all arguments but the first
    result: Any
    function: Any
    stride: tuple[int, ...] = ()  # of the first argument before the call

    def tensor(self, name: str) -> Tensor:
        found: Tensor = self.arguments[name]
        return found

    def optional(self, name: str) -> Tensor | None:
        found: Tensor | None = self.arguments.get(name)
        return found

    def dims(self, name: str, ndim: int) -> list[int]:
        """An argument that names dimensions, as a list of non-negative numbers; None means all."""
        dims = self.arguments.get(name)
        if dims is None or dims == []:
            return list(range(ndim))
        dims = [dims] if isinstance(dims, int) else dims
        return [dim % max(ndim, 1) for dim in dims]

    def results(self) -> list[Tensor]:
        """All tensors of the result, in order."""
        found = self.result if isinstance(self.result, list | tuple) else [self.result]
        return [one for one in found if isinstance(one, torch.Tensor)]
