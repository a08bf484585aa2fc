"""The artefact folder: written whole or not at all, and never in the place of somebody else's files."""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file as load_tensors
from torch import Tensor

from fxprune.emit import atomic
from fxprune.emit import folder as folders
from fxprune.emit.onnx import OnnxReport
from fxprune.emit.source import Source
from fxprune.emit.source_proof import ProvedSource
from fxprune.emit.source_text import SourceError
from fxprune.errors import ExportError, OptionError
from fxprune.recipe import Recipe

FILES = ["model.onnx", "model.py", "model.safetensors", "recipe.json", "report.html", "report.json"]


class Done:
    """A result that is written in no time."""

    class report:
        @staticmethod
        def to_dict() -> dict[str, Any]:
            cost = {"parameters": 6, "nonzeros": 6, "macs": 6, "bytes": 24}
            none: dict[str, Any] = dict.fromkeys(["average_sparsity", "achieved_sparsity", "proof_error"])
            return {"before": cost, "after": cost, "layers": (), "groups": (), "asked": {}, "refused": {}, "notes": [],
                    "repaired_rows": {}, "densified": (), "lifted": (), **none}  # fmt: skip

    recipe = Recipe(
        kept={}, kept_per_group={}, numbers={}, shapes={}, indices={}, patched=(), options={}, versions={}
    )  # fmt: skip

    def __init__(self, value: float = 1.0) -> None:
        self.weight = torch.full((2, 3), value)

    def state_dict(self) -> dict[str, Tensor]:
        return {"a.weight": self.weight, "b.weight": self.weight, "c": self.weight.T}

    def to_onnx(self, path: Path, *, opset: int | None = None) -> OnnxReport:
        path.write_bytes(b"onnx")
        return OnnxReport(path, 4, 20, ("x",), ("output",), True, 1e-7, {}, ("the batch is fixed",))

    def to_source(self) -> ProvedSource:
        return ProvedSource(Source("source", "Net", ()), 0.0, 0.0)


def write(folder: Path, value: float = 1.0, force: bool = False, **more: Any) -> folders.Written:
    done: Any = Done(value)
    return folders.write_folder(done, folder, force=force, **more)


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


@pytest.mark.parametrize("failing", [1, 2])
def test_rename_that_fails_brings_the_old_folder_back(
    failing: int, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where folders cannot be exchanged in one step: the old folder goes, the new one comes."""
    write(workplace / "out")
    rename, calls = os.rename, []

    def fail(source: Path, target: Path) -> None:
        calls.append(source)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    monkeypatch.setattr(atomic, "_exchanged", lambda *_: False)
    with pytest.raises(ExportError, match="cannot write .*out: No space left on device"):
        write(workplace / "out", 2.0, force=True)
    assert value_in(workplace / "out") == 1.0
    assert [one.name for one in workplace.iterdir()] == ["out"]


@pytest.mark.parametrize("at_once", [True, False])
def test_folder_is_there_all_the_time_where_it_can_be(
    at_once: bool, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Planted: with two renames there is a moment without it."""
    seen = []
    if not at_once:
        monkeypatch.setattr(atomic, "_exchanged", lambda *_: False)
    write(workplace / "out")
    for name in ("rename", "fsync"):
        act = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, act=act: (act(*args), seen.append((workplace / "out").exists())))
    write(workplace / "out", 2.0, force=True)
    assert seen and all(seen) is at_once
    assert value_in(workplace / "out") == 2.0


def test_boxes_of_killed_runs_are_removed_and_those_of_living_ones_are_not(workplace: Path) -> None:
    (workplace / ".out.killed.part" / "new").mkdir(parents=True)
    (workplace / ".other.killed.part").mkdir()
    with atomic.new_folder(workplace / "out", lambda: None):
        (living,) = (one for one in workplace.glob(".out.*.part") if one.name != ".out.killed.part")
        assert not (workplace / ".out.killed.part").exists()
        write(workplace / "out")
        assert living.exists()
    assert sorted(one.name for one in workplace.iterdir()) == [".other.killed.part", "out"]


def test_box_that_is_swept_before_it_has_its_lock_is_given_up(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another writer comes between the two steps: while it sweeps, and when it is done."""
    make, made, sweeping = tempfile.mkdtemp, [], ExitStack()

    def swept(**where: Any) -> str:
        made.append(make(**where))
        if len(made) == 1:
            sweeping.enter_context(atomic.locked(Path(made[0])))
        elif len(made) == 2:
            os.rmdir(made[1])
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", swept)
    with sweeping:
        write(workplace / "out")
    assert len(made) == 3 and value_in(workplace / "out") == 1.0
    monkeypatch.undo()
    write(workplace / "out", 2.0, force=True)
    assert [one.name for one in workplace.iterdir()] == ["out"], "no box without a lock outlives the next writer"


def test_folder_that_a_killed_run_had_moved_away_comes_back(workplace: Path) -> None:
    write(workplace / "out")
    box = workplace / ".out.killed.part"
    box.mkdir()
    (workplace / "out").rename(box / "old")
    with pytest.raises(ExportError, match="exists already"):
        write(workplace / "out", 2.0)
    assert value_in(workplace / "out") == 1.0 and not box.exists()


def test_full_disk_leaves_nothing(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ExportError, match="cannot write .*out: No space left on device"):
        write(workplace / "out")
    assert list(workplace.iterdir()) == []


@pytest.mark.parametrize("full", [OSError(28, "No space left on device"), None])
def test_disk_that_is_full_when_the_onnx_file_comes_is_told_by_the_folder_s_name(
    full: OSError | None, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_done: Done, path: Path, **_: Any) -> None:
        raise ExportError(f"cannot write {path}: some reason") from full

    monkeypatch.setattr(Done, "to_onnx", refuse)
    complaint = "cannot write .*/out: No space left on device$" if full else "new/model.onnx: some reason"
    with pytest.raises(ExportError, match=complaint):
        write(workplace / "out")
    assert list(workplace.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for small files only")
def test_files_that_cannot_grow_leave_nothing(workplace: Path) -> None:
    """The kernel refuses a write in the middle, as on a full disk."""
    import resource

    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            write(workplace / "out")
        except ExportError as error:
            os._exit(7 if str(error).endswith("/out: File too large") else 8)
        os._exit(9)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    assert list(workplace.iterdir()) == []


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
