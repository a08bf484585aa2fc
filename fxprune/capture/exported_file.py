"""Reading a .pt2 file, as torch.export.save writes it, without torch.export.load.

torch.export.load unpickles the example inputs, and whatever the file says is pickled; it evaluates the expressions in
its JSON; it calls what the operators are named like. Nothing of that is needed: the weights lie in the archive as plain
bytes, the shapes of the inputs stand in the JSON, and a graph is a list of ATen operators.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor, nn

from fxprune.capture.exported import ExportedNetwork, from_program
from fxprune.capture.exported_graph import DTYPES, UnknownPartError, build_network
from fxprune.capture.exported_schema import (
    ARCHIVE_VERSION,
    SCHEMA_MAJOR,
    ExportedFile,
    Length,
    Payload,
    Payloads,
    TensorMeta,
)
from fxprune.errors import CaptureError, LoadError, UntrustedError, described

Part = TypeVar("Part", bound=BaseModel)
_WAY_OUT = (
    "Export the network again with torch.export.save of a recent torch, or, if you trust whoever made the file with "
    "your computer, read it without any check: --allow-pickle"
)


def read_exported(file: Path) -> ExportedNetwork:
    """The network in a .pt2 file; nothing in the file is unpickled, evaluated or called.

    Raises UntrustedError for what would need that: pickled tensors, objects, operators that are not ATen's, graphs
    within the graph. LoadError for a file that is damaged or of another version.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            return _read(_Records(archive))
    except UnknownPartError as error:
        raise UntrustedError(f"{file} was not loaded: {error}. {_WAY_OUT}") from error
    except _DamagedError as error:
        raise LoadError(f"{file} is damaged or no exported program that torch.export.save wrote: {error}") from error
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise LoadError(f"{file} is truncated or damaged") from error
    except Exception as error:  # references in a damaged graph can go wrong in any way
        raise LoadError(f"{file} is damaged: its graph cannot be put together ({described(error)})") from error


def read_unrestricted(file: Path) -> tuple[ExportedNetwork, str]:
    """The network as torch.export.load reads it, which may run any code, and a note saying so. Raises LoadError."""
    try:
        network = from_program(torch.export.load(file))
    except CaptureError as error:
        raise LoadError(f"{file}: {error}") from error
    except Exception as error:  # it may do anything, so it may fail in any way
        raise LoadError(f"{file} cannot be read: {described(error)}") from error
    return network, "torch.export.load read the file, as --allow-pickle asks: whatever code it holds may have run"


class _DamagedError(Exception):
    """The file is not what torch.export.save writes."""


class _Records:
    """Contents of an archive by name, without the folder that all of it lies in."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.infos = {info.filename.partition("/")[2]: info for info in archive.infolist()}

    def read(self, name: str) -> bytes:
        info = self.infos.get(name)
        if info is None:
            raise _DamagedError(f"it has no {name}")
        if info.compress_type != zipfile.ZIP_STORED:  # a few bytes could become any number of them
            raise _DamagedError(f"{name} is compressed")
        return self.archive.read(info)


def _read(records: _Records) -> ExportedNetwork:
    program = _parse(ExportedFile, records, "models/model.json")
    archive, major = records.read("archive_version").decode("ascii", "replace"), program.schema_version.major
    if archive != ARCHIVE_VERSION or major != SCHEMA_MAJOR:
        raise UnknownPartError(
            f"it was written by a torch that is too old or too new (archive version {archive[:20]!r}, schema {major}; "
            f"known are {ARCHIVE_VERSION!r} and {SCHEMA_MAJOR})"
        )
    tensors = dict(_tensors(records, "data/weights", "weights"))
    tensors |= _tensors(records, "data/constants", "constants")
    return build_network(program.graph_module, tensors)


def _parse(kind: type[Part], records: _Records, name: str) -> Part:
    try:
        return kind.model_validate_json(records.read(name))
    except ValidationError as error:
        found = error.errors(include_url=False)[0]
        place = ".".join(map(str, found["loc"]))
        raise UnknownPartError(f"{name} holds {str(found['input'])[:60]!r} at {place} ({found['msg']})") from error


def _tensors(records: _Records, folder: str, kind: str) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of one kind by name. Names that share a record share the tensor, as tied weights do."""
    config = _parse(Payloads, records, f"{folder}/model_{kind}_config.json").config
    found: dict[str, Tensor] = {}
    for name, payload in config.items():
        place = payload.model_dump_json()
        if place not in found:
            found[place] = _tensor(records, folder, name, payload)
        yield name, found[place]


def _tensor(records: _Records, folder: str, name: str, payload: Payload) -> Tensor:
    meta = payload.tensor_meta
    if payload.use_pickle or meta is None:
        raise UnknownPartError(f"{name} is pickled in it")
    tensor = _strided(records.read(f"{folder}/{payload.path_name}"), meta, name)
    return nn.Parameter(tensor, requires_grad=meta.requires_grad) if payload.is_param else tensor


def _strided(record: bytes, meta: TensorMeta, name: str) -> Tensor:
    """The bytes as a tensor."""
    dtype = DTYPES.get(meta.dtype)
    if dtype is None:
        raise UnknownPartError(f"{name} has type {meta.dtype}")
    sizes, strides, offset = _fixed(meta.sizes), _fixed(meta.strides), _fixed([meta.storage_offset])[0]
    count = len(record) // dtype.itemsize
    last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    if len(record) % dtype.itemsize or math.prod(sizes) > count or (0 not in sizes and last >= count):
        raise _DamagedError(f"{name} does not fit its record of {len(record)} bytes")
    flat = torch.frombuffer(bytearray(record), dtype=dtype) if count else torch.empty(0, dtype=dtype)
    return flat.as_strided(sizes, strides, offset)


def _fixed(lengths: list[Length]) -> list[int]:
    found = [one.as_int for one in lengths if one.as_int is not None]
    if len(found) != len(lengths):
        raise UnknownPartError("a weight has a size that may change")
    return found
