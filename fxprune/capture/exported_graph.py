"""From the graph in a .pt2 file to an fx graph: an operator is one of ATen's or it is not known, arguments are data."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, fx, nn
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from fxprune.aten import find_operator
from fxprune.capture.exported import ExportedNetwork, hold
from fxprune.capture.exported_schema import Argument, Graph, GraphModule, Name, Node, Structure, TensorMeta
from fxprune.program import Inputs


class UnknownPartError(Exception):
    """The file asks for something that could run code, or that nobody has thought of."""


# By their numbers in the file, which are those of c10::ScalarType.
DTYPES = {
    **{1: torch.uint8, 2: torch.int8, 3: torch.int16, 4: torch.int32, 5: torch.int64, 12: torch.bool},
    **{6: torch.float16, 7: torch.float32, 8: torch.float64, 13: torch.bfloat16},
}
# What Python does with sizes between operators.
_ARITHMETIC: dict[str, Callable[..., Any]] = {
    **{f"_operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "pow")},
    **{f"_operator.{name}": getattr(operator, name) for name in ("truediv", "eq", "ne", "lt", "le", "gt", "ge")},
    **{f"math.{name}": getattr(math, name) for name in ("trunc", "ceil", "floor")},
    **{f"torch.{name}": getattr(torch, name) for name in ("sym_max", "sym_min", "sym_int", "sym_float", "sym_not")},
}
# Checks of the exporting run; they compute nothing.
_CHECKS = tuple(
    f"torch.ops.aten.{name}"
    for name in ("_assert_scalar.", "_assert_tensor_metadata.", "_assert_async.", "sym_constrain_range")
)


def build_network(file: GraphModule, tensors: Mapping[str, Tensor]) -> ExportedNetwork:
    """The graph over its parameters and buffers, with one placeholder an input, as ExportedProgram.module() has it.

    Raises UnknownPartError; KeyError, ValueError and their like for references that lead nowhere.
    """
    builder = _Builder(file, tensors)
    shapes = file.graph.tensor_values
    first = next((name for name in builder.users if name in shapes and shapes[name].sizes), None)
    builder.graph.lint()
    return ExportedNetwork(
        builder.root, builder.graph, builder.inputs, first is not None and shapes[first].sizes[0].as_expr is not None
    )


class _Builder:
    """Puts one graph together: inputs, operators, outputs. `known` maps the file's names to nodes."""

    def __init__(self, file: GraphModule, tensors: Mapping[str, Tensor]) -> None:
        self.graph, self.root = fx.Graph(), nn.Module()
        self.known: dict[str, fx.Node] = {}
        self.users: list[str] = []  # names of the inputs that the user gives
        self.leaves: list[Any] = []  # and what they were in the example
        self.written: list[tuple[fx.Node, str]] = []  # (new value, buffer that takes it)
        self.tensors = tensors
        self.call = _Call(file)
        self._inputs(file)
        for node in file.graph.nodes:
            self._node(node)
        self._outputs(file)

    # ---- inputs

    def _inputs(self, file: GraphModule) -> None:
        held: dict[str, fx.Node] = {}
        for spec in file.signature.input_specs:
            if spec.kind in ("parameter", "buffer", "tensor_constant"):
                self._held(spec.value.arg.name, spec.value.target, held)
        for number, spec in enumerate(file.signature.input_specs):
            if spec.kind == "constant_input":
                self._user(spec.value.name, spec.value.value.value)
            elif spec.kind == "user_input":
                self._tensor_input(spec.value.arg, file.graph, number)
        args, kwargs = _nested(self.call.inputs, iter(self.leaves))
        self.inputs = Inputs(tuple(args), {_NAME.validate_python(name): one for name, one in kwargs.items()})

    def _held(self, name: str, target: str, held: dict[str, fx.Node]) -> None:
        if target not in held:
            hold(self.root, target, self.tensors[target])
            held[target] = self.graph.get_attr(target)
        self._remember(name, held[target])

    def _tensor_input(self, argument: Argument, graph: Graph, number: int) -> None:
        if argument.kind != "as_tensor":
            raise UnknownPartError(f"input {number} of the network is no tensor")
        name = argument.value.name
        self._user(name, _example(graph.tensor_values[name], name))

    def _user(self, name: str, value: Any) -> None:
        self.users.append(name)
        self.leaves.append(value)
        self._remember(name, self.graph.placeholder(name))

    def _remember(self, name: str, node: fx.Node) -> None:
        if name in self.known:
            raise ValueError(f"two values are named {name}")
        self.known[name] = node

    # ---- operators

    def _node(self, node: Node) -> None:
        if node.target.startswith(_CHECKS):
            return
        target = _operator(node.target)
        args = [self._value(one.arg) for one in node.inputs if one.kind == 1]
        kwargs = {_NAME.validate_python(one.name): self._value(one.arg) for one in node.inputs if one.kind == 2}
        made = self.graph.call_function(target, tuple(args), kwargs)
        self._results(made, node.outputs)

    def _results(self, made: fx.Node, outputs: list[Argument]) -> None:
        """Several results are written down by name; the graph takes them apart with getitem."""
        if len(outputs) == 1 and outputs[0].kind == "as_tensors":
            self._items(made, [one.name for one in outputs[0].value])
        elif len(outputs) == 1:
            self._remember(_result(outputs[0]), made)
        else:
            self._items(made, [_result(one) for one in outputs])

    def _items(self, made: fx.Node, names: list[str]) -> None:
        for position, name in enumerate(names):
            if name:
                self._remember(name, self.graph.call_function(operator.getitem, (made, position)))

    def _value(self, argument: Argument) -> Any:
        kind, value = argument.kind, argument.value
        if kind in _REFERENCES:
            return _REFERENCES[kind](self, value)
        if kind in _CODES:
            if value not in _CODES[kind]:
                raise UnknownPartError(f"{kind} {value} is not known")
            return _CODES[kind][value]
        if kind == "as_none":
            return None
        if kind == "as_device":
            return torch.device("cpu")  # wherever it was exported: it is compiled here
        return value

    def _symbolic(self, value: Any) -> Any:
        return self.known[value.value] if value.kind == "as_name" else value.value

    def _optional(self, value: Any) -> Any:
        return self.known[value.value.name] if value.kind == "as_tensor" else None

    # ---- outputs

    def _outputs(self, file: GraphModule) -> None:
        found = []
        for spec in file.signature.output_specs:
            if spec.kind == "buffer_mutation":
                self._write(spec.value.target, self.known[spec.value.arg.name])
            else:
                found.append(self._value(spec.value.arg))
        result = _nested(self.call.outputs, iter(found))
        info = _PyTreeInfo(
            self.call.names or [*(f"arg_{n}" for n in range(len(self.inputs.args))), *self.inputs.kwargs],
            pytree.tree_structure((self.inputs.args, dict(self.inputs.kwargs))),
            pytree.tree_structure(result, is_leaf=lambda one: isinstance(one, fx.Node)),
        )
        self.graph.set_codegen(_PyTreeCodeGen(info))
        self.graph.output(tuple(found))

    def _write(self, buffer: str, value: fx.Node) -> None:
        self.graph.call_function(torch.ops.aten.copy_.default, (self.graph.get_attr(buffer), value))


