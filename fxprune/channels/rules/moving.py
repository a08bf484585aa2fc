"""Operators that only move elements: they are carried out on the labels themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fxprune.channels.context import Context
from fxprune.channels.layers import Labels, along, collapse, move, varying
from fxprune.channels.records import Call
from fxprune.channels.rules.table import rule

_OUTCOME = {"view": torch.reshape, "_unsafe_view": torch.reshape, "reshape": torch.reshape}


@rule(
    "_unsafe_view",
    "alias",
    "detach",
    "diagonal",
    "flip",
    "permute",
    "pixel_unshuffle",
    "reshape",
    "rot90",
    "squeeze",
    "t",
    "transpose",
    "unsqueeze",
    "view",
)
def moved(ctx: Context, call: Call) -> None:
    """Execute on each layer, collapse again."""
    labels = ctx.of(call.tensor("self"))
    ctx.label(call.result, move(labels, _runner(call)), labels.source)


@rule("expand", "repeat")
def expanded(ctx: Context, call: Call) -> None:
    """Copies of one channel are as good as constants: they have atoms of their own."""
    tensor, result = call.tensor("self"), call.result
    labels = ctx.of(tensor)
    ahead = result.ndim - tensor.ndim
    copies = []
    for dim, size in enumerate(tensor.shape):
        count = result.shape[ahead + dim]
        if size == 1 < count:
            atoms = ctx.atoms.fresh(f"{ctx.mode}:{ctx.node}", ahead + dim, count, "made")
            copies.append(along(atoms, ahead + dim, result.ndim))
    ctx.label(result, [*move(labels, _runner(call)), *copies], labels.source)


def _runner(call: Call) -> Callable[[Tensor], Any]:
    args, kwargs = call.rest
    name = call.function._schema.name.split("::")[1]
    if name in _OUTCOME:  # a layer's strides do not always allow a view
        return lambda layer: layer.reshape(call.result.shape)
    return lambda layer: call.function(layer, *args, **kwargs)


def fold_wide(ctx: Context, labels: Labels, dim: int) -> Labels:
    """Where a layer varies along `dim` and elsewhere too, what is cut along `dim` must look the same everywhere."""
    layers = [ctx.fold(layer, {dim}) if len(varying(layer)) > 1 else layer for layer in labels.layers]
    return Labels(labels.shape, tuple(layers), labels.source)


def _in_one_way(ctx: Context, labels: Labels, dim: int) -> Labels:
    """A tensor's joint layers are rectangles: along whichever dimension channels go in the end, the pieces are the same
    everywhere. The joint layers of a parameter need not be.
    """
    return fold_wide(ctx, labels, dim) if ctx.is_parameter(labels) else labels


@rule("select", "split", "split_with_sizes", "unbind", "unsafe_split", "unsafe_chunk", "unsafe_split_with_sizes")
def cut(ctx: Context, call: Call) -> None:
    """Take pieces along one dimension. A piece of one channel freezes that channel."""
    tensor = call.tensor("self")
    dim = call.arguments["dim"] % tensor.ndim
    labels = _in_one_way(ctx, ctx.of(tensor), dim)
    run = _runner(call)
    single = isinstance(call.result, Tensor)
    pieces: list[list[Tensor]] = [[] for _ in call.results()]
    for layer in labels.layers:
        found = run(layer.expand(labels.shape))
        for piece, part in zip(pieces, [found] if single else found, strict=True):
            piece.append(collapse(part))
    for result, piece in zip(call.results(), pieces, strict=True):
        ctx.label(result, piece, labels.source, piece=True)


@rule("slice")
def sliced(ctx: Context, call: Call) -> None:
    """A strided slice picks the same position of each run of `step` channels: such a run stays or goes as a whole."""
    tensor = call.tensor("self")
    dim = call.arguments["dim"] % tensor.ndim
    labels = ctx.of(tensor)
    if call.result.shape[dim] != tensor.shape[dim]:
        labels = _in_one_way(ctx, labels, dim)
        _tie_runs(ctx, labels, dim, call)
    ctx.label(call.result, move(labels, _runner(call)), labels.source, piece=True)


def _tie_runs(ctx: Context, labels: Labels, dim: int, call: Call) -> None:
    step = call.arguments["step"] or 1
    if step == 1:
        return
    size = labels.shape[dim]
    start, end, _ = slice(call.arguments["start"], call.arguments["end"]).indices(size)
    for layer in labels.layers_along({dim}):
        for offset in range(1, step):
            inside = layer.narrow(dim, start, end - start)
            heads, members = inside[_every(dim, 0, step)], inside[_every(dim, offset, step)]
            count = members.shape[dim]
            ctx.tie(heads.narrow(dim, 0, count), members)


def _every(dim: int, offset: int, step: int) -> tuple[slice, ...]:
    return (slice(None),) * dim + (slice(offset, None, step),)


@rule("as_strided")
def restrided(ctx: Context, call: Call) -> None:
    """Pooling restrides its result: only strides of size-1 dimensions change and nothing moves. Else: freeze."""
    tensor = call.tensor("self")
    labels = ctx.of(tensor)
    size, stride = call.arguments["size"], call.arguments["stride"]
    still = all(a == b for a, b, n in zip(stride, call.stride, size, strict=False) if n > 1)
    if list(labels.shape) != list(size) or not still or call.arguments.get("storage_offset"):
        ctx.freeze_all(labels, "as_strided reads memory in its own order")
        labels = Labels(tuple(size))
    ctx.label(call.result, labels.layers, labels.source)


@rule("roll")
def rolled(ctx: Context, call: Call) -> None:
    """Channels that wrap around are counted anew after a cut: the shift is patched."""
    tensor = call.tensor("self")
    labels = ctx.of(tensor)
    shifts, dims = call.arguments["shifts"], call.arguments["dims"]
    shifts = [shifts] if isinstance(shifts, int) else shifts
    dims = [dims] if isinstance(dims, int) else dims
    for position, (shift, dim) in enumerate(zip(shifts, dims or [], strict=False)):
        labels = fold_wide(ctx, labels, dim % tensor.ndim)
        for layer in labels.layers_along({dim % tensor.ndim}):
            size = layer.shape[dim % tensor.ndim]
            ctx.claim("roll", layer.reshape(-1)[size - shift % size :], (position, shift))
    if not dims:
        ctx.freeze_all(labels, "roll over all dimensions at once")
        labels = Labels(labels.shape)
    ctx.label(call.result, move(labels, _runner(call)))


@rule("unfold")
def unfolded(ctx: Context, call: Call) -> None:
    """Overlapping windows: fine along anything but channels."""
    tensor = call.tensor("self")
    dim = call.arguments["dimension"] % tensor.ndim
    labels = ctx.fold_all(ctx.of(tensor), {dim})
    ctx.label(call.result, move(labels, _runner(call)))


@rule("pixel_shuffle")
def pixel_shuffled(ctx: Context, call: Call) -> None:
    """r*r neighbouring channels become the pixels of one: they stay or go together."""
    factor = call.arguments["upscale_factor"]
    labels = _tie_blocks(ctx, ctx.of(call.tensor("self")), -3, lambda size: (size // factor**2, factor**2), 1)
    ctx.label(call.result, [ctx.fold(layer, {layer.ndim - 2, layer.ndim - 1}) for layer in move(labels, _runner(call))])


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffled(ctx: Context, call: Call) -> None:
    """The same positions must remain in each of the shuffled groups."""
    groups = call.arguments["groups"]
    labels = _tie_blocks(ctx, ctx.of(call.tensor("self")), 1, lambda size: (groups, size // groups), 0)
    ctx.label(call.result, move(labels, _runner(call)))


def _tie_blocks(ctx: Context, labels: Labels, dim: int, blocks: Callable[[int], tuple[int, int]], fold: int) -> Labels:
    """View the channels as rows x columns and tie along one of the two. Layers that vary elsewhere too are folded."""
    dim %= labels.ndim
    labels = fold_wide(ctx, labels, dim)
    for layer in labels.layers_along({dim}):
        matrix = layer.reshape(blocks(layer.shape[dim]))
        ctx.tie(matrix.narrow(fold, 0, 1), matrix)
    return labels
