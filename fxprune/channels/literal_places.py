"""Numbers that are places or amounts along channels: slices, indices, pads, shifts, group counts; a default scale."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from fxprune.channels.layers import Labels
from fxprune.channels.literals import Patcher, argument, owns, replace_argument, replaced

_aten = torch.ops.aten


@owns(operator.getitem)
def _getitem(patcher: Patcher, node: fx.Node) -> None:
    """x[:, 8:16], x[:, 3], x[..., ::2]: positions are counted among the survivors."""
    source = patcher.before(node.args[0])
    if not isinstance(source, Labels):
        return
    index = node.args[1]
    entries = list(index) if isinstance(index, list | tuple) else [index]
    if any(isinstance(patcher.before(entry), Labels | list | tuple | bool) for entry in entries):
        return  # indexing by a tensor or a list has frozen what it picks from
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


@owns("narrow", torch.narrow, _aten.narrow.default)
def _narrow(patcher: Patcher, node: fx.Node) -> None:
    source, dim = patcher.before(node.args[0]), argument(node, 1, "dim")
    start = patcher.before(argument(node, 2, "start"))
    kept = patcher.cut.kept_along(source, dim)
    replace_argument(node, 2, "start", int(kept[:start].sum()) if start >= 0 else start)
    replace_argument(node, 3, "length", patcher.wanted(node)[dim])


@owns(_aten.slice.Tensor)
def _aten_slice(patcher: Patcher, node: fx.Node) -> None:
    dim = argument(node, 1, "dim", 0)
    kept = patcher.cut.kept_along(patcher.before(node.args[0]), dim)
    for position, name in ((2, "start"), (3, "end")):
        bound = patcher.before(argument(node, position, name))
        if bound is not None and not bool(kept.all()):
            far = bound >= len(kept)
            replace_argument(node, position, name, bound if far else _recount(kept, bound))


@owns("select", torch.select, _aten.select.int)
def _select(patcher: Patcher, node: fx.Node) -> None:
    dim, index = argument(node, 1, "dim"), argument(node, 2, "index")
    replace_argument(node, 2, "index", _recount_entry(patcher, patcher.before(node.args[0]), dim, index))


@owns(F.pad, _aten.pad.default, _aten.constant_pad_nd.default, torch._C._nn.pad)
def _pad(patcher: Patcher, node: fx.Node) -> None:
    pad = argument(node, 1, "pad")
    for claim in patcher.claimed(node, "pad"):
        pad = replaced(pad, claim.detail, patcher.alive(claim))
    replace_argument(node, 1, "pad", type(argument(node, 1, "pad"))(pad))


@owns("roll", torch.roll, _aten.roll.default)
def _roll(patcher: Patcher, node: fx.Node) -> None:
    for claim in patcher.claimed(node, "roll"):
        position, _ = claim.detail
        shifts = argument(node, 1, "shifts")
        alive = patcher.alive(claim)
        replace_argument(node, 1, "shifts", alive if isinstance(shifts, int) else replaced(shifts, position, alive))


@owns(F.conv1d, F.conv2d, F.conv3d, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
@owns(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default)
@owns(_aten.conv_transpose1d.default, _aten.conv_transpose2d.input, _aten.conv_transpose3d.input)
@owns(_aten.conv1d.padding, _aten.conv2d.padding, _aten.conv3d.padding)
def _conv(patcher: Patcher, node: fx.Node) -> None:
    for claim in patcher.claimed(node, "groups"):
        replace_argument(node, 6, "groups", patcher.rows_left(claim))


@owns(F.group_norm, _aten.group_norm.default)
def _group_norm(patcher: Patcher, node: fx.Node) -> None:
    for claim in patcher.claimed(node, "num_groups"):
        replace_argument(node, 1, "num_groups", patcher.rows_left(claim))


@owns(F.scaled_dot_product_attention, _aten.scaled_dot_product_attention.default)
def _attention(patcher: Patcher, node: fx.Node) -> None:
    """The default scale is 1/sqrt(width of a head) of the dense network: write it down once heads get narrower."""
    query = patcher.before(node.args[0])
    if node.kwargs.get("scale") is None and patcher.cut.shape(query)[-1] != query.shape[-1]:
        node.update_kwarg("scale", 1 / math.sqrt(query.shape[-1]))
