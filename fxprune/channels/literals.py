"""Numbers in the source that a width is hidden in: found by comparing dense and cut shapes, and patched.

Each patcher owns one family of calls. It sees what every argument was in the dense network, what it will be now, and the shape that
the labels demand of the result. A call that nobody owns keeps the dense value of every plain number it is given (a scale computed
from a width must not change); if its shape is then wrong, `verify` names it and it is frozen.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.channels.context import Claim
from fxprune.channels.cut import Cut
from fxprune.channels.engine import Seen
from fxprune.channels.layers import Labels

_aten = torch.ops.aten


@dataclass
class Patcher:
    """One graph on its way from dense to cut. `now` holds the value of each node that has been passed."""

    module: fx.GraphModule
    mode: str
    cut: Cut
    seen: Mapping[tuple[str, str], Seen]
    claims: Mapping[str, Sequence[Claim]]
    now: dict[str, Any] = field(default_factory=dict)

    def run(self, graph: fx.Graph) -> None:
        for node in list(graph.nodes):
            self._patch(node)
            self.now[node.name] = self._value_now(node)

    # -- what was and what is -----------------------------------------------------------------------------------------

    def before(self, value: Any) -> Any:
        """An argument's dense value: labels for tensors, the value itself for everything else."""
        return fx.map_arg(value, lambda node: self.seen[self.mode, node.name].value)

    def after(self, value: Any) -> Any:
        """An argument's value now: a meta tensor of the cut shape for tensors."""
        return fx.map_arg(value, lambda node: self.now[node.name])

    def wanted(self, node: fx.Node) -> Any:
        """The result the labels demand: cut shapes in place of tensors."""
        return _map_labels(self.cut.shape, self.seen[self.mode, node.name].value)

    def _value_now(self, node: fx.Node) -> Any:
        value = self.seen[self.mode, node.name].value
        if node.op in ("placeholder", "output") or any(isinstance(leaf, Labels) for leaf in _leaves(value)):
            return _map_labels(lambda labels: torch.empty(self.cut.shape(labels), device="meta"), value)
        if node.op in ("call_function", "call_method") and not _constant(node):
            return self._evaluate(node)
        return value

    def _evaluate(self, node: fx.Node) -> Any:
        """Sizes and arithmetic on them, computed anew."""
        args, kwargs = self.after(node.args), self.after(dict(node.kwargs))
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    # -- patching -----------------------------------------------------------------------------------------------------

    def _patch(self, node: fx.Node) -> None:
        if node.op == "call_module":
            self._patch_module(node)
            return
        if node.op not in ("call_function", "call_method"):
            return
        if not any(isinstance(leaf, Labels) for leaf in _leaves(self.seen[self.mode, node.name].value)):
            return
        patcher = _OWNERS.get(node.target)
        if patcher is None:
            self._pin_numbers(node)
        else:
            patcher(self, node)

    def _pin_numbers(self, node: fx.Node) -> None:
        """A width that is used as a number (a divisor, a scale) keeps its dense value."""

        def pin(argument: fx.Node) -> Any:
            then, now = self.seen[self.mode, argument.name].value, self.now[argument.name]
            return then if isinstance(then, int | float) and then != now else argument

        node.args = fx.map_arg(node.args, pin)
        node.kwargs = fx.map_arg(dict(node.kwargs), pin)

    def _patch_module(self, node: fx.Node) -> None:
        leaf = self.module.get_submodule(str(node.target))
        for claim in self.claims.get(node.name, ()):
            if claim.kind == "groups":
                leaf.groups = self._rows_left(claim)
            elif claim.kind == "num_groups":
                leaf.num_groups = self._rows_left(claim)
            elif claim.kind == "pad":
                leaf.padding = _replaced(leaf.padding, claim.detail, self._alive(claim))
        if isinstance(leaf, nn.GroupNorm):
            leaf.num_channels = self.wanted(node)[1]
        elif isinstance(leaf, nn.LayerNorm | nn.RMSNorm):
            leaf.normalized_shape = tuple(self.wanted(node)[-len(leaf.normalized_shape) :])
        elif isinstance(leaf, nn.Unflatten) and isinstance(leaf.dim, int):
            start = leaf.dim % len(self.wanted(node))
            wanted = self.wanted(node)[start : start + len(leaf.unflattened_size)]
            leaf.unflattened_size = tuple(_sizes_like(self, leaf.unflattened_size, wanted))

    def _rows_left(self, claim: Claim) -> int:
        return int(self.cut.mask(claim.layer).any(dim=1).sum())

    def _alive(self, claim: Claim) -> int:
        return int(self.cut.mask(claim.layer).sum())

    def claimed(self, node: fx.Node, kind: str) -> Iterator[Claim]:
        return (claim for claim in self.claims.get(node.name, ()) if claim.kind == kind)


