"""What an exported network does in training and nowhere else: stochastic depth, auxiliary heads, other results.

torch.export captures one mode. The graph for training is derived from that for inference where flags of norms and
dropout are all that differs; where more does, the network is exported in training mode as well.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.capture.chance import nothing_drawn
from fxprune.capture.graph_equality import same_graph
from fxprune.capture.read_numbers import settle_numbers
from fxprune.program import adopt, named_tensors, skeleton_of

LOST = (
    "in training mode torch.export cannot follow the network either: in train() norms and dropout do as they do in "
    "training, everything else as in inference"
)


def own_training(
    derived: fx.Graph, model: nn.Module, module: fx.GraphModule, tensors: dict[str, Tensor],
    exported: Callable[[], nn.Module], clean: Callable[[fx.Graph], None],
) -> tuple[fx.Graph, tuple[str, ...]]:  # fmt: skip
    """The graph for training, and notes.

    derived   what flags make of the graph for inference
    module    the skeleton of the graph for inference; gets what the other one needs, and `tensors` its numbers
    exported  exports in training mode; clean  makes an exported graph one of ours
    """
    try:
        with nothing_drawn():
            graph = exported()
        other, numbers = skeleton_of(graph)
        assert isinstance(other, fx.GraphModule)
        clean(other.graph)
        read = settle_numbers(other, numbers)
        if read:
            other.graph.eliminate_dead_code()
        held = _held(derived, module, tensors), _held(other.graph, other, numbers)
        alike = _result(other.graph) == _result(module.graph) and same_graph(derived, other.graph)
        if alike and all(map(_same, *held)):
            return derived, ()
        _rename_constants(other, numbers, named_tensors(model))
        adopt(module, other, other.graph)
    except Exception:
        return derived, (LOST,)
    tensors.update((name, value) for name, value in numbers.items() if name not in tensors)
    fixed = f"numbers that the network reads from {', '.join(read[:5])} are fixed at what they are now"
    return other.graph, (fixed,) if read else ()


def _held(graph: fx.Graph, module: nn.Module, numbers: Mapping[str, Tensor]) -> list[Any]:
    """What a graph reads: tensors with their numbers, and graphs."""
    names = [str(node.target) for node in graph.find_nodes(op="get_attr")]
    return [numbers[name] if name in numbers else operator.attrgetter(name)(module) for name in names]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, fx.GraphModule) and isinstance(other, fx.GraphModule):
        inner = _held(one.graph, one, {}), _held(other.graph, other, {})
        return same_graph(one.graph, other.graph) and all(map(_same, *inner))
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
        return False
    return one is other or one.is_meta or other.is_meta or torch.equal(one, other)


def _result(graph: fx.Graph) -> str:
    """How the outputs are nested."""
    return str(getattr(getattr(graph._codegen, "pytree_info", None), "out_spec", None))


def _rename_constants(module: fx.GraphModule, numbers: dict[str, Tensor], own: Mapping[str, Any]) -> None:
    """Constants that exporting has numbered get names that the graph for inference has not."""
    held = named_tensors(module)
    for node in module.graph.find_nodes(op="get_attr"):
        name = str(node.target)
        if name in own:
            continue
        node.target = f"training_{name.replace('.', '_')}"
        if not hasattr(module, node.target):
            module.register_buffer(node.target, held[name])  # a graph in place of a tensor is a KeyError here: lost
            if name in numbers:
                numbers[node.target] = numbers.pop(name)
