"""The artefact folder: written whole or not at all, and never in the place of somebody else's files."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import pytest
from quick_folders import FILES, Done, value_in, write
from safetensors.torch import load_file as load_tensors

from fxprune.emit import folder as folders
from fxprune.emit.onnx import OnnxReport
from fxprune.emit.source_proof import ProvedSource
from fxprune.emit.source_text import SourceError
from fxprune.errors import ExportError, OptionError
from fxprune.recipe import Recipe


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


def test_a_place_that_cannot_be_looked_at_is_no_place_to_write(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "loop").symlink_to(workplace / "loop")
    for place in (workplace / "loop", workplace / "loop" / "out"):
        with pytest.raises(ExportError, match="cannot write .*[Ll]oop"):
            write(place, force=True)
    write(workplace / "out")

    def refuse(_: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(ExportError, match=r"cannot write .*out: Permission denied"):
        write(workplace / "out", force=True)


# ---- what is written


@pytest.mark.parametrize("left_out", ["onnx", "source", "weights"])
def test_artefacts_that_nobody_asked_for_are_left_out(left_out: str, workplace: Path) -> None:
    emit = [one for one in folders.EMITTED if one != left_out]
    written = write(workplace / "out", emit=emit)
    missing = {"onnx": "model.onnx", "source": "model.py", "weights": "model.safetensors"}[left_out]
    assert sorted(written.sizes) == [name for name in FILES if name != missing]
    recipe = Recipe.from_json((workplace / "out" / "recipe.json").read_bytes())
    assert missing not in recipe.files and len(recipe.files) == 2
    assert written.document.get("onnx") is None if left_out == "onnx" else written.document["onnx"]


@pytest.mark.parametrize("emit", [["onnx", "tflite"], "onnx"])
def test_unknown_artefacts_are_refused(emit: Any, workplace: Path) -> None:
    with pytest.raises(OptionError, match="choose from onnx, source, weights"):
        write(workplace / "out", emit=emit)
    assert not (workplace / "out").exists()


def test_onnx_for_measuring_alone_is_not_kept(workplace: Path) -> None:
    seen = []

    def measure(report: OnnxReport, box: Path) -> None:
        seen.append(report.path.exists())
        (box / "dense.onnx").write_bytes(b"for a while")

    written = write(workplace / "out", emit=["weights"], measure=measure)
    assert seen == [True] and written.onnx is None
    assert sorted(one.name for one in (workplace / "out").iterdir()) == FILES[2:]
    assert [one.name for one in workplace.iterdir()] == ["out"]


def test_network_that_has_no_source_is_written_without_and_says_so(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: Done) -> ProvedSource:
        raise SourceError("act is a layer of my_train.py")

    monkeypatch.setattr(Done, "to_source", refuse)
    written = write(workplace / "out")
    assert "model.py" not in written.sizes
    assert written.notes == ("the batch is fixed", "there is no model.py: act is a layer of my_train.py")
    assert written.document["source"] == {"left_out": "act is a layer of my_train.py"}


def test_hashes_are_those_of_the_files(workplace: Path) -> None:
    write(workplace / "out")
    recipe = Recipe.from_json((workplace / "out" / "recipe.json").read_bytes())
    for name, digest in recipe.files.items():
        assert hashlib.sha256((workplace / "out" / name).read_bytes()).hexdigest() == digest


def test_bytes_that_python_leaves_do_not_hinder_replacing(workplace: Path) -> None:
    write(workplace / "out")
    (workplace / "out" / "__pycache__").mkdir()
    (workplace / "out" / "__pycache__" / "model.cpython-311.pyc").touch()
    write(workplace / "out", 2.0, force=True)
    assert sorted(one.name for one in (workplace / "out").iterdir()) == FILES


def test_folder_without_permission_is_refused_at_once(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def access(path: Path, _mode: int) -> bool:
        asked.append(path)
        return False

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(ExportError, match="no permission to create files in"):
        folders.check_folder(Path("new/er"), force=False)
    assert asked == [workplace.resolve()]
