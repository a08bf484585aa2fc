"""Convolution in any number of dimensions, plain, grouped, depthwise and transposed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from fxprune.channels.context import Context
from fxprune.channels.layers import Labels, along, varying
from fxprune.channels.records import Call, Normalisation
from fxprune.channels.rules.table import rule


@dataclass(frozen=True)
class Kernel:
    """A convolution's weight as two lists of channels.

    `rows` label dimension 0 (one atom each); `columns` label dimension 1 of all conv groups one after the other. A
    plain convolution reads columns and writes rows, a transposed one the other way round.
    """

    weight: Tensor
    groups: int
    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]
    source: str | None

    @property
    def row_count(self) -> int:
        return self.weight.shape[0]

    @property
    def column_count(self) -> int:
        return self.weight.shape[1] * self.groups


@rule("convolution", "_convolution", "mkldnn_convolution")
def convolution(ctx: Context, call: Call) -> None:
    """x.C with w.I, bias with w.O, the output carries w.O; pixels merge, unless the window is one pixel wide."""
    tensor, transposed = call.tensor("input"), call.arguments["transposed"]
    kernel = _kernel(ctx, call.tensor("weight"), call.arguments["groups"])
    passed = _passed_through(call, ctx.of(tensor)) + _slid_over(ctx, call, ctx.of(tensor))
    rest = [layer for layer in ctx.of(tensor).layers if all(layer is not one for one in passed)]
    x = _without_pixels(ctx, Labels(ctx.of(tensor).shape, tuple(rest)))
    if _is_depthwise(ctx, kernel):
        out = _whole_groups(ctx, x, kernel, transposed)
    else:
        out = _crossed(ctx, x, kernel, transposed)
    channels = kernel.column_count if transposed else kernel.row_count
    labels = Labels((tensor.shape[0], channels), tuple(out))
    bias = call.optional("bias")
    layers = labels.layers if bias is None else ctx.unify(labels, ctx.of(bias))
    _note_producer(ctx, kernel, layers)
    made = [layer.reshape(tuple(layer.shape) + (1,) * (tensor.ndim - 2)) for layer in layers]
    ctx.label(call.result, [*made, *passed])


def _passed_through(call: Call, labels: Labels) -> list[Tensor]:
    """Layers along a dimension of pixels of which each is computed by itself, as in a 1-D convolution over tokens."""
    weight, stride, padding = call.tensor("weight"), call.arguments["stride"], call.arguments["padding"]
    alone = set()
    for dim in range(2, weight.ndim):
        step, pad = (values[(dim - 2) % len(values)] for values in (stride, padding))
        if (weight.shape[dim], step, pad) == (1, 1, 0) and call.result.shape[dim] == labels.shape[dim]:
            alone.add(dim)
    return [layer for layer in labels.layers if len(varying(layer)) == 1 and varying(layer) <= alone]


def _slid_over(ctx: Context, call: Call, labels: Labels) -> list[Tensor]:
    """Layers over which a window of one channel slides and keeps their length, as in efficient channel attention
    (Wang et al., CVPR 2020). Each entry meets its neighbours: removal changes who they are.
    """
    weight, stride = call.tensor("weight"), call.arguments["stride"]
    if call.arguments["transposed"] or tuple(weight.shape[:2]) != (1, 1):
        return []
    dims = {dim for dim in range(2, weight.ndim) if stride[(dim - 2) % len(stride)] == 1 and weight.shape[dim] > 1}
    same = {dim for dim in dims if call.result.shape[dim] == labels.shape[dim]}
    layers = [layer for layer in labels.layers if len(varying(layer)) == 1 and varying(layer) <= same]
    layers = [layer for layer in layers if ctx.inexact(layer, "a convolution over channels")]
    if layers:
        assert ctx.key is not None
        ctx.normalisations.append(Normalisation(ctx.key, labels, (Labels(tuple(call.result.shape), tuple(layers)),)))
    return layers


def _is_depthwise(ctx: Context, kernel: Kernel) -> bool:
    """One channel a conv group on at least one side, so that a conv group can only go as a whole."""
    if kernel.groups == 1:
        return False
    narrow = not kernel.columns and 1 in (kernel.weight.shape[1], kernel.row_count // kernel.groups)
    return not ctx.reads("crossed", not narrow)


def _without_pixels(ctx: Context, labels: Labels) -> Labels:
    """Labels of (N, C) alone. A layer over batch and channels is the same for each image."""
    if any(max(varying(layer)) > 1 for layer in labels.layers):
        labels = ctx.fold_all(labels, range(2, labels.ndim))
    layers = []
    for layer in labels.layers:
        layer = layer.reshape(layer.shape[:2])
        layers.append(ctx.fold(layer, {0}) if varying(layer) == {0, 1} else layer)
    return Labels(labels.shape[:2], tuple(layers))


def _kernel(ctx: Context, weight: Tensor, groups: int) -> Kernel:
    known = ctx.kernels.get((id(weight), groups))
    if known is not None:
        return known
    name = ctx.untouched(weight)
    if name is not None:
        ctx.kernels[id(weight), groups] = _fresh(ctx, name, weight, groups)
        return ctx.kernels[id(weight), groups]
    labels = ctx.fold_all(ctx.of(weight), range(2, weight.ndim))
    rows, columns = [], []
    for layer in labels.layers:
        layer = layer.reshape(layer.shape[:2])
        if varying(layer) == {0}:
            rows.append(layer.reshape(-1))
        else:
            columns.append(_columns_of(ctx, layer, weight, groups))
    return Kernel(weight, groups, tuple(rows), tuple(columns), labels.source)


def _columns_of(ctx: Context, layer: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Atoms of dimension 1, one row a conv group; rows of the weight inside a conv group must agree."""
    blocks = layer.expand(weight.shape[:2]).reshape(groups, -1, weight.shape[1])
    first = blocks.narrow(1, 0, 1)
    if not bool((blocks == first).all()):
        ctx.tie(first, blocks)
    return first.reshape(-1)


