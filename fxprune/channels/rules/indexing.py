"""Indexing with tensors. A constant index along channels can be renumbered; any other freezes what it picks from."""

from __future__ import annotations

import torch
from torch import Tensor

from fxprune.channels.context import Context
from fxprune.channels.layers import Labels, along, varying
from fxprune.channels.records import Call
from fxprune.channels.rules.moving import fold_wide
from fxprune.channels.rules.table import freeze_everything, rule


@rule("index_select")
def selected(ctx: Context, call: Call) -> None:
    tensor = call.tensor("self")
    _pick(ctx, call, tensor, call.arguments["dim"] % tensor.ndim, call.tensor("index"))


@rule("index")
def indexed(ctx: Context, call: Call) -> None:
    """x[:, idx] with one list of whole numbers is a selection; everything else freezes the indexed dimensions."""
    tensor, indices = call.tensor("self"), call.arguments["indices"]
    used = [(dim, index) for dim, index in enumerate(indices) if index is not None]
    if len(used) == 1 and used[0][1].ndim == 1 and not used[0][1].dtype.is_floating_point:
        _pick(ctx, call, tensor, used[0][0], used[0][1])
        return
    freeze_everything(ctx, call, "indexed by a tensor")


def _pick(ctx: Context, call: Call, tensor: Tensor, dim: int, index: Tensor) -> None:
    labels = fold_wide(ctx, ctx.of(tensor), dim)
    if not labels.layers_along({dim}):
        ctx.numbers_used.add(ctx.names.get(id(index), ""))
        ctx.freeze_all(ctx.of(index), "an index into something else than channels")
        ctx.label(call.result, labels.layers)
        return
    mask = ctx.mask(index)
    if mask is not None:
        _mask(ctx, call, labels, dim, index, mask)
        return
    values = ctx.values.get(ctx.names.get(id(index), ""))
    if values is None or values.dtype == torch.bool or values.device.type == "meta":
        for layer in labels.layers_along({dim}):
            ctx.freeze(layer, "indexed by a tensor that is not a constant")
        ctx.freeze_all(ctx.of(index), "an index")
        ctx.label(call.result, [layer for layer in labels.layers if dim not in varying(layer)])
        return
    values = values % tensor.shape[dim]
    layers = [layer if layer.shape[dim] == 1 else layer.index_select(dim, values) for layer in labels.layers]
    picked = next(layer for layer in layers if layer.shape[dim] > 1 or dim in varying(layer) or values.numel() == 1)
    for own in ctx.of(index).layers:
        ctx.tie(own, picked.reshape(-1))
    source = labels.layers_along({dim})[0].reshape(-1)
    for claim in ctx.claims:  # one buffer has one numbering: whatever it picks from loses the same positions
        if claim.kind == "index" and claim.detail == ctx.names[id(index)]:
            _same_positions(ctx, claim.layer, source)
    ctx.claim("index", source, ctx.names[id(index)])
    ctx.label(call.result, layers)


def _mask(ctx: Context, call: Call, labels: Labels, dim: int, index: Tensor, mask: Tensor) -> None:
    """A constant mask loses its own entries together with the channels that it passes or stops."""
    source = labels.layers_along({dim})[0]
    for own in ctx.of(index).layers:
        ctx.tie(own, source.reshape(-1))
    places = mask.nonzero()[:, 0]
    ctx.label(call.result, [one if one.shape[dim] == 1 else one.index_select(dim, places) for one in labels.layers])


def _same_positions(ctx: Context, one: Tensor, other: Tensor) -> None:
    if one.shape == other.shape:
        ctx.tie(one, other)
        return
    for layer in (one, other):
        ctx.freeze(layer, "one index is used on tensors of different widths")


@rule("embedding")
def embedded(ctx: Context, call: Call) -> None:
    """Rows are picked by number and stay; columns are channels."""
    weight, index = call.tensor("weight"), call.tensor("indices")
    ctx.freeze_all(ctx.of(index), "an index")
    labels = ctx.fold_all(ctx.of(weight), {0})
    rank = index.ndim + 1
    ctx.label(call.result, [along(layer.reshape(-1), rank - 1, rank) for layer in labels.layers])


@rule("gather")
def gathered(ctx: Context, call: Call) -> None:
    """Along `dim` any entry may be picked; along the others an entry of the index meets one of the tensor."""
    tensor, index = call.tensor("self"), call.tensor("index")
    dim = call.arguments["dim"] % max(tensor.ndim, 1)
    met = tuple(1 if d == dim else size for d, size in enumerate(tensor.shape))
    if tuple(1 if d == dim else size for d, size in enumerate(index.shape)) != met:
        freeze_everything(ctx, call, "indexed by a tensor")
        return
    labels = ctx.fold_all(ctx.of(tensor), {dim})
    ctx.label(call.result, ctx.unify(Labels(met, labels.layers), ctx.of(index)))