def _leaves(value: Any) -> list[Any]:
    return pytree.tree_leaves(value, is_leaf=lambda one: isinstance(one, Labels))


def _map_labels(function: Callable[[Labels], Any], value: Any) -> Any:
    return pytree.tree_map_only(Labels, function, value, is_leaf=lambda one: isinstance(one, Labels))


def _constant(node: fx.Node) -> bool:
    return not node.all_input_nodes


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, wherever the user wrote it."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def replace_argument(node: fx.Node, position: int, name: str, value: Any) -> None:
    if len(node.args) > position:
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def _replaced(values: Sequence[Any], position: int, value: Any) -> tuple[Any, ...]:
    return (*values[:position], value, *values[position + 1 :])


_OWNERS: dict[Any, Callable[[Patcher, fx.Node], None]] = {}


def _owns(*targets: Any) -> Callable[[Callable[[Patcher, fx.Node], None]], Callable[[Patcher, fx.Node], None]]:
    def register(function: Callable[[Patcher, fx.Node], None]) -> Callable[[Patcher, fx.Node], None]:
        _OWNERS.update(dict.fromkeys(targets, function))
        return function

    return register


def _sizes_like(patcher: Patcher, sizes: Sequence[Any], wanted: Sequence[int]) -> list[Any]:
    """Each size as it was written, unless it is a number that has become wrong."""
    return [
        size if patcher.after(size) in (-1, want) else want for size, want in zip(sizes, wanted, strict=True)
    ]


@_owns("view", "reshape", "expand", torch.reshape, torch.broadcast_to, "broadcast_to", _aten.view.default, _aten.reshape.default)
@_owns(_aten.expand.default, _aten._unsafe_view.default)
def _view(patcher: Patcher, node: fx.Node) -> None:
    """x.view(2, 8, -1), x.view(shape), torch.reshape(x, shape)"""
    wanted = patcher.wanted(node)
    if len(node.args) == 1:
        name = next(iter(node.kwargs))
        node.update_kwarg(name, _one_or_many(patcher, node.kwargs[name], wanted))
    elif len(node.args) == 2 and not isinstance(patcher.after(node.args[1]), int):
        node.update_arg(1, _one_or_many(patcher, node.args[1], wanted))
    else:
        node.args = (node.args[0], *_sizes_like(patcher, node.args[1:], wanted))


def _one_or_many(patcher: Patcher, sizes: Any, wanted: Sequence[int]) -> Any:
    if isinstance(sizes, fx.Node):  # a whole torch.Size
        return sizes if tuple(patcher.after(sizes)) == tuple(wanted) else tuple(wanted)
    return type(sizes)(_sizes_like(patcher, list(sizes), wanted))


@_owns("unflatten", torch.unflatten, _aten.unflatten.int)
def _unflatten(patcher: Patcher, node: fx.Node) -> None:
    sizes = argument(node, 2, "sizes")
    wanted = patcher.wanted(node)
    start = argument(node, 1, "dim") % (len(wanted) - len(sizes) + 1)
    wanted = wanted[start : start + len(sizes)]
    replace_argument(node, 2, "sizes", tuple(_sizes_like(patcher, sizes, wanted)))


