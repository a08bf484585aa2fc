"""What an exported network does in training and nowhere else: stochastic depth, auxiliary heads, other results.

torch.export captures one mode. The graph for training is derived from that for inference where flags of norms and
dropout are all that differs; where more does, the network is exported in training mode as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, fx, nn

from fxprune.capture.chance import nothing_drawn
from fxprune.capture.read_numbers import settle_numbers
from fxprune.capture.trace import same_graph
from fxprune.program import adopt, named_tensors, skeleton_of

LOST = "in training mode torch.export cannot follow the network either: train() computes what inference does"


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
        if settle_numbers(other, numbers):
            other.graph.eliminate_dead_code()
        if _result(other.graph) == _result(module.graph) and same_graph(derived, other.graph):
            return derived, ()
        _rename_constants(other, numbers, named_tensors(model))
        adopt(module, other, other.graph)
    except Exception:
        return derived, (LOST,)
    tensors.update((name, value) for name, value in numbers.items() if name not in tensors)
    return other.graph, ()


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
