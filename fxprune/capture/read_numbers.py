"""Numbers that a network's code reads out of its own tensors, as `self.strides[0].item()`: known, once it is built.

torch.export leaves the reading in the graph. Shapes say nothing about its result, so the numbers take its place.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

_aten = torch.ops.aten
_READS = (_aten.item.default, _aten._local_scalar_dense.default)


def settle_numbers(module: fx.GraphModule, tensors: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Put plain numbers in place of those that the graph reads out of buffers and constants; the names of these.

    tensors  the numbers of what is on the meta device in the module
    Parameters stay, which training changes, and so does what the graph writes to.
    """
    graph = module.graph
    reads = [node for node in graph.nodes if node.target in _READS]
    fixed = _fixed(module, tensors) if reads else {}
    names: dict[str, None] = {}
    for node in reads:
        above = list(_above(node))
        if not all(one in fixed or _computes(one) for one in above):
            continue
        number = _value(node, dict(fixed))
        node.replace_all_uses_with(number)
        graph.erase_node(node)
        names |= dict.fromkeys(str(one.target) for one in above if one in fixed)
    return tuple(names)


def _fixed(module: fx.GraphModule, tensors: Mapping[str, Tensor]) -> dict[fx.Node, Tensor]:
    """The tensors that stay as they are, by the nodes that look them up."""
    written = {str(_origin(node).target) for node in module.graph.nodes if _writes(node)}
    found = {}
    for node in module.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        held = tensors[name] if name in tensors else operator.attrgetter(name)(module)
        if name not in written and isinstance(held, Tensor) and not isinstance(held, nn.Parameter) and not held.is_meta:
            found[node] = held
    return found


def _writes(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _origin(node: fx.Node) -> fx.Node:
    """What a view of a view is a view of, as far as first arguments tell."""
    while node.args and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _above(node: fx.Node) -> Iterator[fx.Node]:
    """Everything that a node is computed from, and the node."""
    seen, waiting = {node}, [node]
    while waiting:
        current = waiting.pop()
        yield current
        more = [one for one in current.all_input_nodes if one not in seen]
        seen.update(more)
        waiting += more


def _computes(node: fx.Node) -> bool:
    """Whether equal arguments give equal results."""
    tags = getattr(node.target, "tags", ())
    return node.op == "call_function" and not _writes(node) and torch.Tag.nondeterministic_seeded not in tags


def _value(node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    """What a node returns; `known` holds what has been worked out."""
    if node not in known:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), lambda one: _value(one, known))
        with torch.no_grad():
            known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return known[node]
