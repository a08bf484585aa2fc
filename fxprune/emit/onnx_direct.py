"""What a program needs so that the ONNX exporter can translate it without decomposing it first.

Two things: no operator that writes into its argument, and a translation for the two operators of convolutional networks
that the exporter only knows in decomposed form. See fxprune.emit.onnx for why this pays.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript import opset18
from torch import fx
from torch._ops import OpOverload

# These return memory of their own. Composite operators may hand back their argument without declaring it.
# fmt: off
OWN_MEMORY = frozenset({
    "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "add",
    "batch_norm", "cat", "div", "elu", "group_norm", "hardsigmoid", "hardswish", "hardtanh", "layer_norm",
    "leaky_relu", "linear", "max_pool1d", "max_pool2d", "mul", "relu", "sigmoid", "silu", "sub", "tanh",
})
# fmt: on


def settle(graph: fx.Graph) -> bool:
    """Replace operators that write in place by their pure twins, where nobody can tell the difference.

    x -> relu_(x) becomes x -> relu(x) when relu_ is the only reader of x. Answers whether the graph is now free of
    writes and of control flow; if not, the exporter's own decomposition has to deal with it.
    """
    return all(_is_pure(node) or _make_pure(node) for node in graph.nodes)


def translations() -> dict[Any, Callable[..., Any]]:
    """ATen operator -> its ONNX form, for torch.onnx.export(custom_translation_table=...)."""
    aten = torch.ops.aten
    return {aten.batch_norm.default: _batch_norm, aten.adaptive_avg_pool2d.default: _adaptive_avg_pool}


def slice_pools(graph: fx.Graph) -> None:
    """Average pooling of single pixels picks every n-th one. As a pool with padding in front of it onnxruntime refuses
    it: merged into one, the padding is as wide as the window.
    """
    for node in list(graph.nodes):
        rank = _POOLS.get(node.target, 0)
        if not rank or node.args[6:]:  # a divisor of its own
            continue
        value: Any = node.args[0]
        given: list[Any] = [*node.args[1:4], (), (0,)]
        window, step, padding = given[0], given[1] or (1,), given[2] if len(node.args) > 3 else (0,)
        if set(window) != {1} or set(padding) != {0}:
            continue
        for dim, every in enumerate(list(step) * (rank // len(step)), value.meta["val"].ndim - rank):
            where = (dim, 0, sys.maxsize, every)
            with graph.inserting_before(node):
                inner = graph.call_function(torch.ops.aten.slice.Tensor, (value, *where))
            inner.meta["val"] = torch.ops.aten.slice.Tensor(value.meta["val"], *where)
            value = inner
        node.replace_all_uses_with(value)
        graph.erase_node(node)


_POOLS: dict[Any, int] = {torch.ops.aten.avg_pool2d.default: 2, torch.ops.aten.avg_pool3d.default: 3}


def _is_pure(node: fx.Node) -> bool:
    if node.op != "call_function":
        return node.op in ("placeholder", "output")  # get_attr fetches the body of a control-flow operator
    if isinstance(node.target, OpOverload):
        return not node.target._schema.is_mutable
    return inspect.isbuiltin(node.target)  # arithmetic on sizes, getitem


def _make_pure(node: fx.Node) -> bool:
    if not isinstance(node.target, OpOverload):
        return False
    name = _name(node)
    twin = getattr(getattr(torch.ops.aten, name.removesuffix("_"), None), node.target._overloadname, None)
    if not name.endswith("_") or twin is None or _mixes_types(node) or not _is_owned(node.args[0], node):
        return False
    node.target = twin
    return True


def _is_owned(value: Any, reader: fx.Node) -> bool:
    """Whether `reader` alone can see the memory of `value`: nobody else reads it, nor what it may be a view of."""
    if not isinstance(value, fx.Node) or set(value.users) != {reader}:
        return False
    if _name(value) in OWN_MEMORY:
        return True
    sources = value.all_input_nodes
    return len(sources) == 1 and _is_owned(sources[0], value)


def _mixes_types(node: fx.Node) -> bool:
    """Writing in place keeps the type of the written tensor; the pure twin would promote it. A size changes no type
    where writing it in place is allowed.
    """
    values = [source.meta["val"] for source in node.all_input_nodes]
    return len({value.dtype for value in values if isinstance(value, torch.Tensor)}) > 1


def _name(node: fx.Node) -> str:
    """relu_ for aten::relu_.default; empty for anything that is no ATen operator."""
    if not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
        return ""
    return node.target._schema.name.removeprefix("aten::")


def _batch_norm(
    x: Any, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float, eps: float, cudnn: bool
) -> Any:
    if training or weight is None or bias is None:
        raise NotImplementedError("a batch norm with batch statistics, or without weight and bias")
    return opset18.BatchNormalization(x, weight, bias, mean, var, epsilon=eps)


def _adaptive_avg_pool(x: Any, output_size: Sequence[int]) -> Any:
    if len(x.shape) != 4:
        raise NotImplementedError("pooling of a single image")
    if list(output_size) == [1, 1]:
        return opset18.GlobalAveragePool(x)
    sizes = list(zip(x.shape[2:], output_size, strict=True))
    if any(size % wanted for size, wanted in sizes):
        raise NotImplementedError("windows of unequal size")
    window = [size // wanted for size, wanted in sizes]
    return opset18.AveragePool(x, kernel_shape=window, strides=window)
