"""nn.Module -> one ONNX file: dynamic batch, checked, compared with torch, free of local paths, repeatable to the byte.

The way there, and why. `torch.onnx.export` takes an ExportedProgram, decomposes it to simpler operators (a second
symbolic trace: 60 to 80 % of its seconds on ResNet-50 and MobileNetV2), translates and optimises it. A convolutional
network in eval mode needs no decomposition once writes in place are replaced by their pure twins and two operators have
a translation of their own (fxprune.emit.onnx_direct). Such a program answers `run_decompositions` with itself; every
other one, and every one whose file disagrees with torch, goes the full way. Measured with torch 2.13 on one thread,
torch.export included: ResNet-50 4.4 s -> 2.0 s, MobileNetV2 7.2 s -> 2.0 s, VGG-16 1.5 s -> 0.8 s. The older exporter
(`dynamo=False`) takes 0.3 to 1.1 s, but it is deprecated, and it bakes sizes that Python code reads from a shape into
the file without saying so.

Batch norms leave the exporter folded into the convolutions before them.
Source: https://docs.pytorch.org/docs/stable/onnx_export.html
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import onnx
import onnx_ir
import torch
from onnx_ir.passes.common import NameFixPass
from torch import nn
from torch.export import Dim, ExportedProgram, ShapesCollection

from fxprune.emit.onnx_compare import (
    arguments,
    difference,
    in_signature_order,
    leaves,
    named,
    output_names,
    with_tensors,
)
from fxprune.emit.onnx_direct import settle, slice_pools, translations
from fxprune.emit.onnx_file import check_size, finish, write
from fxprune.emit.onnx_rounding import TOLERANCE, allowed
from fxprune.errors import ExportError
from fxprune.program import Inputs
from fxprune.quiet import quiet

BATCHES = (1, 2, 5)


@dataclass(frozen=True)
class OnnxReport:
    """What was written. `size` in bytes, `difference` as compare_with_torch gives it and `tolerance` the most that was
    allowed, `seconds` by phase.
    """

    path: Path
    size: int
    opset: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    dynamic_batch: bool
    difference: float
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    tolerance: float = TOLERANCE


def export_onnx(
    module: nn.Module,
    inputs: Inputs,
    path: Path,
    *,
    opset: int | None = None,
    metadata: Mapping[str, str] = MappingProxyType({}),
    batches: Sequence[int] = BATCHES,
    dynamic_batch: bool = True,
) -> OnnxReport:
    """Write `module` in eval mode to `path`, replacing the file at once or not at all; the module is left as it was.

    Dimension 0 of every input tensor that shares the batch size (that of the first one) becomes the axis `batch`. Where
    the network insists on a size it stays fixed at that of the example, and the report's notes say so; without
    `dynamic_batch` it always does. Inputs carry the argument names of `forward`, outputs the keys of a dict, or
    `output`, or `output_0`, `output_1`, ...; an output that has the name of an input gets a number. `metadata` goes
    into the file as it is. `batches` are the sizes at which the file is compared with torch. Raises ExportError.
    """
    _check_request(module, opset)
    job = _Job(module, in_signature_order(module, inputs), Path(path), opset, metadata, batches, dynamic_batch)
    with _evaluating(module), quiet():
        model, report = _first_that_works(job)
    with job.timed("write"):
        write(model, job.path)
    return report


def compare_with_torch(
    module: nn.Module, path: Path, inputs: Inputs, *, batches: Sequence[int] = BATCHES, seed: int = 0
) -> float:
    """The largest max|a - b| / max|a| of any output at any batch size; a from torch, b from onnxruntime (one thread).

    Values are drawn from those of the example inputs, from a normal distribution where these are constant. A file with
    a fixed batch is run at that size only. Outputs of different shape count as infinitely far apart. Raises ExportError
    when either side cannot run.
    """
    try:
        with _evaluating(module), quiet():
            return difference(module, Path(path).read_bytes(), in_signature_order(module, inputs), batches, seed)
    except Exception as error:
        raise ExportError(f"cannot compare {path} with torch: {_reason(error)}") from error


class _RefusedError(Exception):
    """This way of exporting did not work; the next one may."""


class _UntraceableError(_RefusedError):
    """torch.export itself did not work, so that translating in another way is no help."""


@dataclass(frozen=True)
class _Job:
    module: nn.Module
    inputs: Inputs
    path: Path
    opset: int | None
    metadata: Mapping[str, str]
    batches: Sequence[int]
    dynamic_batch: bool = True
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def timed(self, phase: str, failure: type[Exception] | None = None) -> Iterator[None]:
        """Add the seconds to this phase, and turn what goes wrong in it into a `failure`."""
        start = time.perf_counter()
        try:
            yield
        except Exception as error:
            if failure is None or isinstance(error, failure):
                raise
            raise failure(_reason(error)) from error
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


# ---- the ways to a file, best first


def _first_that_works(job: _Job) -> tuple[bytes, OnnxReport]:
    reasons: list[str] = []
    for dynamic in (True, False) if job.dynamic_batch else (False,):
        for direct in (True, False):
            try:
                model, report = _attempt(job, dynamic, direct)
                fixed = _fixed_note(job, reasons) if job.dynamic_batch and not dynamic else ()
                return model, replace(report, notes=(*report.notes, *fixed))
            except _RefusedError as refused:
                reasons.append(str(refused))
                if isinstance(refused, _UntraceableError):
                    break
    raise ExportError(f"the network cannot be written as ONNX: {reasons[-1]}")


def _fixed_note(job: _Job, reasons: list[str]) -> tuple[str, ...]:
    batch = [tensor.shape[0] for tensor in leaves(job.inputs)[:1] if tensor.ndim]
    return tuple(f"the batch is fixed at {size}: {reasons[-1]}" for size in batch)


def _attempt(job: _Job, dynamic: bool, direct: bool) -> tuple[bytes, OnnxReport]:
    with job.timed("export", _UntraceableError):
        program = _dynamic_program(job) if dynamic else _fixed_program(job)
    with job.timed("translate", _RefusedError):
        slice_pools(program.graph)
        model = _translate(program, job.opset, direct and settle(program.graph))
        _rename(model, job)
    _check_opset(model.opset_imports[""], job.opset)
    with job.timed("serialise"):
        proto = onnx_ir.to_proto(model)
        blob = finish(proto, job.metadata)
    with job.timed("check", _RefusedError):
        onnx.checker.check_model(blob, full_check=True)
    with job.timed("compare", _RefusedError):
        gap = difference(job.module, blob, job.inputs, job.batches, 0) if job.batches else math.nan
    limit, notes = _judged(job, gap) if job.batches else (TOLERANCE, ())
    inputs, outputs = (tuple(value.name for value in values) for values in (proto.graph.input, proto.graph.output))
    used = model.opset_imports[""]
    return blob, OnnxReport(job.path, len(blob), used, inputs, outputs, dynamic, gap, job.seconds, notes, limit)


def _judged(job: _Job, gap: float) -> tuple[float, tuple[str, ...]]:
    """(tolerance, notes) of a file that differs by `gap` from torch."""
    limit = TOLERANCE if gap <= TOLERANCE else allowed(job.module, job.inputs)
    if not gap <= limit:
        raise _RefusedError(f"onnxruntime differs from torch by {gap:.1e}, more than {limit:.0e}")
    if gap <= TOLERANCE:
        return TOLERANCE, ()
    return limit, (f"onnxruntime and torch differ by {gap:.1e}: this network magnifies rounding (allowed {limit:.0e})",)


def _fixed_program(job: _Job) -> ExportedProgram:
    return torch.export.export(job.module, job.inputs.args, dict(job.inputs.kwargs), strict=False)


def _dynamic_program(job: _Job) -> ExportedProgram:
    """torch.export takes a batch of 1 for a constant, so that one is traced with 2."""
    inputs, tensors = job.inputs, leaves(job.inputs)
    size = tensors[0].shape[0] if tensors and tensors[0].ndim else None
    sharing = [tensor for tensor in tensors if tensor.ndim and tensor.shape[0] == size]
    if size == 1:
        swap = {id(tensor): torch.cat([tensor, tensor]) for tensor in sharing}
        inputs, sharing = with_tensors(inputs, swap), list(swap.values())
    shapes = ShapesCollection()
    for tensor in sharing:
        shapes[tensor] = {0: Dim.AUTO}
    args, kwargs = inputs.args, dict(inputs.kwargs)
    spec = shapes.dynamic_shapes(job.module, args, kwargs)
    program = torch.export.export(job.module, args, kwargs, dynamic_shapes=spec, strict=False)
    if not program.range_constraints:
        raise _UntraceableError("the network works with this batch size only")
    return program


def _translate(program: ExportedProgram, opset: int | None, direct: bool) -> onnx_ir.Model:
    if direct:
        program.run_decompositions = lambda *_, **__: program
    table = translations() if direct else None
    done = torch.onnx.export(program, opset_version=opset, verbose=False, custom_translation_table=table)
    assert done is not None  # None only from the older exporter
    return done.model


def _rename(model: onnx_ir.Model, job: _Job) -> None:
    """Give the ends of the graph their names. Whatever inside it had such a name already gets another one."""
    names = [name for name, _ in named("", arguments(job.module, job.inputs))]
    names += output_names(job.module(*job.inputs.args, **job.inputs.kwargs))
    for value, name in zip([*model.graph.inputs, *model.graph.outputs], names, strict=True):
        value.name = name
    NameFixPass()(model)


# ---- surroundings


def _check_request(module: nn.Module, opset: int | None) -> None:
    newest = onnx.defs.onnx_opset_version()
    if opset is not None and not 1 <= opset <= newest:
        raise ExportError(f"opset {opset} does not exist: choose one from 18 to {newest}")
    check_size(sum(tensor.nbytes for tensor in {*module.parameters(), *module.buffers()}))


def _check_opset(got: int, wanted: int | None) -> None:
    if wanted is not None and got != wanted:
        raise ExportError(f"the network cannot be written in opset {wanted}: choose {got}")


def _reason(error: BaseException) -> str:
    """The first line of what went wrong first: exporters wrap their errors several times, with advice in between."""
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, _RefusedError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300] if lines else 'no message'}"


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode without gradients; afterwards each part is in the mode it was in."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(modes[module])
        for part, mode in modes.items():
            part.training = mode
