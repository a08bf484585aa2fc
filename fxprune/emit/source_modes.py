"""Graphs as a person would write them: without empty layers, and train and eval mode in one where that is possible."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx, nn

from fxprune.emit.source_functions import INFIX

_ASSERTIONS = (torch._assert, torch._assert_async)
_LOOKING: set[Any] = {getattr, operator.getitem, *INFIX, "size", "dim"}


def simplified(graph: fx.Graph, root: nn.Module) -> fx.Graph:
    """A copy without assertions and without layers that do nothing; `root` is what the graph runs over."""
    copied = fx.Graph()
    copied.output(copied.graph_copy(graph, {}))
    copied._codegen = graph._codegen
    for node in list(copied.nodes):
        if node.op == "call_module" and type(root.get_submodule(str(node.target))) is nn.Identity:
            node.replace_all_uses_with(node.args[0] if node.args else next(iter(node.kwargs.values())))
            copied.erase_node(node)
        elif node.target in _ASSERTIONS:
            _erase(copied, node)
    return copied


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """The node, and what was looked up for it alone."""
    inputs = node.all_input_nodes
    graph.erase_node(node)
    for one in inputs:
        if not one.users and one.target in _LOOKING:
            _erase(graph, one)


class _DifferError(Exception):
    """The two graphs differ in more than the mode."""


def merged(evaluate: fx.Graph, train: fx.Graph) -> fx.Graph | None:
    """One graph for both modes where they differ in nothing but arguments that are False in eval mode and True in
    train mode; these become the attribute `training`. None otherwise.
    """
    if [(node.op, node.target) for node in evaluate.nodes] != [(node.op, node.target) for node in train.nodes]:
        return None
    both = fx.Graph()
    both._codegen = evaluate._codegen
    flag = both.get_attr("training")
    twins: dict[fx.Node, fx.Node] = {}
    made: dict[fx.Node, fx.Node] = {}
    try:
        for ours, theirs in zip(evaluate.nodes, train.nodes, strict=True):
            twins[theirs] = ours
            made[ours] = both.node_copy(ours, lambda one: made[one])
            args, kwargs = _combined((ours.args, dict(ours.kwargs)), (theirs.args, dict(theirs.kwargs)), twins, flag)
            made[ours].args, made[ours].kwargs = fx.map_arg((args, kwargs), lambda one: made.get(one, one))
    except _DifferError:
        return None
    return both


def _combined(ours: Any, theirs: Any, twins: Mapping[fx.Node, fx.Node], flag: fx.Node) -> Any:
    if isinstance(ours, fx.Node) and isinstance(theirs, fx.Node) and twins[theirs] is ours:
        return ours
    if ours is False and theirs is True:
        return flag
    if type(ours) is not type(theirs) or isinstance(ours, fx.Node):
        raise _DifferError
    if isinstance(ours, list | tuple) and len(ours) == len(theirs):
        return type(ours)(_combined(*both, twins, flag) for both in zip(ours, theirs, strict=True))
    if isinstance(ours, Mapping) and ours.keys() == theirs.keys():
        return {name: _combined(ours[name], theirs[name], twins, flag) for name in ours}
    if isinstance(ours, slice):
        left, right = ((one.start, one.stop, one.step) for one in (ours, theirs))
        return slice(*_combined(left, right, twins, flag))
    if ours != theirs:
        raise _DifferError
    return ours
