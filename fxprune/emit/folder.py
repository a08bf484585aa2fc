"""The artefact folder: everything a compilation leaves behind, written at once or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

from safetensors.torch import save
from torch import Tensor

from fxprune.emit.onnx import OnnxReport
from fxprune.errors import ExportError
from fxprune.phases import measured, phase, seconds_so_far
from fxprune.recipe import Recipe
from fxprune.report import Report
from fxprune.runtime.measured import Measured

ARTEFACTS = ("model.onnx", "model.safetensors", "recipe.json", "report.json")


class Result(Protocol):
    """What a folder is written from: `fxprune.Compiled`."""

    @property
    def report(self) -> Report: ...

    @property
    def recipe(self) -> Recipe: ...

    def state_dict(self) -> dict[str, Tensor]: ...

    def to_onnx(self, path: str | Path, *, opset: int | None = None) -> Any: ...


@dataclass(frozen=True)
class Written:
    """What lies in the folder. `sizes` in bytes by file name; `document` is the content of report.json; `measured` is
    None when nobody asked for it.
    """

    folder: Path
    onnx: OnnxReport
    sizes: Mapping[str, int]
    document: Mapping[str, Any]
    measured: Measured | None = None


def check_folder(folder: Path, force: bool) -> None:
    """Raise ExportError unless `folder` can be written: new, or with `force` one that holds nothing but artefacts."""
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
    foreign = sorted({entry.name for entry in folder.iterdir()}.difference(ARTEFACTS))
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
    about: Mapping[str, Any] | None = None,
    measure: Callable[[OnnxReport], Measured] | None = None,
) -> Written:
    """Write all artefacts of a compilation into `folder`, creating the folders above it.

    force    replace a folder that an earlier call wrote, whole
    opset    of the ONNX file, see `export_onnx`
    about    what report.json says first: plain data
    measure  called with the ONNX file, where it lies before everything is moved to `folder`

    model.safetensors holds `done.state_dict()`; a tied tensor is in it under each of its names. Everything is written
    to a temporary folder beside `folder`, which is renamed at the end. Raises ExportError.
    """
    check_folder(folder, force)
    try:
        with measured(), _draft(folder.resolve(), force) as draft:
            with phase("export"):
                onnx = done.to_onnx(draft / "model.onnx", opset=opset)
            with phase("write"):
                (draft / "model.safetensors").write_bytes(save(_apart(done.state_dict())))
                (draft / "recipe.json").write_text(done.recipe.to_json(), "utf-8")
            measured_now = measure(onnx) if measure else None
            report = done.report.to_dict()
            document = {**(about or {}), **report, "onnx": _onnx_part(onnx), "files": _sizes(draft)}
            document |= {"measured": measured_now.to_dict()} if measured_now else {}
            document["seconds"] = {**seconds_so_far(), **report.get("seconds", {})}
            (draft / "report.json").write_text(json.dumps(document, indent=1), "utf-8")
            sizes = _sizes(draft)
    except OSError as error:
        raise ExportError(f"cannot write {folder}: {error.strerror or error}") from error
    return Written(folder, onnx, sizes, document, measured_now)


@contextmanager
def _draft(folder: Path, force: bool) -> Iterator[Path]:
    """An empty folder that takes the place of `folder` when all went well, and vanishes otherwise."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(".part", f".{folder.name}.", folder.parent, ignore_cleanup_errors=True) as box:
        draft, old = Path(box) / "new", Path(box) / "old"
        draft.mkdir()
        yield draft
        check_folder(folder, force)  # again: writing took a while
        _swap(draft, folder, old)


def _swap(draft: Path, folder: Path, old: Path) -> None:
    """`folder` moves to `old` and `draft` to `folder`; what was there comes back when that is interrupted."""
    try:
        if folder.exists():
            os.rename(folder, old)
        os.rename(draft, folder)
    except BaseException:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        raise


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
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


def _onnx_part(onnx: OnnxReport) -> dict[str, Any]:
    """All but the path, which names the temporary folder."""
    return {name: value for name, value in asdict(onnx).items() if name != "path"}
