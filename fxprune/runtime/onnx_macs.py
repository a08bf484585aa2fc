"""Multiply-accumulates of an ONNX graph, counted from shapes.

Counted are convolutions and matrix products, also the quantised and the fused ones of onnxruntime; the formulas agree
with those of torch.utils.flop_counter at two FLOPs a MAC.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto

from fxprune.errors import MeasureError, first_line

Shape = tuple[int, ...]
_SMALL = 1024  # numbers in an initialiser; larger ones are no shapes, and shape inference would copy them
_STANDARD = ("", "ai.onnx", "com.microsoft")
_NOT_COUNTED = {
    *("Attention", "BlockSparseAttention", "DeformConv", "Einsum", "GRU", "GroupQueryAttention", "If", "LSTM", "Loop"),
    *("MatMulBnb4", "MatMulNBits", "MultiHeadAttention", "QAttention", "QMultiHeadAttention", "RNN", "Scan"),
}


@dataclass(frozen=True)
class Macs:
    """`count` of one run; `left_out` names the operators whose work is not in it."""

    count: int
    left_out: tuple[str, ...]


def count_macs(model: ModelProto, shapes: Mapping[str, Shape]) -> Macs:
    """MACs of one run with inputs of these shapes. Raises MeasureError when shapes cannot be inferred."""
    try:
        graph = _with_shapes(model, shapes).graph
    except Exception as error:  # the checker raises what it likes
        raise MeasureError(f"shapes cannot be inferred: {first_line(error)[:200]}") from error
    known = _shapes_in(graph)
    total, left_out = 0, set()
    for node in graph.node:
        count = _node_macs(node, known)
        if count is None:
            left_out.add(node.op_type)
        else:
            total += count
    return Macs(total, tuple(sorted(left_out)))


def _with_shapes(model: ModelProto, shapes: Mapping[str, Shape]) -> ModelProto:
    """The model with a shape for every value, and without its large numbers."""
    slim = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = slim.graph
    graph.name = model.graph.name
    graph.node.extend(model.graph.node)
    stored = {one.name for one in model.graph.initializer}
    for tensor in model.graph.initializer:
        if prod(tensor.dims) <= _SMALL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    for value in model.graph.input:
        if value.name not in stored:
            kind = value.type.tensor_type.elem_type
            graph.input.append(onnx.helper.make_tensor_value_info(value.name, kind, shapes[value.name]))
    for value in model.graph.output:
        graph.output.add(name=value.name).type.tensor_type.elem_type = value.type.tensor_type.elem_type
    if slim.functions:
        slim = onnx.inliner.inline_local_functions(slim)
    return onnx.shape_inference.infer_shapes(slim, data_prop=True)


def _shapes_in(graph: GraphProto) -> dict[str, Shape]:
    """Every value whose dimensions are all numbers."""
    known = {one.name: tuple(one.dims) for one in graph.initializer}
    for value in [*graph.input, *graph.value_info, *graph.output]:
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            known[value.name] = tuple(dim.dim_value for dim in kind.shape.dim)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.HasField("t"):
                known[node.output[0]] = tuple(attribute.t.dims)
    return known


def _node_macs(node: NodeProto, known: Mapping[str, Shape]) -> int | None:
    """None for an operator that works but is not counted here, and for one whose shapes are not known."""
    if node.domain not in _STANDARD or node.op_type in _NOT_COUNTED:
        return None
    rule = _RULES.get(node.op_type)
    if rule is None:
        return 0
    count, places = rule
    names = [*(node.input[place] for place in places), node.output[0]]
    return count(node, [known[name] for name in names]) if all(name in known for name in names) else None


def _convolution(_node: NodeProto, shapes: Sequence[Shape]) -> int:
    _, weight, out = shapes
    return prod(out) * prod(weight[1:])


def _transposed(_node: NodeProto, shapes: Sequence[Shape]) -> int:
    x, weight, _ = shapes
    return prod(x) * prod(weight[1:])


def _product(_node: NodeProto, shapes: Sequence[Shape]) -> int:
    a, _, out = shapes
    return prod(out) * a[-1]


def _gemm(node: NodeProto, shapes: Sequence[Shape]) -> int:
    a, _, out = shapes
    transposed = any(one.name == "transA" and one.i for one in node.attribute)
    return prod(out) * a[0 if transposed else 1]


_Rule = tuple[Callable[[NodeProto, Sequence[Shape]], int], tuple[int, int]]
_RULES: dict[str, _Rule] = {
    **dict.fromkeys(("Conv", "FusedConv", "NhwcFusedConv", "ConvInteger"), (_convolution, (0, 1))),
    "QLinearConv": (_convolution, (0, 3)),
    "ConvTranspose": (_transposed, (0, 1)),
    **dict.fromkeys(("MatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul"), (_product, (0, 1))),
    "QLinearMatMul": (_product, (0, 3)),
    **dict.fromkeys(("Gemm", "FusedGemm"), (_gemm, (0, 1))),
    "QGemm": (_gemm, (0, 3)),
}
