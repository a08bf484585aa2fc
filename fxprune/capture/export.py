"""The fallback front end: torch.export, for networks whose Python torch.fx cannot follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.program import Inputs, Program, meta_like, named_tensors, skeleton_of

_aten = torch.ops.aten


def export_graph(model: nn.Module, inputs: Inputs, why: str) -> Program:
    """Capture with torch.export (non-strict). The graph knows no modes, so one for training is derived from it.

    What is lost: stochastic depth and auxiliary heads, which are not part of the exported (inference) graph.
    """
    skeleton, tensors = skeleton_of(model)
    skeleton.eval()
    args, kwargs = pytree.tree_map_only(
        Tensor, lambda t: torch.empty_like(t, device="meta"), (inputs.args, dict(inputs.kwargs))
    )
    exported, dynamic = _export(skeleton, args, kwargs)
    module = exported.module(check_guards=False)
    assert isinstance(module, fx.GraphModule)
    _remove_checks(module.graph)
    module = fx.GraphModule(module, module.graph, class_name=type(model).__name__)  # one whose train() works
    train = fx.Graph()
    train.output(train.graph_copy(module.graph, {}, False))
    train._codegen = module.graph._codegen
    changed = _set_training(train)
    notes: tuple[str, ...] = (f"torch.fx could not follow this network ({why}); captured with torch.export instead",)
    if not dynamic:
        notes += ("the batch size is fixed at that of the example inputs",)
    real = {name: tensors.get(name, empty) for name, empty in named_tensors(module).items()}
    plain = Inputs(inputs.args, inputs.kwargs)
    return Program(module, real, plain, train if changed else None, "export", notes)


def _export(skeleton: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, bool]:
    """Export with a dynamic batch; where the network insists on one batch size, with a static one."""

    def batch(value: Any) -> Any:
        return {0: torch.export.Dim.DYNAMIC} if isinstance(value, Tensor) and value.ndim else None

    dynamic = pytree.tree_map(batch, (args, kwargs))
    try:
        shapes = (*dynamic[0],) if not kwargs else None
        if shapes is None:
            raise ValueError("keyword inputs are exported with a static batch")
        return torch.export.export(skeleton, args, dict(kwargs), strict=False, dynamic_shapes=shapes), True
    except Exception:
        return torch.export.export(skeleton, args, dict(kwargs), strict=False), False


def _remove_checks(graph: fx.Graph) -> None:
    """Shape assertions would name the dense network's sizes."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and "assert" in str(node.target) and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()


def _set_training(graph: fx.Graph) -> bool:
    """Flip the flags of batch norm and dropout. Returns whether any was found."""
    changed = False
    for node in graph.nodes:
        position = {_aten.batch_norm.default: 5, _aten.dropout.default: 2, _aten.dropout_.default: 2}.get(node.target)
        if position is None:
            continue
        args = list(node.args)
        args[position] = True
        node.args = tuple(args)
        changed = True
    return changed


__all__ = ["export_graph", "meta_like"]
