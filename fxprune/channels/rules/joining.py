"""Concatenation, stacking and padding."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from fxprune.channels.context import Context
from fxprune.channels.layers import FIXED, Labels, varying
from fxprune.channels.records import Call
from fxprune.channels.rules.table import rule


@rule("cat")
def concatenated(ctx: Context, call: Call) -> None:
    """Labels along the joined dimension stand behind each other; all other dimensions meet pairwise."""
    parts = [tensor for tensor in call.arguments["tensors"] if tensor.numel() or tensor.ndim > 1]
    if not parts:
        ctx.label(call.result, ())
        return
    dim = call.arguments["dim"] % parts[0].ndim
    operands = [_one_layer_along(ctx, ctx.of(part), dim) for part in parts]
    across = reduce(lambda left, right: Labels(left.shape, ctx.unify(left, right)), _without(operands, dim)).layers
    ctx.label(call.result, [*_join(ctx, operands, dim), *across], _same_source(operands))


def _one_layer_along(ctx: Context, labels: Labels, dim: int) -> Labels:
    """Keep one layer along `dim`, which varies along nothing else; a second one would have no counterpart elsewhere."""
    found = labels.layers_along({dim})
    for layer in found[1:]:
        ctx.freeze(layer, "two kinds of channels share a concatenated dimension")
    others = tuple(layer for layer in labels.layers if dim not in varying(layer))
    own = tuple(ctx.fold(layer, varying(layer) - {dim}) for layer in found[:1])
    return Labels(labels.shape, own + others, labels.source)


def _without(operands: list[Labels], dim: int) -> list[Labels]:
    """The operands as they meet each other: everything but the joined dimension."""
    found = []
    for labels in operands:
        shape = tuple(1 if d == dim else size for d, size in enumerate(labels.shape))
        found.append(Labels(shape, tuple(layer for layer in labels.layers if dim not in varying(layer))))
    return found


def _join(ctx: Context, operands: list[Labels], dim: int) -> list[Tensor]:
    pieces = []
    for labels in operands:
        found = labels.layers_along({dim})
        blank = torch.full([size if d == dim else 1 for d, size in enumerate(labels.shape)], FIXED, device="cpu")
        pieces.append(found[0] if found else blank)
    bare = [bool((piece == FIXED).all()) for piece in pieces]
    if any(bare) and all(blank or ctx.atoms.made(piece) for blank, piece in zip(bare, pieces, strict=True)):
        for piece in pieces:
            ctx.freeze(piece, "a constant joined to what cannot be removed")
        return []
    return [torch.cat(pieces, dim)]


def _same_source(operands: list[Labels]) -> str | None:
    sources = {labels.source for labels in operands}
    return sources.pop() if len(sources) == 1 else None


@rule("stack")
def stacked(ctx: Context, call: Call) -> None:
    """All operands meet element by element; the new dimension carries nothing."""
    operands = [ctx.of(tensor) for tensor in call.arguments["tensors"]]
    dim = call.arguments["dim"] % (operands[0].ndim + 1)
    labels = reduce(lambda a, b: Labels(a.shape, ctx.unify(a, b)), operands)
    ctx.label(call.result, [layer.unsqueeze(dim) for layer in labels.layers])


@rule("constant_pad_nd")
def padded_with_constant(ctx: Context, call: Call) -> None:
    """Padding along channels makes constant channels with atoms of their own; elsewhere it changes no channel."""
    tensor, pad = call.tensor("self"), call.arguments["pad"]
    labels = ctx.of(tensor)
    for pair in range(len(pad) // 2):
        dim = tensor.ndim - 1 - pair
        labels = _pad_dim(ctx, labels, dim, pad[2 * pair], pad[2 * pair + 1], pair)
    ctx.label(call.result, labels.layers)


def _pad_dim(ctx: Context, labels: Labels, dim: int, before: int, after: int, pair: int) -> Labels:
    if before == after == 0:
        return labels
    shape = tuple(size + before + after if d == dim else size for d, size in enumerate(labels.shape))
    if before < 0 or after < 0:
        return Labels(shape, ctx.fold_all(labels, {dim}).layers)
    layers = []
    for layer in labels.layers:
        if layer.shape[dim] == 1:
            layers.append(layer)
            continue
        others = varying(layer) - {dim}
        if min(others, default=dim) < dim:  # pixels of channels, as behind a shuffle: the channels stay apart
            layer = ctx.fold(layer, {dim})
            layers.append(layer)
            continue
        layer = ctx.fold(layer, others)
        left, right = (_fresh_along(ctx, count, dim, layer.ndim) for count in (before, after))
        ctx.claim("pad", left, 2 * pair)
        ctx.claim("pad", right, 2 * pair + 1)
        layers.append(torch.cat([left, layer, right], dim))
    return Labels(shape, tuple(layers))


def _fresh_along(ctx: Context, count: int, dim: int, ndim: int) -> Tensor:
    atoms = ctx.atoms.fresh(f"{ctx.mode}:{ctx.node}", dim, count, "made")
    return atoms.reshape([count if d == dim else 1 for d in range(ndim)])
