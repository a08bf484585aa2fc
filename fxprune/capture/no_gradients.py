"""Parts of a forward that run without gradients, such as a frozen backbone under `with torch.no_grad()`.

A graph has no place for such a block: traced as they are, its layers would be trained. Where a value leaves it,
`detach()` has the same effect on training; so has it on what is written in place, and on where it is written.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree


def detach_what_leaves(graph: fx.Graph, inside: set[fx.Node], value_of: Callable[[fx.Node], Any]) -> None:
    """Detach each value that a node outside reads from a node `inside`.

    value_of  what a node returns, on the meta device
    """
    if not inside:
        return
    inside = inside | _parts_of(graph, inside)
    writing = [node for node in graph.nodes if node in inside and _writes(node)]
    leaving = {node: [user for user in node.users if user not in inside] for node in graph.nodes if node in inside}
    values = {node: value_of(node) for node, users in leaving.items() if users}  # all of them before the graph changes
    given = {one: value_of(one) for node in writing for one in node.all_input_nodes}
    for node in writing:
        _detach_written(graph, node, inside, given)
    for node, value in values.items():
        if not any(_has_gradients(leaf) for leaf in pytree.tree_leaves(value)):
            continue
        with graph.inserting_before(node.next):
            detached = _detached(graph, node, value)
        for user in leaving[node]:
            swap = functools.partial(_swapped, node, detached)
            user.args, user.kwargs = fx.map_arg((user.args, dict(user.kwargs)), swap)


def _writes(node: fx.Node) -> bool:
    """Whether it is a method that writes in place, by its name."""
    name = str(node.target)
    return node.op == "call_method" and name.endswith("_") and not name.endswith("__")


def _detach_written(graph: fx.Graph, node: fx.Node, inside: set[fx.Node], given: Mapping[fx.Node, Any]) -> None:
    """Detach what is written, and where to, unless that was made in the block."""
    made: dict[fx.Node, fx.Node] = {}
    for one in node.all_input_nodes:
        target_of_block = one is node.args[0] and one in inside and one.op != "get_attr"
        if not target_of_block and _has_gradients(given[one]):
            with graph.inserting_before(node):
                made[one] = graph.call_method("detach", (one,))
    node.args, node.kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda one: made.get(one, one))


def _parts_of(graph: fx.Graph, inside: set[fx.Node]) -> set[fx.Node]:
    """What is taken out of a value later is as free of gradients as the value."""
    return {node for node in graph.nodes if node.target in (operator.getitem, getattr) and node.args[0] in inside}


def _detached(graph: fx.Graph, node: fx.Node, value: Any) -> Any:
    """A tensor detached, or each of a tuple of tensors."""
    if isinstance(value, list | tuple):
        items = (graph.call_function(operator.getitem, (node, place)) for place in range(len(value)))
        return tuple(_detached(graph, item, one) for item, one in zip(items, value, strict=True))
    return graph.call_method("detach", (node,)) if _has_gradients(value) else node


def _swapped(node: fx.Node, detached: Any, one: fx.Node) -> Any:
    return detached if one is node else one


def _has_gradients(value: Any) -> bool:
    return isinstance(value, Tensor) and (value.is_floating_point() or value.is_complex())
