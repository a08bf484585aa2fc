"""Element-wise operators: elements that meet are removed together."""

from __future__ import annotations

import torch

from fxprune.channels.context import Context
from fxprune.channels.layers import Labels
from fxprune.channels.records import Call
from fxprune.channels.rules.table import rule, tensors_in


@rule(
    "pointwise",  # whatever PyTorch tags as such; below, element-wise operators that miss the tag
    "_prelu_kernel",
    "_to_copy",
    "bernoulli",
    "complex",
    "clone",
    "copy",
    "fill",
    "hardswish",
    "hardtanh",
    "lift_fresh_copy",
    "log_sigmoid_forward",
    "masked_fill",
    "native_dropout",
    "nan_to_num",
    "rrelu_with_noise",
    "rrelu_with_noise_functional",
    "uniform",
    "normal",
    "zero",
)
def pointwise(ctx: Context, call: Call) -> None:
    """All operands meet element by element; a size-1 dimension imposes nothing."""
    operands = [ctx.of(tensor) for tensor in tensors_in(call.arguments.values())]
    labels = operands[0]
    for other in operands[1:]:
        same = labels.shape == other.shape
        shape = labels.shape if same else torch.broadcast_shapes(labels.shape, other.shape)
        labels = Labels(tuple(shape), ctx.unify(labels, other))
    for result in call.results():
        if tuple(result.shape) == labels.shape:
            ctx.label(result, labels.layers, common_source(operands))


def common_source(operands: list[Labels]) -> str | None:
    """The parameter that a value was computed from, when nothing but parameters and scalars went into it."""
    wide = [one for one in operands if one.ndim > 0]
    if not wide or any(one.source is None for one in wide):
        return None
    return max(wide, key=lambda one: (one.ndim, sum(size > 1 for size in one.shape))).source


@rule("glu")
def gated_linear_unit(ctx: Context, call: Call) -> None:
    """One half gates the other: the halves lose the same positions."""
    tensor = call.tensor("self")
    dim = call.arguments["dim"] % tensor.ndim
    half = tensor.shape[dim] // 2
    labels = ctx.of(tensor)
    layers = []
    for layer in labels.layers:
        if layer.shape[dim] == 1:
            layers.append(layer)
            continue
        first, second = layer.narrow(dim, 0, half), layer.narrow(dim, half, half)
        ctx.tie(first, second)
        layers.append(first)
    ctx.label(call.result, layers)
