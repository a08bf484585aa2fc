"""The bytes of an ONNX file: scrubbed, with a named batch axis and provenance, written at once or not at all."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx

from fxprune.emit.atomic import flush_entry
from fxprune.errors import ExportError

SIZE_LIMIT = 2**31 - 1


def finish(proto: onnx.ModelProto, metadata: Mapping[str, str]) -> bytes:
    """Empty every note, call the batch axis `batch`, store `metadata`, and serialise. Raises ExportError."""
    _scrub(proto)
    _name_batch(proto.graph)
    onnx.helper.set_model_props(proto, dict(sorted(metadata.items())))
    check_size(proto.ByteSize())
    return bytes(proto.SerializeToString(deterministic=True))


def _scrub(message: Any) -> None:
    """Empty all notes at every level: the exporter leaves stack traces with local paths in them."""
    for name in {"doc_string", "metadata_props"}.intersection(message.DESCRIPTOR.fields_by_name):
        message.ClearField(name)
    if isinstance(message, onnx.TensorProto):
        return
    for _, value in message.ListFields():
        for child in [value] if hasattr(value, "ListFields") else value if hasattr(value, "add") else ():
            _scrub(child)


def _name_batch(graph: onnx.GraphProto) -> None:
    """torch.export calls sizes s77; every one that leads an input is the batch, also inside `2*s77`."""
    leading = [value.type.tensor_type.shape.dim[:1] for value in graph.input]
    symbols = {dim.dim_param for dims in leading for dim in dims if dim.dim_param}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: "batch" if word[0] in symbols else word[0], dim.dim_param)


def write(blob: bytes, path: Path) -> None:
    """Write beside `path`, then rename over it: a reader sees the old file or the new one. Raises ExportError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        draft.write_bytes(blob)
        flush_entry(draft)
        os.replace(draft, path)
    except OSError as error:
        raise ExportError(f"cannot write {path}: {error.strerror}") from error
    finally:  # also when somebody interrupts the writing
        with suppress(OSError):
            draft.unlink()


def check_size(size: int) -> None:
    """Raises ExportError when so many bytes do not fit into one file without external data."""
    if size > SIZE_LIMIT:
        raise ExportError(f"the network takes {size:,} bytes; one ONNX file ends at {SIZE_LIMIT:,}: prune more")
