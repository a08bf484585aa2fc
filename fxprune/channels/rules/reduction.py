"""Operators that reduce a dimension or rank along it."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from fxprune.channels.context import Context
from fxprune.channels.layers import Labels, varying
from fxprune.channels.records import Call, Normalisation
from fxprune.channels.rules.table import rule


def _dims(call: Call, ndim: int) -> list[int]:
    return call.dims("dim" if "dim" in call.arguments else "dims", ndim)


def _reduced(ctx: Context, labels: Labels, dims: list[int], gone: Callable[[Tensor], None]) -> list[Tensor]:
    """Layers that survive the reduction; `gone` hears of each layer that lies wholly inside the reduced dimensions."""
    kept = []
    for layer in labels.layers:
        if varying(layer) <= set(dims):
            gone(layer)
        else:
            kept.append(ctx.fold(layer, dims))
    return kept


def _shrink_to(layers: list[Tensor], dims: list[int], result: Tensor, ndim: int) -> list[Tensor]:
    if result.ndim == ndim:
        return layers
    return [layer.reshape([size for d, size in enumerate(layer.shape) if d not in dims]) for layer in layers]


def _reduce(ctx: Context, call: Call, gone: Callable[[Tensor], None]) -> None:
    tensor = call.tensor("self")
    dims = _dims(call, tensor.ndim)
    layers = _reduced(ctx, ctx.of(tensor), dims, gone)
    for result in call.results():
        ctx.label(result, _shrink_to(layers, dims, result, tensor.ndim), ctx.of(tensor).source)


@rule("sum", "linalg_vector_norm", "norm", "nansum")
def summed(ctx: Context, call: Call) -> None:
    """A channel that is gone adds nothing: exact. A norm of order 0 or below is no sum but a count or a minimum."""
    order = call.arguments.get("ord", call.arguments.get("p", 2))
    if order is not None and order <= 0:
        compared(ctx, call)
        return
    _reduce(ctx, call, lambda layer: ctx.contracted(0, layer))


@rule("mean", "var", "std", "var_mean", "std_mean")
def averaged(ctx: Context, call: Call) -> None:
    """An average over channels changes when some of them leave. A variance divides by their number less `correction`,
    and needs more than that.
    """
    _statistic(ctx, call, "a mean over channels")
    tensor, dims = call.tensor("self"), _dims(call, call.tensor("self").ndim)
    for layer in ctx.of(tensor).layers:
        if varying(layer) <= set(dims):
            others = math.prod(tensor.shape[dim] for dim in dims if dim not in varying(layer))
            ctx.keep_at_least(layer, (_correction(call) + others) // others)


def _correction(call: Call) -> int:
    """What is subtracted from the count: 1 unless the call says otherwise, and nothing for a mean."""
    if "correction" in call.arguments:
        given = call.arguments["correction"]
        return 1 if given is None else int(given)
    return int(call.arguments.get("unbiased", False))


@rule("amax", "amin", "max", "min")
def extreme(ctx: Context, call: Call) -> None:
    """So does the largest one (the spatial attention of CBAM, Woo et al., ECCV 2018)."""
    if "other" in call.arguments:  # max(a, b) is element-wise
        ctx.label(call.result, ctx.unify(ctx.of(call.tensor("self")), ctx.of(call.tensor("other"))))
        return
    _statistic(ctx, call, "the extreme one of all channels")


def _statistic(ctx: Context, call: Call, reason: str) -> None:
    before = ctx.of(call.tensor("self"))
    flagged = []

    def gone(layer: Tensor) -> None:
        if ctx.inexact(layer, reason):
            flagged.append(layer)

    _reduce(ctx, call, gone)
    if flagged:
        assert ctx.key is not None
        after = tuple(ctx.of(result) for result in call.results())
        ctx.normalisations.append(Normalisation(ctx.key, before, after))


@rule("argmax", "argmin", "prod", "logsumexp", "any", "all", "aminmax", "median", "mode")
def compared(ctx: Context, call: Call) -> None:
    """The result may hang on any of them: none can go."""
    _reduce(ctx, call, lambda layer: ctx.freeze(layer, "compared with each other"))


@rule("_softmax", "_log_softmax", "softmax", "log_softmax", "cumsum", "cumprod", "sort", "_safe_softmax", "topk")
def ranked(ctx: Context, call: Call) -> None:
    """Each entry depends on all others along the dimension: none can go; layers that vary elsewhere too are folded."""
    tensor = call.tensor("self")
    labels = ctx.fold_all(ctx.of(tensor), _dims(call, tensor.ndim))
    for result in call.results():
        ctx.label(result, labels.layers, labels.source)
