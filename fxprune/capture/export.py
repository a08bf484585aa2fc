"""The fallback front end: torch.export, for networks whose Python torch.fx cannot follow."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.capture.autocast import without_autocast
from fxprune.capture.export_training import own_training
from fxprune.capture.exported import ExportedNetwork
from fxprune.capture.gradient_hooks import gradient_hooks_noted
from fxprune.capture.graph_equality import same_graph
from fxprune.capture.read_numbers import settle_numbers
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


def export_graph(model: nn.Module, inputs: Inputs, why: str, fixed: bool = False) -> Program:
    """Capture with torch.export (non-strict), in both modes where they differ in more than flags.

    fixed   for the batch size of the inputs and no other
    """
    real_inputs = inputs.with_storage()
    with quiet(), without_autocast() as entered, gradient_hooks_noted() as hooks:
        exported, dynamic = _export(copy_in_mode(model, False), real_inputs, fixed)
    notes: tuple[str, ...] = (f"torch.fx could not follow this network ({why}); captured with torch.export instead",)
    notes += (*entered, *hooks)
    if not dynamic:
        notes += ("the batch size is fixed at that of the example inputs",)

    def in_training() -> nn.Module:
        with quiet(), without_autocast():
            found, moves = _export(copy_in_mode(model, True), real_inputs, fixed)
        if moves is not dynamic:
            raise ValueError("the two modes ask for different batch sizes")
        graph: nn.Module = found.module(check_guards=False)
        return graph

    return _program(exported.module(check_guards=False), model, inputs, notes, dynamic, in_training)


def exported_program(network: ExportedNetwork, inputs: Inputs) -> Program:
    """What was exported elsewhere as a program, for both modes. Where it was exported in training mode, inference is
    derived from it.
    """
    notes: tuple[str, ...] = ("the network was given as an exported program: its graph is taken as it is",)
    if not network.dynamic_batch:
        notes += (f"the batch size is fixed{_at(inputs)}, as it was exported",)
    return _program(network, network, inputs, notes, network.dynamic_batch)


def _at(inputs: Inputs) -> str:
    first = next((one for one in pytree.tree_leaves((inputs.args, inputs.kwargs)) if isinstance(one, Tensor)), None)
    return f" at {first.shape[0]}" if first is not None and first.ndim else ""


def _program(
    graph: nn.Module, model: nn.Module, inputs: Inputs, notes: tuple[str, ...], dynamic: bool,
    in_training: Callable[[], nn.Module] | None = None,
) -> Program:  # fmt: skip
    """in_training: exports the other mode of what was exported here, in eval mode: a flag that stands for training is
    one that the network's code has set.
    """
    module, tensors = skeleton_of(graph)
    assert isinstance(module, fx.GraphModule)
    _clean(module.graph)
    if read := settle_numbers(module, tensors):
        notes += (f"numbers that the network reads from {', '.join(read[:5])} are fixed at what they are now",)
        module.graph.eliminate_dead_code()
    module = Skeleton(module, module.graph, class_name=type(model).__name__)  # one whose train() works
    _keep_counters(module, model, tensors)
    train = fx.Graph()
    train.output(train.graph_copy(module.graph, {}, False))
    train._codegen = module.graph._codegen
    differs = _set_training(train, True)
    if in_training is not None:
        train, lost = own_training(train, model, module, tensors, in_training, _clean_training)
        notes, differs = notes + lost, differs or not same_graph(train, module.graph)
    elif _set_training(module.graph, False):
        notes += ("it was exported in training mode; batch norms and dropout were switched over for inference",)
        module.recompile()
        differs = True
    real = real_tensors(module, tensors)
    return Program(module, real, inputs, train if differs else None, "export", notes, dynamic_batch=dynamic)


def _keep_counters(module: fx.GraphModule, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Batch counters and other buffers that no exported operator reads stay in the state dict."""
    known = named_tensors(module)
    for name, buffer in model.named_buffers():
        holder, _, leaf = name.rpartition(".")
        if name not in known and any(other.startswith(f"{holder}.") for other in known):
            module.get_submodule(holder).register_buffer(leaf, meta_like(buffer))
            tensors[name] = buffer


