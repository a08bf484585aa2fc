"""An ONNX file somebody gives us: read without running it, refused where it reaches outside its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from fxprune.errors import MeasureError, first_line

_FEEDABLE = {TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.BOOL}
_FEEDABLE |= {TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64}
_FEEDABLE |= {TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64}
_NO_WEIGHTS = {TensorProto.INT64, TensorProto.BOOL, TensorProto.STRING}  # shapes, indices, switches


@dataclass(frozen=True)
class Declared:
    """An input as the file declares it. A dimension is a number, or a name (perhaps empty) where it may vary."""

    name: str
    shape: tuple[int | str, ...]
    dtype: str


@dataclass(frozen=True)
class OnnxFile:
    """`model` without the numbers that lie in further files, of which `files` has the sizes in bytes by name."""

    path: Path
    model: ModelProto
    files: dict[str, int]


def read_onnx(path: Path) -> OnnxFile:
    """Raises MeasureError when `path` is no ONNX file, or names numbers outside its own folder."""
    if path.exists() and not path.is_file():
        raise MeasureError(f"{path} is no file that can be read whole")
    try:
        model = ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise MeasureError(f"{path}: {error.strerror}") from error
    except Exception as error:  # protobuf's own hierarchy, which comes without types
        raise MeasureError(f"{path} is no ONNX file: {first_line(error)}") from error
    if not model.graph.node or not model.graph.output:
        raise MeasureError(f"{path} is no ONNX file: it holds no graph with outputs")
    files = {path.name: path.stat().st_size}
    for tensor in tensors(model):
        for place in _places(tensor):
            files[place] = _size(path, place)
    return OnnxFile(path, model, files)


def _places(tensor: TensorProto) -> Iterator[str]:
    if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
        yield next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def _size(path: Path, place: str) -> int:
    """Size of a file with numbers. Runtimes differ in what they refuse; some older ones read any file or address."""
    folder = path.resolve().parent
    outside = not place or any(one(place).is_absolute() for one in (PurePosixPath, PureWindowsPath))
    if outside or not (folder / place).resolve().is_relative_to(folder):
        raise MeasureError(f"{path} is refused: it asks for numbers in {place!r}, which is not a file beside it")
    try:
        return (folder / place).stat().st_size
    except (OSError, ValueError) as error:
        raise MeasureError(f"{path} needs {place!r} beside it, which cannot be read") from error


def tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor stored in a model, at any depth."""
    yield from _in_graph(model.graph)
    for function in model.functions:
        yield from _in_nodes(function.node)
    for training in model.training_info:
        yield from _in_graph(training.initialization)
        yield from _in_graph(training.algorithm)


def _in_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _in_nodes(graph.node)


def _in_nodes(nodes: Sequence[NodeProto]) -> Iterator[TensorProto]:
    for attribute in (attribute for node in nodes for attribute in node.attribute):
        yield from _in_attribute(attribute)


def _in_attribute(attribute: AttributeProto) -> Iterator[TensorProto]:
    yield from (attribute.t, *attribute.tensors)  # what is not there is empty
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    if attribute.HasField("g"):
        yield from _in_graph(attribute.g)
    for graph in attribute.graphs:
        yield from _in_graph(graph)


def declared_inputs(file: OnnxFile) -> tuple[Declared, ...]:
    """The inputs that have to be fed, in order. Raises MeasureError for one that is no tensor of numbers."""
    stored = {one.name for one in file.model.graph.initializer}
    return tuple(_declared(file.path, one) for one in file.model.graph.input if one.name not in stored)


def _declared(path: Path, value: Any) -> Declared:
    kind = value.type.tensor_type
    if kind.elem_type not in _FEEDABLE:  # 0 for what is no tensor at all
        raise MeasureError(f"{path} cannot be fed: its input {value.name} is no tensor of numbers")
    if not kind.HasField("shape"):
        raise MeasureError(f"{path} cannot be fed: it does not say how many dimensions its input {value.name} has")
    shape = tuple(dim.dim_value if dim.dim_value > 0 else dim.dim_param for dim in kind.shape.dim)
    return Declared(value.name, shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name)


def count_parameters(file: OnnxFile) -> tuple[int, int]:
    """(numbers stored in initialisers, those of them that are not zero), without int64, bool and text ones."""
    total = nonzeros = 0
    for tensor in file.model.graph.initializer:
        if tensor.data_type in _NO_WEIGHTS:
            continue
        numbers = numpy_helper.to_array(tensor, str(file.path.resolve().parent))
        total += numbers.size
        nonzeros += int(np.count_nonzero(numbers))
    return total, nonzeros