@_owns(torch.zeros, torch.ones, torch.empty, torch.rand, torch.randn)
def _made(patcher: Patcher, node: fx.Node) -> None:
    """torch.zeros(2, 8), torch.zeros((2, 8)), torch.zeros(size=...)"""
    wanted = patcher.wanted(node)
    if "size" in node.kwargs:
        node.update_kwarg("size", _one_or_many(patcher, node.kwargs["size"], wanted))
    elif not isinstance(patcher.after(node.args[0]), int):
        node.update_arg(0, _one_or_many(patcher, node.args[0], wanted))
    else:
        node.args = tuple(_sizes_like(patcher, node.args, wanted))


@_owns(torch.full, _aten.full.default, _aten.zeros.default, _aten.ones.default, _aten.empty.memory_format)
def _full(patcher: Patcher, node: fx.Node) -> None:
    replace_argument(node, 0, "size", _one_or_many(patcher, argument(node, 0, "size"), patcher.wanted(node)))


@_owns("new_full", _aten.new_full.default, _aten.new_zeros.default, _aten.new_ones.default, _aten.new_empty.default)
def _new_full(patcher: Patcher, node: fx.Node) -> None:
    replace_argument(node, 1, "size", _one_or_many(patcher, argument(node, 1, "size"), patcher.wanted(node)))


@_owns("new_zeros", "new_ones", "new_empty")
def _new(patcher: Patcher, node: fx.Node) -> None:
    _view(patcher, node)


@_owns("split", "chunk", "tensor_split", "split_with_sizes", torch.split, torch.chunk, torch.tensor_split, torch.functional.split)
def _split(patcher: Patcher, node: fx.Node) -> None:
    """Equal pieces stay as they were written as long as they are equal; otherwise the sizes are listed."""
    dim = argument(node, 2, "dim", 0)
    pieces = [shape[dim] for shape in patcher.wanted(node)]
    if [piece.shape[dim] for piece in _attempt(patcher, node)] == pieces:
        return
    source = node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensor"))
    node.target = "split" if node.op == "call_method" else torch.split
    even = all(piece == pieces[0] for piece in pieces[:-1]) and pieces[-1] <= pieces[0]
    node.args = (source, pieces[0] if even else pieces, dim)
    node.kwargs = {}


@_owns(_aten.split.Tensor, _aten.split_with_sizes.default, _aten.chunk.default)
def _aten_split(patcher: Patcher, node: fx.Node) -> None:
    dim = argument(node, 2, "dim", 0)
    node.target = _aten.split_with_sizes.default
    node.args = (node.args[0], [shape[dim] for shape in patcher.wanted(node)], dim)
    node.kwargs = {}


def _attempt(patcher: Patcher, node: fx.Node) -> list[Tensor]:
    try:
        return list(patcher._evaluate(node))
    except RuntimeError:
        return []


@_owns(operator.getitem)
def _getitem(patcher: Patcher, node: fx.Node) -> None:
    """x[:, 8:16], x[:, 3], x[..., ::2]: positions are counted among the survivors."""
    source = patcher.before(node.args[0])
    if not isinstance(source, Labels):
        return
    index = node.args[1]
    entries = list(index) if isinstance(index, list | tuple) else [index]
    if any(isinstance(patcher.before(entry), Labels) for entry in entries):
        return
    known = [patcher.before(entry) for entry in entries]
    spread = source.ndim - sum(entry is not None and entry is not Ellipsis for entry in known)
    dim = 0
    for position, entry in enumerate(entries):
        value = known[position]
        if value is None:
            continue
        if value is Ellipsis:
            dim += spread
            continue
        entries[position] = _recount_entry(patcher, source, dim, entry)
        dim += 1
    node.update_arg(1, tuple(entries) if isinstance(index, list | tuple) else entries[0])


def _recount_entry(patcher: Patcher, source: Labels, dim: int, entry: Any) -> Any:
    then, now = patcher.before(entry), patcher.after(entry)
    kept = patcher.cut.kept_along(source, dim)
    if not isinstance(then, slice):
        want = int(kept[:then].sum()) if then >= 0 else int(kept[:then].sum()) - int(kept.sum())
        return entry if now == want else want
    start, stop = (_recount(kept, bound) for bound in (then.start, then.stop))
    if (now.start, now.stop) == (start, stop):
        return entry
    return slice(start, stop, entry.step)