def _fresh(ctx: Context, name: str, weight: Tensor, groups: int) -> Kernel:
    """First sight of a weight: atoms for rows and columns, none for places in the window. Each conv group reads
    channels of its own.
    """
    count, width = weight.shape[0], weight.shape[1]
    own_columns = ctx.reads("crossed", width > 1 and count // groups > 1) if groups > 1 else width > 1
    layers: list[Tensor] = []
    rows: tuple[Tensor, ...] = ()
    columns: tuple[Tensor, ...] = ()
    if count > 1:
        rows = (ctx.atoms.fresh(name, 0, count),)
        layers.append(along(rows[0], 0, weight.ndim))
    if own_columns:
        columns = (ctx.atoms.fresh(name, 1, width * groups),)
        layers.append(_joint(columns[0], weight, groups) if groups > 1 else along(columns[0], 1, weight.ndim))
    ctx.begin_with(weight, name, tuple(layers))
    return Kernel(weight, groups, rows, columns, name)


def _joint(columns: Tensor, weight: Tensor, groups: int) -> Tensor:
    """Columns of all conv groups as a layer over (rows, columns) of the weight."""
    count, width = weight.shape[0], weight.shape[1]
    spread = columns.reshape(groups, 1, width).expand(groups, count // groups, width)
    return spread.reshape(count, width, *[1] * (weight.ndim - 2))


def _whole_groups(ctx: Context, x: Labels, kernel: Kernel, transposed: bool) -> list[Tensor]:
    """One channel a conv group on one side (depthwise and its relatives): a conv group stays or goes as a whole."""
    outputs = kernel.column_count if transposed else kernel.row_count
    width = max(x.shape[1], outputs, kernel.row_count)
    rows = Labels((width,), tuple(_repeat(layer, width) for layer in kernel.rows))
    spread = [_repeat(layer, width, dim=1) for layer in x.layers]
    met = ctx.unify(Labels((x.shape[0], width), tuple(spread)), rows)
    blocks = [layer.reshape(kernel.groups, -1) for layer in met if varying(layer) == {1}]
    for block in blocks:
        ctx.tie(block[:, :1], block)
        ctx.claim("groups", block)
    return [_thin(layer, outputs) for layer in met]


def _repeat(layer: Tensor, width: int, dim: int = 0) -> Tensor:
    size = layer.shape[dim]
    return layer if size in (1, width) else layer.repeat_interleave(width // size, dim=dim)


def _thin(layer: Tensor, width: int) -> Tensor:
    size = layer.shape[1]
    return layer if size in (1, width) else layer[:, :: size // width]


def _crossed(ctx: Context, x: Labels, kernel: Kernel, transposed: bool) -> list[Tensor]:
    """Every output of a conv group sums over every input of it. Conv groups keep equally many channels each."""
    reads, writes = (kernel.rows, kernel.columns) if transposed else (kernel.columns, kernel.rows)
    read_count = kernel.row_count if transposed else kernel.column_count
    met = ctx.unify(x, Labels((read_count,), reads))
    for layer in reads:
        ctx.contracted(1, _on_weight(layer, kernel, rows=transposed))
    if kernel.groups > 1:
        for layer in (*reads, *writes):
            ctx.atoms.keep_balanced(layer.reshape(kernel.groups, -1), ctx.site())
    carried = [layer for layer in met if 1 not in varying(layer)]
    return carried + [layer.reshape(1, -1) for layer in writes]


def _on_weight(layer: Tensor, kernel: Kernel, rows: bool) -> Tensor:
    if rows:
        return along(layer, 0, kernel.weight.ndim)
    if kernel.groups == 1:
        return along(layer, 1, kernel.weight.ndim)
    return _joint(layer, kernel.weight, kernel.groups)


def _note_producer(ctx: Context, kernel: Kernel, layers: tuple[Tensor, ...]) -> None:
    kind = "depthwise" if kernel.groups > 1 and kernel.weight.shape[1] == 1 else "conv"
    for layer in layers:
        if varying(layer) == {1}:
            ctx.produces(kernel.source, layer, kind)
            return
