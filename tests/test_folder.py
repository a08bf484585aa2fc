"""The artefact folder: written whole or not at all, and never in the place of somebody else's files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as load_tensors
from torch import Tensor

from fxprune.emit import folder as folders
from fxprune.emit.onnx import OnnxReport
from fxprune.errors import ExportError

FILES = ["model.onnx", "model.safetensors", "recipe.json", "report.json"]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Done:
    """A result that is written in no time."""

    class report:
        @staticmethod
        def to_dict() -> dict[str, Any]:
            return {"notes": []}

    class recipe:
        @staticmethod
        def to_json() -> str:
            return "{}"

    def __init__(self, value: float = 1.0) -> None:
        self.weight = torch.full((2, 3), value)

    def state_dict(self) -> dict[str, Tensor]:
        return {"a.weight": self.weight, "b.weight": self.weight, "c": self.weight.T}

    def to_onnx(self, path: Path, *, opset: int | None = None) -> OnnxReport:
        path.write_bytes(b"onnx")
        return OnnxReport(path, 4, 20, ("x",), ("output",), True, 1e-7, {})


def write(folder: Path, value: float = 1.0, force: bool = False) -> folders.Written:
    done: Any = Done(value)
    return folders.write_folder(done, folder, force=force)


def test_folders_above_are_made_and_tied_weights_are_written(workplace: Path) -> None:
    written = write(workplace / "a" / "b")
    assert sorted(written.sizes) == FILES
    tensors = load_tensors(workplace / "a" / "b" / "model.safetensors")
    assert {name: list(one.shape) for name, one in tensors.items()} == {
        "a.weight": [2, 3],
        "b.weight": [2, 3],
        "c": [3, 2],
    }
    assert [one.name for one in (workplace / "a").iterdir()] == ["b"]


def test_force_replaces_the_whole_folder(workplace: Path) -> None:
    write(workplace / "out")
    (workplace / "out" / "report.json").unlink()
    with pytest.raises(ExportError, match="exists already"):
        write(workplace / "out", 2.0)
    assert value_in(workplace / "out") == 1.0
    write(workplace / "out", 2.0, force=True)
    assert value_in(workplace / "out") == 2.0
    assert sorted(one.name for one in (workplace / "out").iterdir()) == FILES
    assert [one.name for one in workplace.iterdir()] == ["out"]


def value_in(folder: Path) -> float:
    return float(load_tensors(folder / "model.safetensors")["a.weight"][0, 0])


def test_force_does_not_replace_what_fxprune_did_not_write(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(workplace / "out")
    (workplace / "out" / "thesis.tex").touch()
    with pytest.raises(ExportError, match=r"holds thesis\.tex, which fxprune did not write"):
        write(workplace / "out", force=True)
    (workplace / "out" / "thesis.tex").unlink()
    monkeypatch.chdir(workplace / "out")
    with pytest.raises(ExportError, match="from inside it"):
        write(Path("."), force=True)
    assert value_in(workplace / "out") == 1.0


@pytest.mark.parametrize("failing", [1, 2])
def test_swap_that_fails_brings_the_old_folder_back(
    failing: int, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(workplace / "out")
    rename, calls = os.rename, []

    def fail(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(ExportError, match="cannot write .*out: No space left on device"):
        write(workplace / "out", 2.0, force=True)
    assert value_in(workplace / "out") == 1.0
    assert [one.name for one in workplace.iterdir()] == ["out"]


def test_folder_without_permission_is_refused_at_once(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def access(path: Path, _mode: int) -> bool:
        asked.append(path)
        return False

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(ExportError, match="no permission to create files in"):
        folders.check_folder(Path("new/er"), force=False)
    assert asked == [workplace.resolve()]
