"""Do two graphs say the same? Decides whether one graph serves training and inference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import fx


def same_graph(left: fx.Graph, right: fx.Graph) -> bool:
    """Equal in everything that matters: operations, targets, literal arguments and how the nodes are wired."""
    return first_difference(left, right) is None


def first_difference(left: fx.Graph, right: fx.Graph) -> fx.Node | None:
    """The first node of `left` that is another one in `right`. Where one graph goes on, its next node meets the output
    of the other.
    """
    twin: dict[fx.Node, fx.Node] = {}
    ours: fx.Node
    for ours, theirs in zip(left.nodes, right.nodes, strict=False):
        if (ours.op, ours.target) != (theirs.op, theirs.target):
            return ours
        args, kwargs = fx.map_arg((ours.args, dict(ours.kwargs)), lambda node: twin[node])
        if not _same_value((args, kwargs), (theirs.args, dict(theirs.kwargs))):
            return ours
        twin[ours] = theirs
    return None


def _same_value(left: Any, right: Any) -> bool:
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(_same_value, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return list(left) == list(right) and all(_same_value(left[key], right[key]) for key in left)
    if type(left) is not type(right):
        return False
    if isinstance(left, slice):
        return _same_value((left.start, left.stop, left.step), (right.start, right.stop, right.step))
    if isinstance(left, fx.Node):
        return left is right
    return bool(left == right)
