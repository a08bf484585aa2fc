"""`fxprune learn` and `train` killed with SIGKILL: what comes out in the end is the same, byte for byte."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import kill_learn
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are forked")


@pytest.mark.parametrize(("command", "kills"), [("learn", 3), pytest.param("train", 6, marks=pytest.mark.wide)])
def test_killed_at_random_moments(command: str, kills: int, tmp_path: Path) -> None:
    with kill_learn.serving(tmp_path) as runs:
        told = list(kill_learn.kill_and_resume(command, tmp_path, runs, kills, random.Random(4)))
    assert sum(line.startswith("killed") for line in told) == kills
    assert told[-1] == f"resumed to the end; {len(kill_learn.FILES)} files equal those of the whole run"


def test_other_files_are_noticed(tmp_path: Path) -> None:
    for folder in ("whole", "killed"):
        (tmp_path / folder).mkdir()
        for name in kill_learn.FILES:
            (tmp_path / folder / name).write_text(name)
    assert kill_learn.compared(tmp_path)
    (tmp_path / "killed" / "model.safetensors").write_text("other")
    with pytest.raises(AssertionError, match="model.safetensors differs"):
        kill_learn.compared(tmp_path)