_NAME: TypeAdapter[str] = TypeAdapter(Name)
_REFERENCES: dict[str, Callable[[_Builder, Any], Any]] = {
    "as_tensor": lambda builder, value: builder.known[value.name],
    "as_tensors": lambda builder, value: [builder.known[one.name] for one in value],
    "as_optional_tensors": lambda builder, value: [builder._optional(one) for one in value],
    "as_sym_int": lambda builder, value: builder._symbolic(value),
    "as_sym_ints": lambda builder, value: [builder._symbolic(one) for one in value],
    "as_sym_float": lambda builder, value: builder._symbolic(value),
    "as_sym_bool": lambda builder, value: builder._symbolic(value),
}
_CODES: dict[str, dict[int, Any]] = {
    "as_scalar_type": dict(DTYPES),
    "as_memory_format": {
        1: torch.contiguous_format, 2: torch.channels_last, 3: torch.channels_last_3d, 4: torch.preserve_format,
    },
    "as_layout": {7: torch.strided},
}  # fmt: skip


def _result(output: Argument) -> str:
    if output.kind == "as_tensor":
        name: str = output.value.name
        return name
    if output.kind in ("as_sym_int", "as_sym_float", "as_sym_bool") and output.value.kind == "as_name":
        return str(output.value.value)
    if output.kind == "as_none":
        return ""
    raise UnknownPartError(f"a result of kind {output.kind}")


def _operator(target: str) -> Callable[..., Any]:
    """What a node calls. Raises UnknownPartError unless it is an ATen operator over tensors and plain values."""
    if target in _ARITHMETIC:
        return _ARITHMETIC[target]
    home, _, overload = target.removeprefix("torch.ops.aten.").partition(".")
    found = find_operator(home, overload) if target.startswith("torch.ops.aten.") else None
    if found is not None:
        return found
    raise UnknownPartError(
        f"it asks for the operator {target[:100]!r}; known are those of torch.ops.aten that make tensors from tensors"
    )


def _example(meta: TensorMeta, name: str) -> Tensor:
    """Zeros of the shape that an input had when the network was exported."""
    sizes = [one.example for one in meta.sizes]
    if meta.dtype not in DTYPES or None in sizes:
        raise UnknownPartError(f"the shape or type of input {name} is not understood")
    return torch.zeros([size or 0 for size in sizes], dtype=DTYPES[meta.dtype])


class _Call:
    """How the network is called: how arguments and results are nested, and the names of the arguments."""

    def __init__(self, file: GraphModule) -> None:
        signature = next((one.signature for one in file.module_call_graph if one.fqn == "" and one.signature), None)
        if signature is None:
            raise UnknownPartError("it does not say how the network is called")
        self.inputs, self.outputs = _structure(signature.in_spec), _structure(signature.out_spec)
        self.names = signature.forward_arg_names


def _structure(text: str) -> Structure:
    version, content = json.loads(text)
    if version != 1:
        raise UnknownPartError(f"its inputs are described in version {version!r}; known is 1")
    return Structure.model_validate(content)


def _nested(structure: Structure, leaves: Iterator[Any]) -> Any:
    """The leaves in the structure's tuples, lists and dictionaries."""
    if structure.type is None:
        return next(leaves)
    children = [_nested(child, leaves) for child in structure.children_spec]
    if structure.type == "builtins.tuple":
        return tuple(children)
    if structure.type == "builtins.list":
        return children
    keys: Iterable[Any] = json.loads(structure.context or "[]")
    return dict(zip(keys, children, strict=True))
