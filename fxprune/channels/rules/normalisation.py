"""Batch, layer and group normalisation."""

from __future__ import annotations

from torch import Tensor

from fxprune.channels.context import Context
from fxprune.channels.layers import Labels, along, pad_left, varying
from fxprune.channels.records import Call, Normalisation
from fxprune.channels.rules.table import rule


def _with_vectors(ctx: Context, labels: Labels, dim: int, vectors: list[Tensor | None]) -> Labels:
    """Tie dimension `dim` with per-channel vectors (affine parameters, running statistics)."""
    lane = labels.layers[0].reshape(-1) if [varying(layer) for layer in labels.layers] == [{dim}] else None
    site = ctx.site()
    for vector in vectors:
        if vector is None:
            continue
        own = ctx.of(vector)
        if lane is not None and len(own.layers) == 1 and own.layers[0].shape == lane.shape:
            ctx.atoms.tie(lane, own.layers[0], site)  # what `unify` would do
            continue
        shape = tuple(vector.shape[0] if d == dim else 1 for d in range(labels.ndim))
        laid = Labels(shape, tuple(along(layer, dim, labels.ndim) for layer in own.layers))
        labels = Labels(labels.shape, ctx.unify(labels, laid), labels.source)
    return labels


def _finish(ctx: Context, call: Call, labels: Labels) -> None:
    """Label the normalised tensor; the saved statistics behind it carry no channels that anything reads."""
    ctx.label(call.results()[0], labels.layers, labels.source)
    ctx.scales_with(call.optional("weight"), call.optional("bias"))


@rule(
    "native_batch_norm",
    "cudnn_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_functional",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
)
def batch_norm(ctx: Context, call: Call) -> None:
    """Each channel for itself: tie it with its parameters. Statistics of the batch run over everything else."""
    tensor = call.tensor("input")
    before = ctx.of(tensor)
    vectors = [call.optional(name) for name in ("weight", "bias", "running_mean", "running_var")]
    labels = _with_vectors(ctx, before, 1, vectors)
    batch_statistics = call.arguments.get("training", False) or call.optional("running_mean") is None
    others = [layer for layer in labels.layers if varying(layer) - {1}]
    if batch_statistics and others:
        labels = _averaged(ctx, call, before, labels, others, 1, "batch statistics over channels")
        _keep_two(ctx, labels, others, set(range(labels.ndim)) - {1})
    _finish(ctx, call, labels)


@rule("native_layer_norm", "_fused_rms_norm")
def layer_norm(ctx: Context, call: Call) -> None:
    """Mean and variance over the last dimensions: removal changes them."""
    before = ctx.of(call.tensor("input"))
    labels = before
    for name in ("weight", "bias"):
        vector = call.optional(name)
        if vector is not None:
            own = pad_left(ctx.of(vector), labels.ndim)
            labels = Labels(labels.shape, ctx.unify(labels, own), labels.source)
    first = labels.ndim - len(call.arguments["normalized_shape"])
    inside = [layer for layer in labels.layers if max(varying(layer)) >= first]
    if inside:
        labels = _averaged(ctx, call, before, labels, inside, first, "layer normalisation over channels")
        _keep_two(ctx, labels, inside, set(range(first, labels.ndim)))
    _finish(ctx, call, labels)


@rule("native_group_norm")
def group_norm(ctx: Context, call: Call) -> None:
    """One channel a group or whole groups: exact. Part of a group: its statistics change.

    With "freeze" whole groups go and `num_groups` follows; with "cut" every group loses equally many channels.
    """
    tensor, groups = call.tensor("input"), call.arguments["group"]
    before = ctx.of(tensor)
    before = Labels(before.shape, tuple(ctx.fold(layer, set(varying(layer)) - {1}) for layer in before.layers))
    labels = _with_vectors(ctx, before, 1, [call.optional("weight"), call.optional("bias")])
    width = tensor.shape[1] // groups
    for layer in labels.layers_along({1}):
        rows = layer.reshape(groups, width)
        if ctx.reads("whole groups", width == 1 or (ctx.approximate == "freeze" and groups > 1)):
            ctx.tie(rows[:, :1], rows)
            ctx.claim("num_groups", rows)
            continue
        labels = _averaged(ctx, call, before, labels, [layer], 1, "group normalisation over part of a group")
        ctx.atoms.keep_balanced(rows, ctx.site())
    _finish(ctx, call, labels)


def _averaged(
    ctx: Context, call: Call, before: Labels, after: Labels, layers: list[Tensor], first: int, reason: str
) -> Labels:
    """Flag layers whose removal changes a statistic, and note the call for the proof.

    first   dimension of the tensor that dimension 0 of the affine parameters belongs to
    """
    inexact = [ctx.inexact(layer, reason) for layer in layers]
    if any(inexact):
        assert ctx.key is not None
        ctx.normalisations.append(Normalisation(ctx.key, before, (after,), first))
    return after


def _keep_two(ctx: Context, labels: Labels, layers: list[Tensor], dims: set[int]) -> None:
    """A number that is normalised by itself is zero, whatever comes in. `dims` are those that are normalised over."""
    for layer in layers:
        alone = all(labels.shape[dim] == 1 for dim in dims - varying(layer))
        ctx.keep_at_least(layer, 2 if alone else 1)
