"""The folder appears whole or not at all: renames that fail, writers that were killed, disks that are full."""

from __future__ import annotations

import os
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from quick_folders import Done, value_in, write

from fxprune.emit import atomic
from fxprune.errors import ExportError


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
