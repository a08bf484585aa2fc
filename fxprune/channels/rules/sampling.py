"""Pooling, resizing and spatial padding: they mix pixels, never channels."""

from __future__ import annotations

import re

from torch import Tensor

from fxprune.channels.context import Context
from fxprune.channels.layers import Labels, along, varying
from fxprune.channels.records import Call
from fxprune.channels.rules.table import rule


@rule(
    *(f"avg_pool{n}d" for n in (1, 2, 3)),
    *(f"adaptive_avg_pool{n}d" for n in (1, 2, 3)),
    *(f"_adaptive_avg_pool{n}d" for n in (2, 3)),
    *(f"adaptive_max_pool{n}d" for n in (1, 2, 3)),
    *(f"max_pool{n}d" for n in (1, 2, 3)),
    *(f"max_pool{n}d_with_indices" for n in (1, 2, 3)),
    *(f"reflection_pad{n}d" for n in (1, 2, 3)),
    *(f"replication_pad{n}d" for n in (1, 2, 3)),
    *(f"upsample_nearest{n}d" for n in (1, 2, 3)),
    *(f"_upsample_nearest_exact{n}d" for n in (1, 2, 3)),
    "upsample_linear1d",
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "upsample_trilinear3d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)
def sampled(ctx: Context, call: Call) -> None:
    """Labels along pixels merge, unless each is a window of its own; labels along channels stay."""
    tensor = call.tensor("self") if "self" in call.arguments else call.tensor("input")
    digits = re.search(r"(\d)d", call.function._schema.name)
    assert digits is not None
    rank = int(digits[1])
    mixed = {tensor.ndim - rank + n for n in range(rank) if not _one_by_one(call, tensor, n - rank)}
    labels = ctx.fold_all(ctx.of(tensor), mixed)
    for result in call.results():
        ctx.label(result, labels.layers)


def _one_by_one(call: Call, tensor: Tensor, dim: int) -> bool:
    """Whether pooling leaves this dimension, counted from the end, as it is: channels may lie there after a permute."""
    if "adaptive" in call.function._schema.name:
        return bool(call.results()[0].shape[dim] == tensor.shape[dim])
    if "kernel_size" not in call.arguments:
        return False
    window = call.arguments["kernel_size"]
    step, padding = call.arguments.get("stride") or window, call.arguments.get("padding", 0)
    return (_at(window, dim), _at(step, dim), _at(padding, dim)) == (1, 1, 0)


def _at(sizes: int | list[int], dim: int) -> int:
    """One number stands for all dimensions."""
    return sizes if isinstance(sizes, int) else sizes[dim] if len(sizes) > 1 else sizes[0]


@rule("grid_sampler_2d", "grid_sampler_3d")
def grid_sampled(ctx: Context, call: Call) -> None:
    """Pixels are picked at places that the grid computes; channels stay what they are. Heads of deformable attention
    lie along the batch of both, and meet there.
    """
    tensor, grid = call.tensor("input"), call.tensor("grid")
    labels = ctx.fold_all(ctx.of(tensor), range(2, tensor.ndim))
    batch = []
    for layer in ctx.of(grid).layers:
        if 0 in varying(layer):
            batch.append(ctx.fold(layer, varying(layer) - {0}).reshape([-1] + [1] * (tensor.ndim - 1)))
        else:
            ctx.freeze(layer, "places to sample at")
    across = Labels((grid.shape[0],) + (1,) * (tensor.ndim - 1), tuple(batch))
    ctx.label(call.result, ctx.unify(labels, across))


@rule("im2col")
def windows(ctx: Context, call: Call) -> None:
    """Each channel becomes one row for each place in the window: (N, C, H, W) -> (N, C*k*k, L)."""
    tensor = call.tensor("self")
    labels = ctx.fold_all(ctx.of(tensor), {tensor.ndim - 2, tensor.ndim - 1})
    channel = tensor.ndim - 3
    places = call.result.shape[channel] // tensor.shape[channel]
    layers = []
    for layer in labels.layers:
        flat = layer.squeeze(-1)
        layers.append(flat.repeat_interleave(places, dim=channel) if channel in varying(layer) else flat)
    ctx.label(call.result, layers)


@rule("col2im")
def windows_back(ctx: Context, call: Call) -> None:
    """The rows of all places in the window add up to one channel: (N, C*k*k, L) -> (N, C, H, W)."""
    tensor = call.tensor("self")
    labels = ctx.fold_all(ctx.of(tensor), {tensor.ndim - 1})
    channel = tensor.ndim - 2
    places = tensor.shape[channel] // call.result.shape[channel]
    layers = []
    for layer in labels.layers:
        if channel in varying(layer):
            blocks = ctx.fold(layer, varying(layer) - {channel}).reshape(-1, places)
            ctx.tie(blocks[:, :1], blocks)
            layer = along(blocks[:, 0], channel, tensor.ndim)
        layers.append(layer.unsqueeze(-1))
    ctx.label(call.result, layers)


@rule("max_unpool2d", "max_unpool3d")
def unpooled(ctx: Context, call: Call) -> None:
    """Each channel is laid out anew at places of its own."""
    tensor = call.tensor("self")
    pixels = range(tensor.ndim - (3 if "3d" in call.function._schema.name else 2), tensor.ndim)
    values, places = (ctx.fold_all(ctx.of(call.tensor(name)), pixels) for name in ("self", "indices"))
    ctx.label(call.result, ctx.unify(values, places))
