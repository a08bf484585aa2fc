"""Matrix products: the summed dimension is tied, the outer dimensions are carried on.

Scaled dot product attention needs no rule of its own: on the meta device PyTorch issues the products it consists of,
so that q and k lose the same positions and the output carries v.
"""

from __future__ import annotations

from torch import Tensor

from fxprune.channels.context import Context
from fxprune.channels.layers import Labels, drop_dim, insert_dims, varying
from fxprune.channels.records import Call
from fxprune.channels.rules.table import rule

_BATCH, _ROW, _SUM, _COLUMN = range(4)  # the common index space of both operands


@rule("mm")
def matrix_product(ctx: Context, call: Call) -> None:
    layers = _product(ctx, ctx.of(call.tensor("self")), ctx.of(call.tensor("mat2")), 0)
    ctx.label(call.result, layers)


@rule("bmm")
def batched_product(ctx: Context, call: Call) -> None:
    ctx.label(call.result, _product(ctx, ctx.of(call.tensor("self")), ctx.of(call.tensor("mat2")), 0))


@rule("addmm")
def product_and_bias(ctx: Context, call: Call) -> None:
    layers = _product(ctx, ctx.of(call.tensor("mat1")), ctx.of(call.tensor("mat2")), 1)
    product = Labels(tuple(call.result.shape), tuple(layers))
    ctx.label(call.result, ctx.unify(product, ctx.of(call.tensor("self"))))


@rule("baddbmm")
def batched_product_and_bias(ctx: Context, call: Call) -> None:
    layers = _product(ctx, ctx.of(call.tensor("batch1")), ctx.of(call.tensor("batch2")), 1)
    product = Labels(tuple(call.result.shape), tuple(layers))
    ctx.label(call.result, ctx.unify(product, ctx.of(call.tensor("self"))))


@rule("mv")
def product_with_vector(ctx: Context, call: Call) -> None:
    ctx.label(call.result, _times_vector(ctx, call, "self", 0))


@rule("addmv")
def product_with_vector_and_bias(ctx: Context, call: Call) -> None:
    product = Labels(tuple(call.result.shape), tuple(_times_vector(ctx, call, "mat", 1)))
    ctx.label(call.result, ctx.unify(product, ctx.of(call.tensor("self"))))


def _times_vector(ctx: Context, call: Call, matrix: str, operand: int) -> list[Tensor]:
    """The vector as a matrix of one column. What is gone counts as zero in the matrix, so the vector is no weight."""
    column = insert_dims(ctx.of(call.tensor("vec")), [1])
    column = Labels(column.shape, column.layers)
    return [layer.squeeze(1) for layer in _product(ctx, ctx.of(call.tensor(matrix)), column, operand)]


@rule("dot", "vdot")
def inner_product(ctx: Context, call: Call) -> None:
    other = call.tensor("other" if "other" in call.arguments else "tensor")
    for layer in ctx.unify(ctx.of(call.tensor("self")), ctx.of(other)):
        ctx.contracted(0, layer)
    ctx.label(call.result, ())


def _product(ctx: Context, left: Labels, right: Labels, operand: int) -> list[Tensor]:
    """Layers of left @ right. `operand` is the argument position of `left`; `right` follows it."""
    batched = left.ndim == 3
    weight = right if right.source and not left.source else left if left.source and not right.source else None
    left_wide = insert_dims(left, [_COLUMN] if batched else [_BATCH, _COLUMN])
    right_wide = insert_dims(right, [_ROW] if batched else [_BATCH, _ROW])
    left_wide, right_wide = _fold_summed(ctx, left_wide), _fold_summed(ctx, right_wide)
    met = ctx.unify(left_wide, right_wide)
    if weight is right:
        _note_contraction(ctx, right_wide, operand + 1, _ROW, batched)
        _note_producer(ctx, right, right_wide, _COLUMN)
    else:
        _note_contraction(ctx, left_wide, operand, _COLUMN, batched)
        if weight is left:
            _note_producer(ctx, left, left_wide, _ROW)
    outer = [layer.squeeze(_SUM) for layer in met if _SUM not in varying(layer)]
    return outer if batched else [layer.squeeze(_BATCH) for layer in outer]


def _fold_summed(ctx: Context, labels: Labels) -> Labels:
    """A summed position must be the same in every row and batch entry."""
    layers = [ctx.fold(layer, varying(layer) - {_SUM}) if _SUM in varying(layer) else layer for layer in labels.layers]
    return Labels(labels.shape, tuple(layers), labels.source)


def _note_contraction(ctx: Context, labels: Labels, operand: int, absent: int, batched: bool) -> None:
    own = drop_dim(labels, absent)
    own = own if batched else drop_dim(own, 0)
    summed = labels.layers_along({_SUM})
    for wide, layer in zip(labels.layers, own.layers, strict=True):
        if any(wide is one for one in summed):
            ctx.contracted(operand, layer)


def _note_producer(ctx: Context, weight: Labels, wide: Labels, outer: int) -> None:
    for layer in wide.layers_along({outer})[:1]:
        ctx.produces(weight.source, layer, "linear")