def structure_copy(model: nn.Module, numbers: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """The user's modules anew over the user's own tensors, or over what `numbers` makes of each."""
    tensors = (*named_tensors(model).values(), *loose_tensors(model))
    memo: dict[int, Any] = {id(one): one if numbers is None else numbers(one) for one in tensors}
    return copied(model, memo)


def copy_in_mode(model: nn.Module, training: bool, numbers: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    twin = structure_copy(model, numbers)
    twin.train(training)  # one that is overridden may return nothing
    return twin


def cloned(tensor: Tensor) -> Tensor:
    """For code that may write into its parameters and buffers."""
    twin = tensor.detach().clone()
    return nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin


def _export(skeleton: nn.Module, inputs: Inputs, fixed: bool) -> tuple[Any, bool]:
    """Export with a dynamic batch; where the network insists on one batch size, with a static one."""

    def batch(value: Any) -> Any:
        return {0: torch.export.Dim.DYNAMIC} if isinstance(value, Tensor) and value.ndim else None

    def moving() -> Any:
        args, kwargs = _own(inputs.twice() if inputs.batch == 1 else inputs)  # a size of 1 would be a constant
        shapes = pytree.tree_map(batch, dict(inspect.signature(skeleton.forward).bind(*args, **kwargs).arguments))
        return torch.export.export(skeleton, args, kwargs, strict=False, dynamic_shapes=shapes)

    if not fixed:
        with suppress(Exception):
            return moving(), True
    args, kwargs = _own(inputs)
    return torch.export.export(skeleton, args, kwargs, strict=False), False


def _own(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Tensors that nobody else holds: exporting marks them, and takes one that is given twice for one argument."""
    found: tuple[Any, Any] = pytree.tree_map_only(Tensor, torch.clone, (inputs.args, dict(inputs.kwargs)))
    return found


def _factory(target: Any) -> Callable[..., Any] | None:
    """torch's own function for an operator that makes a tensor from nothing: it follows the device of the moment."""
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten":
        return None
    arguments = target._schema.arguments
    if any("Tensor" in str(one.type) for one in arguments) or all(one.name != "device" for one in arguments):
        return None
    found: Callable[..., Any] | None = getattr(torch, target._opname, None)
    return found


def _clean(graph: fx.Graph) -> None:
    """Shape assertions name the dense network's sizes; a device that is written down would not follow the network."""
    for node in reversed(list(graph.nodes)):
        if node.op != "call_function":
            continue
        if not node.users and any(word in str(node.target) for word in ("assert", "sym_constrain_range")):
            graph.erase_node(node)
        elif made := _factory(node.target):
            node.target = made
            node.kwargs = {name: value for name, value in node.kwargs.items() if name == "dtype"}
        elif node.target is _aten.to.device:
            node.target = _aten.to.dtype
            node.args = (node.args[0], *node.args[2:])
        elif node.kwargs.get("device") == torch.device("cpu"):
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "device"}
    graph.eliminate_dead_code()


def _clean_training(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if _counts_batches(node):
            graph.erase_node(node)
    _clean(graph)


_FLAGS = {
    _aten.batch_norm.default: 5,
    _aten.instance_norm.default: 5,
    **{getattr(_aten, name).default: 2 for name in ("dropout", "dropout_", "feature_dropout", "feature_dropout_")},
    **{getattr(_aten, name).default: 2 for name in ("alpha_dropout", "alpha_dropout_", "feature_alpha_dropout")},
}


def _set_training(graph: fx.Graph, training: bool) -> bool:
    """Switch the flags of norms and dropout. Returns whether any was the other way."""
    changed = False
    for node in list(graph.nodes):
        position = _FLAGS.get(node.target)
        if position is not None and node.args[position] is not training and not _without_statistics(node):
            node.args = (*node.args[:position], training, *node.args[position + 1 :])
            changed = True
        elif not training and _counts_batches(node):
            graph.erase_node(node)
    return changed


def _without_statistics(node: fx.Node) -> bool:
    """A norm that has none of its own computes them in both modes: of weights, say, to standardise them."""
    return node.target in (_aten.batch_norm.default, _aten.instance_norm.default) and node.args[3] is None


def _counts_batches(node: fx.Node) -> bool:
    if node.target != _aten.add_.Tensor or node.users:
        return False
    counter = node.args[0]
    return isinstance(counter, fx.Node) and str(counter.target).endswith("num_batches_tracked")
