"""The fallback front end: torch.export, for networks whose Python torch.fx cannot follow."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.copying import copied
from fxprune.program import (
    Inputs,
    Program,
    Skeleton,
    loose_tensors,
    meta_like,
    named_tensors,
    real_tensors,
    skeleton_of,
)
from fxprune.quiet import quiet

_aten = torch.ops.aten


def export_graph(model: nn.Module, inputs: Inputs, why: str) -> Program:
    """Capture with torch.export (non-strict). The graph knows no modes, so one for training is derived from it.

    What is lost: stochastic depth and auxiliary heads, which are not part of the exported (inference) graph.
    """
    real_inputs = inputs.with_storage()
    with quiet():
        exported, dynamic = _export(structure_copy(model).eval(), real_inputs.args, real_inputs.kwargs)
    module, tensors = skeleton_of(exported.module(check_guards=False))
    assert isinstance(module, fx.GraphModule)
    _clean(module.graph)
    module = Skeleton(module, module.graph, class_name=type(model).__name__)  # one whose train() works
    _keep_counters(module, model, tensors)
    train = fx.Graph()
    train.output(train.graph_copy(module.graph, {}, False))
    train._codegen = module.graph._codegen
    changed = _set_training(train)
    notes: tuple[str, ...] = (f"torch.fx could not follow this network ({why}); captured with torch.export instead",)
    if not dynamic:
        notes += ("the batch size is fixed at that of the example inputs",)
    real = real_tensors(module, tensors)
    return Program(module, real, inputs, train if changed else None, "export", notes)


def _keep_counters(module: fx.GraphModule, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Batch counters and other buffers that no exported operator reads stay in the state dict."""
    known = named_tensors(module)
    for name, buffer in model.named_buffers():
        holder, _, leaf = name.rpartition(".")
        if name not in known and any(other.startswith(f"{holder}.") for other in known):
            module.get_submodule(holder).register_buffer(leaf, meta_like(buffer))
            tensors[name] = buffer


def structure_copy(model: nn.Module, *, clone_buffers: bool = False) -> nn.Module:
    """The user's modules anew over the user's own tensors; buffers, which a forward may write into, copied if asked."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*named_tensors(model).values(), *loose_tensors(model))}
    if clone_buffers:
        memo.update({id(buffer): buffer.clone() for buffer in model.buffers()})
    return copied(model, memo)


def _export(skeleton: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, bool]:
    """Export with a dynamic batch; where the network insists on one batch size, with a static one."""

    def batch(value: Any) -> Any:
        return {0: torch.export.Dim.DYNAMIC} if isinstance(value, Tensor) and value.ndim else None

    names = list(inspect.signature(skeleton.forward).parameters)
    shapes = {name: pytree.tree_map(batch, value) for name, value in zip(names, args, strict=False)}
    shapes |= {name: pytree.tree_map(batch, value) for name, value in kwargs.items()}
    try:
        return torch.export.export(skeleton, args, dict(kwargs), strict=False, dynamic_shapes=shapes), True
    except Exception:  # tensors that have been marked dynamic stay so: start from clean ones
        args, kwargs = pytree.tree_map_only(Tensor, torch.clone, (args, dict(kwargs)))
        return torch.export.export(skeleton, args, dict(kwargs), strict=False), False


_FACTORIES = {
    _aten.zeros.default: torch.zeros,
    _aten.ones.default: torch.ones,
    _aten.full.default: torch.full,
    _aten.empty.memory_format: torch.empty,
    _aten.arange.default: torch.arange,
    _aten.arange.start: torch.arange,
    _aten.arange.start_step: torch.arange,
    _aten.linspace.default: torch.linspace,
    _aten.rand.default: torch.rand,
    _aten.randn.default: torch.randn,
}


def _clean(graph: fx.Graph) -> None:
    """Shape assertions name the dense network's sizes; a device that is written down would not follow the network."""
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function":
            continue
        if "assert" in str(node.target) and not node.users:
            graph.erase_node(node)
        elif node.target in _FACTORIES:
            node.target = _FACTORIES[node.target]
            node.kwargs = {name: value for name, value in node.kwargs.items() if name == "dtype"}
        elif node.kwargs.get("device") == torch.device("cpu"):
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "device"}
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
