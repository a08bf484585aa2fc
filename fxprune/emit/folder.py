"""The artefact folder: everything a compilation leaves behind, written at once or not at all."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save
from torch import Tensor

from fxprune.emit.atomic import new_folder
from fxprune.emit.onnx import OnnxReport
from fxprune.emit.page import report_page
from fxprune.emit.source_proof import ProvedSource
from fxprune.emit.source_text import SourceError
from fxprune.errors import ExportError, OptionError
from fxprune.phases import measured, phase, seconds_so_far
from fxprune.recipe import Recipe
from fxprune.runtime.measured import Measured

EMITTED = {"onnx": "model.onnx", "source": "model.py", "weights": "model.safetensors"}
ARTEFACTS = (*EMITTED.values(), "recipe.json", "report.json", "report.html")
AFTER_TRAINING = ("history.json", "learning.png")  # beside them
DURING_TRAINING = ("checkpoint.pt", "checkpoint.pt.part", "structure.pt", "structure.pt.part")
_LEFT_BY_PYTHON = "__pycache__"  # by whoever imports model.py


class Told(Protocol):
    """What report.json is written from: `fxprune.report.Report`."""

    def to_dict(self) -> dict[str, Any]: ...


class Result(Protocol):
    """What a folder is written from: `fxprune.Compiled`."""

    @property
    def report(self) -> Told: ...

    @property
    def recipe(self) -> Recipe: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def to_onnx(self, path: str | Path, *, opset: int | None = None) -> Any: ...

    def to_source(self) -> ProvedSource: ...


@dataclass(frozen=True)
class Written:
    """What lies in the folder. `sizes` in bytes by file name; `document` is the content of report.json; `notes` say
    what a reader of the files should know; `onnx` and `measured` are None when nobody asked for them.
    """

    folder: Path
    onnx: OnnxReport | None
    sizes: Mapping[str, int]
    document: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    measured: Measured | None = None


def check_folder(folder: Path, force: bool) -> None:
    """Raise ExportError unless `folder` can be written: new, or with `force` one that holds nothing but artefacts."""
    try:
        _check_ground(folder, force)
    except (OSError, RuntimeError) as error:  # RuntimeError: Path.resolve, of links that lead to each other
        raise ExportError(f"cannot write {folder}: {getattr(error, 'strerror', None) or error}") from error


def _check_ground(folder: Path, force: bool) -> None:
    ground = next(one for one in (folder, *folder.resolve().parents) if os.path.lexists(one))
    if not ground.is_dir():
        raise ExportError(f"{ground} is a file: name another output folder with -o")
    if ground == folder:
        _check_replaceable(folder, force)
    box = folder.resolve().parent if ground == folder else ground
    if not os.access(box, os.W_OK | os.X_OK):
        raise ExportError(f"cannot write {folder}: no permission to create files in {box}")


def _check_replaceable(folder: Path, force: bool) -> None:
    """Replacing a folder deletes it, so that it has to be one of ours."""
    if not force:
        raise ExportError(f"{folder} exists already: replace it with --force, or name another output folder with -o")
    if Path.cwd().is_relative_to(folder.resolve()):
        raise ExportError(f"{folder} cannot be replaced from inside it: name another output folder with -o")
    known = (*ARTEFACTS, *AFTER_TRAINING, *DURING_TRAINING, _LEFT_BY_PYTHON)
    foreign = sorted({entry.name for entry in folder.iterdir()}.difference(known))
    if foreign:
        raise ExportError(
            f"{folder} is not replaced, because it holds {', '.join(foreign[:3])}{' and more' * (len(foreign) > 3)}, "
            "which fxprune did not write: move that away, or name another output folder with -o"
        )


def write_folder(
    done: Result,
    folder: Path,
    *,
    force: bool = False,
    opset: int | None = None,
    emit: Collection[str] = tuple(EMITTED),
    about: Mapping[str, Any] | None = None,
    measure: Callable[[OnnxReport, Path], Measured] | None = None,
    beside: Mapping[str, bytes] | None = None,
) -> Written:
    """Write the artefacts of a compilation into `folder`, creating the folders above it.

    force    replace a folder that an earlier call wrote, whole
    opset    of the ONNX file, see `export_onnx`
    emit     which of "onnx", "source" and "weights" to write; recipe.json, report.json and report.html are always
             written
    about    what report.json says first: plain data
    measure  called with the ONNX file, where it lies before everything is moved to `folder`, and with a folder that
             vanishes
    beside   further files: history.json and learning.png of training

    model.safetensors holds `done.state_dict()`; a tied tensor is in it under each of its names. model.py has been run
    and compared with the network, or is left out, and the notes say why. The folder appears whole or not at all. Raises
    ExportError, OptionError for an `emit` that does not exist.
    """
    _check_emit(emit)
    check_folder(folder, force)
    try:
        with measured(), new_folder(folder.resolve(), lambda: check_folder(folder, force)) as draft:
            found = _write_all(done, draft, emit, opset, measure)
            report = done.report.to_dict()
            document = {**(about or {}), **report, **found.parts(), "files": _sizes(draft)}
            document["seconds"] = {**seconds_so_far(), **report.get("seconds", {})}
            for name, content in (beside or {}).items():
                (draft / name).write_bytes(content)
            (draft / "report.json").write_text(json.dumps(document, indent=1), "utf-8")
            (draft / "report.html").write_text(report_page(document), "utf-8")
            sizes = _sizes(draft)
    except (OSError, ExportError) as error:
        reason = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(reason, OSError):
            raise
        raise ExportError(f"cannot write {folder}: {reason.strerror or reason}") from error
    return Written(folder, found.onnx, sizes, document, found.notes(), found.measured)


def _check_emit(emit: Collection[str]) -> None:
    unknown = [name for name in emit if name not in EMITTED]
    if unknown or isinstance(emit, str):
        raise OptionError(f"{emit!r} is nothing to emit: choose from {', '.join(EMITTED)}")


@dataclass
class _Found:
    """What there is to say about the files. `left_out` is why there is no model.py though it was asked for."""

    onnx: OnnxReport | None = None
    source: ProvedSource | None = None
    left_out: str = ""
    measured: Measured | None = None

    def parts(self) -> dict[str, Any]:
        """Of report.json."""
        found = {"onnx": _plain(self.onnx, "path"), "source": _plain(self.source, "source")}
        if self.left_out:
            found["source"] = {"left_out": self.left_out}
        if self.measured:
            found["measured"] = self.measured.to_dict()
        return {name: part for name, part in found.items() if part is not None}

    def notes(self) -> tuple[str, ...]:
        left_out = (f"there is no model.py: {self.left_out}",) if self.left_out else ()
        parts = [part.notes for part in (self.onnx, self.source) if part is not None]
        return (*(note for notes in parts for note in notes), *left_out)


def _write_all(
    done: Result,
    draft: Path,
    emit: Collection[str],
    opset: int | None,
    measure: Callable[[OnnxReport, Path], Measured] | None,
) -> _Found:
    """Everything but the report."""
    found = _Found()
    if "onnx" in emit or measure:
        with phase("export"):
            onnx = done.to_onnx((draft if "onnx" in emit else draft.parent) / "model.onnx", opset=opset)
        found.onnx = onnx if "onnx" in emit else None
    with phase("write"):
        if "source" in emit:
            try:
                with phase("source"):
                    found.source = done.to_source()
                (draft / "model.py").write_text(found.source.source.text, "utf-8")
            except SourceError as error:
                found.left_out = str(error)
        if "weights" in emit:
            (draft / "model.safetensors").write_bytes(save(apart(done.state_dict())))
        recipe = done.recipe.with_files({name: _sha256(draft / name) for name in _sizes(draft)})
        (draft / "recipe.json").write_text(recipe.to_json(), "utf-8")
    if measure:
        found.measured = measure(onnx, draft.parent)
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """safetensors refuses tensors that share memory, as tied weights do, and those with gaps."""
    seen: set[int] = set()
    found = {}
    for name, tensor in state.items():
        packed = tensor.detach().contiguous()
        found[name] = packed.clone() if packed.data_ptr() in seen else packed
        seen.add(packed.data_ptr())
    return found


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in ARTEFACTS if (folder / name).exists()}


def _plain(part: OnnxReport | ProvedSource | None, left_out: str) -> dict[str, Any] | None:
    """All but the path, which names the temporary folder, or the text, which is a file of its own."""
    return None if part is None else {name: value for name, value in asdict(part).items() if name != left_out}
