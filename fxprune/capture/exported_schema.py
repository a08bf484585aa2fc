"""What of an exported program's JSON is understood, as pydantic models; everything else in it is refused.

torch.export.load would evaluate the expressions of a .pt2 file, call what its operators are named like and unpickle
what it says is pickled. Here a file is data: names that fit into source code, numbers, and references between them.
Source: torch/_export/serde/schema.py (torch 2.13, schema 8.20); the major version changes with every break.
"""

from __future__ import annotations

import keyword
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, model_validator

SCHEMA_MAJOR, ARCHIVE_VERSION = 8, "0"


def _no_keyword(name: str) -> str:
    if keyword.iskeyword(name):
        raise ValueError("a word that Python keeps for itself")
    return name


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$"), AfterValidator(_no_keyword)]
Path = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*$")
]  # of a parameter: layer1.0.weight
Word = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_,>. -]*$")
]  # an argument: bilinear, floor, "bchw,dc->bdhw"
Size = Annotated[int, Field(ge=0, lt=2**40)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class _Union(_Part):
    """Written as an object with one key, which says what stands there."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="after")
    def _one_key(self) -> _Union:
        if len(self.model_fields_set) != 1:
            raise ValueError("exactly one key belongs here")
        return self

    @property
    def kind(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def value(self) -> Any:
        return getattr(self, self.kind)


class _Hint(_Union):
    as_int: Size | None = None


class _Expression(_Part):
    """A size that may change. `expr_str`, which says how, is not read: only the size it had in the example is."""

    hint: _Hint | None = None


class Length(_Union):
    """One size of a tensor."""

    as_int: Size | None = None
    as_expr: _Expression | None = None

    @property
    def example(self) -> int | None:
        """The size in the example; None when the file does not say."""
        if self.as_expr is None:
            return self.as_int
        return self.as_expr.hint.as_int if self.as_expr.hint else None


class TensorMeta(_Part):
    dtype: int
    sizes: list[Length]
    strides: list[Length]
    storage_offset: Length
    requires_grad: bool


class TensorName(_Part):
    name: Name


class SymbolicInt(_Union):
    as_name: Name | None = None
    as_int: int | None = None


class SymbolicFloat(_Union):
    as_name: Name | None = None
    as_float: float | None = None


class SymbolicBool(_Union):
    as_name: Name | None = None
    as_bool: bool | None = None


class OptionalTensor(_Union):
    as_tensor: TensorName | None = None
    as_none: bool | None = None


class Device(_Part):
    type: Name


class Argument(_Union):
    """An argument or a result of an operator. Graphs, operators and objects as arguments are not understood."""

    as_none: bool | None = None
    as_tensor: TensorName | None = None
    as_tensors: list[TensorName] | None = None
    as_optional_tensors: list[OptionalTensor] | None = None
    as_int: int | None = None
    as_ints: list[int] | None = None
    as_float: float | None = None
    as_floats: list[float] | None = None
    as_bool: bool | None = None
    as_bools: list[bool] | None = None
    as_string: Word | None = None
    as_sym_int: SymbolicInt | None = None
    as_sym_ints: list[SymbolicInt] | None = None
    as_sym_float: SymbolicFloat | None = None
    as_sym_bool: SymbolicBool | None = None
    as_scalar_type: int | None = None
    as_memory_format: int | None = None
    as_layout: int | None = None
    as_device: Device | None = None


class NamedArgument(_Part):
    name: str
    arg: Argument
    kind: Literal[1, 2]  # positional, by keyword


class Node(_Part):
    target: str
    inputs: list[NamedArgument]
    outputs: list[Argument]


class Graph(_Part):
    inputs: list[Argument]
    nodes: list[Node]
    tensor_values: dict[str, TensorMeta]


class UserInput(_Part):
    arg: Argument


class HeldTensor(_Part):
    """A parameter, buffer or constant: `arg` in the graph, `target` in the network."""

    arg: TensorName
    target: Path = Field(validation_alias=AliasChoices("parameter_name", "buffer_name", "tensor_constant_name"))


class ConstantValue(_Union):
    as_none: bool | None = None
    as_int: int | None = None
    as_float: float | None = None
    as_string: Word | None = None
    as_bool: bool | None = None


class ConstantInput(_Part):
    name: Name
    value: ConstantValue


class InputSpec(_Union):
    user_input: UserInput | None = None
    parameter: HeldTensor | None = None
    buffer: HeldTensor | None = None
    tensor_constant: HeldTensor | None = None
    constant_input: ConstantInput | None = None


class UserOutput(_Part):
    arg: Argument


class OutputSpec(_Union):
    user_output: UserOutput | None = None
    buffer_mutation: HeldTensor | None = None


class Signature(_Part):
    input_specs: list[InputSpec]
    output_specs: list[OutputSpec]


class CallSignature(_Part):
    in_spec: str
    out_spec: str
    forward_arg_names: list[Name] | None = None


class ModuleCall(_Part):
    fqn: str
    signature: CallSignature | None = None


class GraphModule(_Part):
    graph: Graph
    signature: Signature
    module_call_graph: list[ModuleCall]


class SchemaVersion(_Part):
    major: int


class ExportedFile(_Part):
    """models/model.json"""

    graph_module: GraphModule
    schema_version: SchemaVersion


class Payload(_Part):
    path_name: Path
    is_param: bool
    use_pickle: bool
    tensor_meta: TensorMeta | None = None


class Payloads(_Part):
    """data/weights/model_weights_config.json, and the same for constants"""

    config: dict[Path, Payload]


class Structure(_Part):
    """How inputs or outputs are nested: a leaf without a type, a tuple, a list, or a dictionary and its keys."""

    model_config = ConfigDict(extra="forbid")

    type: Literal[None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict"]
    context: str | None = None
    children_spec: list[Structure]
