"""Numbers that are sizes: of views, of constants, of pieces, of normalised shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxprune.channels.literals import Patcher, argument, owns, replace_argument, sizes_like

_aten = torch.ops.aten


@owns(
    "view",
    "reshape",
    "expand",
    torch.reshape,
    torch.broadcast_to,
    "broadcast_to",
    _aten.view.default,
    _aten.reshape.default,
)
@owns(_aten.expand.default, _aten.broadcast_to.default, _aten._unsafe_view.default)
def _view(patcher: Patcher, node: fx.Node) -> None:
    """x.view(2, 8, -1), x.view(shape), torch.reshape(x, shape)"""
    if any(isinstance(value, torch.dtype) for value in (*node.args, *node.kwargs.values())):
        return  # x.view(torch.int32) reads the same sizes differently
    wanted = patcher.wanted(node)
    if len(node.args) == 1:
        name = next(name for name in ("size", "shape") if name in node.kwargs)
        node.update_kwarg(name, _one_or_many(patcher, node.kwargs[name], wanted))
    elif len(node.args) == 2 and not isinstance(patcher.after(node.args[1]), int):
        node.update_arg(1, _one_or_many(patcher, node.args[1], wanted))
    else:
        node.args = (node.args[0], *sizes_like(patcher, node.args[1:], wanted))


def _one_or_many(patcher: Patcher, sizes: Any, wanted: Sequence[int]) -> Any:
    if isinstance(sizes, fx.Node):  # a whole torch.Size
        return sizes if tuple(patcher.after(sizes)) == tuple(wanted) else tuple(wanted)
    return type(sizes)(sizes_like(patcher, list(sizes), wanted))


@owns("repeat", _aten.repeat.default)
def _repeat(patcher: Patcher, node: fx.Node) -> None:
    """x.repeat(1, 8, 1, 1): how often is a width only where one channel is copied."""
    wanted = patcher.wanted(node)
    before = (1,) * (len(wanted) - patcher.before(node.args[0]).ndim) + patcher.before(node.args[0]).shape
    spread = len(node.args) > 2 or isinstance(patcher.after(node.args[1]), int)
    counts: Any = node.args[1:] if spread else node.args[1]
    if isinstance(counts, fx.Node):
        counts = patcher.before(counts)
    times = [
        count if size > 1 or patcher.after(count) == want else want
        for count, size, want in zip(counts, before, wanted, strict=True)
    ]
    node.args = (node.args[0], *times) if spread else (node.args[0], times)


@owns("unflatten", torch.unflatten, _aten.unflatten.int)
def _unflatten(patcher: Patcher, node: fx.Node) -> None:
    sizes = argument(node, 2, "sizes")
    wanted = patcher.wanted(node)
    start = argument(node, 1, "dim") % (len(wanted) - len(sizes) + 1)
    wanted = wanted[start : start + len(sizes)]
    replace_argument(node, 2, "sizes", tuple(sizes_like(patcher, sizes, wanted)))


@owns(torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)
def _made(patcher: Patcher, node: fx.Node) -> None:
    """torch.zeros(2, 8), torch.zeros((2, 8)), torch.zeros(size=...)"""
    wanted = patcher.wanted(node)
    if "size" in node.kwargs:
        node.update_kwarg("size", _one_or_many(patcher, node.kwargs["size"], wanted))
    elif not isinstance(patcher.after(node.args[0]), int):
        node.update_arg(0, _one_or_many(patcher, node.args[0], wanted))
    else:
        node.args = tuple(sizes_like(patcher, node.args, wanted))


@owns(torch.full, _aten.full.default, _aten.zeros.default, _aten.ones.default, _aten.empty.memory_format)
def _full(patcher: Patcher, node: fx.Node) -> None:
    replace_argument(node, 0, "size", _one_or_many(patcher, argument(node, 0, "size"), patcher.wanted(node)))


@owns("new_full", _aten.new_full.default, _aten.new_zeros.default, _aten.new_ones.default, _aten.new_empty.default)
def _new_full(patcher: Patcher, node: fx.Node) -> None:
    replace_argument(node, 1, "size", _one_or_many(patcher, argument(node, 1, "size"), patcher.wanted(node)))


@owns("new_zeros", "new_ones", "new_empty")
def _new(patcher: Patcher, node: fx.Node) -> None:
    _view(patcher, node)


# Splits with the dimension in their name; of tensors with at least that many.
_ALONG: dict[Any, int] = {"vsplit": 0, "hsplit": 1, "dsplit": 2, torch.vsplit: 0, torch.hsplit: 1, torch.dsplit: 2}


@owns(
    "split",
    "chunk",
    "tensor_split",
    "split_with_sizes",
    torch.split,
    torch.chunk,
    torch.tensor_split,
    *_ALONG,
    torch.functional.split,
)
def _split(patcher: Patcher, node: fx.Node) -> None:
    """Equal pieces stay as they were written as long as they are equal; otherwise the sizes are listed."""
    dim = _ALONG.get(node.target, argument(node, 2, "dim", 0))
    pieces = [shape[dim] for shape in patcher.wanted(node)]
    if [piece.shape[dim] for piece in _attempt(patcher, node)] == pieces:
        return
    source = node.args[0]
    node.target = "split" if node.op == "call_method" else torch.split
    even = all(piece == pieces[0] for piece in pieces[:-1]) and 0 < pieces[-1] <= pieces[0]
    node.args = (source, pieces[0] if even else pieces, dim)
    node.kwargs = {}


@owns(_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default)
def _aten_split(patcher: Patcher, node: fx.Node) -> None:
    dim = argument(node, 2, "dim", 0)
    node.target = _aten.split_with_sizes.default
    node.args = (node.args[0], [shape[dim] for shape in patcher.wanted(node)], dim)
    node.kwargs = {}


def _attempt(patcher: Patcher, node: fx.Node) -> list[Tensor]:
    try:
        return list(patcher.evaluate(node))
    except RuntimeError:
        return []


@owns(F.layer_norm, F.rms_norm, _aten.layer_norm.default, _aten.rms_norm.default)
def _layer_norm(patcher: Patcher, node: fx.Node) -> None:
    shape = argument(node, 1, "normalized_shape")
    count = len(patcher.after(shape))
    replace_argument(node, 1, "normalized_shape", _one_or_many(patcher, shape, patcher.wanted(node)[-count:]))


@owns("repeat_interleave", torch.repeat_interleave, _aten.repeat_interleave.self_int)
def _repeat_interleave(patcher: Patcher, node: fx.Node) -> None:
    """x.repeat_interleave(2, dim=1, output_size=16): copies of what stays may go, and the length can be given too."""
    repeats, dim = argument(node, 1, "repeats"), argument(node, 2, "dim", None)
    if dim is None:
        return
    size, wanted = patcher.after(node.args[0]).shape[dim], patcher.wanted(node)[dim]
    if isinstance(patcher.after(repeats), int) and wanted % size == 0 and patcher.after(repeats) != wanted // size:
        replace_argument(node, 1, "repeats", wanted // size)
    if node.kwargs.get("output_size") is not None:
        node.update_kwarg("output_size", wanted)


@owns(F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)
@owns(_aten.adaptive_avg_pool1d.default, _aten.adaptive_avg_pool2d.default, _aten.adaptive_avg_pool3d.default)
def _adaptive_pool(patcher: Patcher, node: fx.Node) -> None:
    """A size that the network's code names where a dimension with channels in it is not pooled."""
    sizes, wanted = argument(node, 1, "output_size"), patcher.wanted(node)
    before = patcher.before(node).shape
    if isinstance(sizes, list | tuple) and tuple(before) != tuple(wanted):
        there = wanted[-len(sizes) :]
        pairs = zip(sizes, there, strict=True)
        written = [size if size is None or patcher.after(size) == want else want for size, want in pairs]
        replace_argument(node, 1, "output_size", type(sizes)(written))