def _recount(kept: Tensor, bound: int | None) -> int | None:
    """A slice bound counted among the survivors; written from the end as before if it was."""
    if bound is None or bool(kept.all()):
        return bound
    if bound < 0:
        return int(kept[:bound].sum()) - int(kept.sum()) or None
    return int(kept[:bound].sum())


@_owns("narrow", torch.narrow, _aten.narrow.default)
def _narrow(patcher: Patcher, node: fx.Node) -> None:
    source, dim = patcher.before(node.args[0]), argument(node, 1, "dim")
    start = patcher.before(argument(node, 2, "start"))
    kept = patcher.cut.kept_along(source, dim)
    replace_argument(node, 2, "start", int(kept[:start].sum()) if start >= 0 else start)
    replace_argument(node, 3, "length", patcher.wanted(node)[dim])


@_owns(_aten.slice.Tensor)
def _aten_slice(patcher: Patcher, node: fx.Node) -> None:
    dim = argument(node, 1, "dim", 0)
    kept = patcher.cut.kept_along(patcher.before(node.args[0]), dim)
    for position, name in ((2, "start"), (3, "end")):
        bound = patcher.before(argument(node, position, name))
        if bound is not None and not bool(kept.all()):
            far = bound >= len(kept)
            replace_argument(node, position, name, bound if far else _recount(kept, bound))


@_owns("select", torch.select, _aten.select.int)
def _select(patcher: Patcher, node: fx.Node) -> None:
    dim, index = argument(node, 1, "dim"), argument(node, 2, "index")
    replace_argument(node, 2, "index", _recount_entry(patcher, patcher.before(node.args[0]), dim, index))


@_owns(F.pad, _aten.pad.default, _aten.constant_pad_nd.default, torch._C._nn.pad)
def _pad(patcher: Patcher, node: fx.Node) -> None:
    pad = argument(node, 1, "pad")
    for claim in patcher.claimed(node, "pad"):
        pad = _replaced(pad, claim.detail, patcher._alive(claim))
    replace_argument(node, 1, "pad", type(argument(node, 1, "pad"))(pad))


@_owns("roll", torch.roll, _aten.roll.default)
def _roll(patcher: Patcher, node: fx.Node) -> None:
    for claim in patcher.claimed(node, "roll"):
        position, _ = claim.detail
        shifts = argument(node, 1, "shifts")
        alive = patcher._alive(claim)
        replace_argument(node, 1, "shifts", alive if isinstance(shifts, int) else _replaced(shifts, position, alive))


@_owns(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
@_owns(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.conv_transpose2d.input)
@_owns(_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding)
def _conv(patcher: Patcher, node: fx.Node) -> None:
    for claim in patcher.claimed(node, "groups"):
        replace_argument(node, 6, "groups", patcher._rows_left(claim))


@_owns(F.group_norm, _aten.group_norm.default)
def _group_norm(patcher: Patcher, node: fx.Node) -> None:
    for claim in patcher.claimed(node, "num_groups"):
        replace_argument(node, 1, "num_groups", patcher._rows_left(claim))


@_owns(F.layer_norm, F.rms_norm, _aten.layer_norm.default, _aten.rms_norm.default)
def _layer_norm(patcher: Patcher, node: fx.Node) -> None:
    shape = argument(node, 1, "normalized_shape")
    count = len(patcher.after(shape))
    replace_argument(node, 1, "normalized_shape", _one_or_many(patcher, shape, patcher.wanted(node)[-count:]))


@_owns(F.scaled_dot_product_attention, _aten.scaled_dot_product_attention.default)
def _attention(patcher: Patcher, node: fx.Node) -> None:
    """The default scale is 1/sqrt(width of a head) of the dense network: write it down once heads get narrower."""
    query = patcher.before(node.args[0] if node.args else node.kwargs["query"])
    if node.kwargs.get("scale") is None and patcher.cut.shape(query)[-1] != query.shape[-1]:
        node.update_kwarg("scale", 1 / math.sqrt(query.shape[-1]))
