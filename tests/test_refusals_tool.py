"""tools/refusals.py: a program that refuses passes, one that does anything else does not."""

from __future__ import annotations

import argparse
import shlex
import sys

import pytest
import refusals
from refusal_cases import cases

LINE = "print('error: net.pt does not exist; sparsity not 1.5; os.system', file=sys.stderr)"
FAULTS = {
    "accepts": (f"{LINE}", "it was not refused"),
    "says nothing": ("sys.exit(2)", "is not one line"),
    "says two lines": (f"{LINE}; {LINE}; sys.exit(2)", "is not one line"),
    "says something else": ("sys.exit('error: no')", "the line does not say"),
    "shows a traceback": ("raise SystemError", "nobody has thought of it"),
    "was not foreseen": ("sys.exit('error: not foreseen: x')", "nobody has thought of it"),
    "prints": (f"{LINE}; print(1); sys.exit(2)", "stdout holds"),
    "writes": (f"{LINE}; open('x', 'w').close(); sys.exit(2)", "written or removed: x"),
    "removes": (f"{LINE}; os.path.exists('net.pt') and os.remove('net.pt'); sys.exit(2)", "written or removed: net.pt"),
    "is killed": (f"{LINE}; os.kill(os.getpid(), 9)", "it ended by signal 9"),
    "unpickles": (
        "import pickle, zipfile; archive = zipfile.ZipFile('net.pt');"
        "name = [one for one in archive.namelist() if one.endswith('data.pkl')][0];"
        f"pickle.loads(archive.read(name)); {LINE}; sys.exit(2)",
        "code of the file ran",
    ),
}


def rows(code: str, only: str = "os.system by reduce", kills: int = 0) -> list[tuple[str, ...]]:
    """The faults of each row when this code is run in the place of fxprune."""
    command = shlex.join([sys.executable, "-S", "-c", f"import os, sys; {code}"])
    asked = argparse.Namespace(only=only, seed=0, kills=kills, command=command)
    return [row.faults for row in refusals.rows(asked)]


def test_program_that_refuses_passes() -> None:
    assert rows(f"{LINE}; sys.exit(2)") == [()]
    assert rows(f"{LINE}; sys.exit(2)", "missing file") == [()]


@pytest.mark.parametrize("fault", FAULTS)
def test_every_planted_fault_is_noticed(fault: str) -> None:
    code, complaint = FAULTS[fault]
    (found,) = rows(code)
    assert complaint in " ".join(found)


# Writes a folder in 0.4 s, and says that one is whole when both files are in it. Most runs but the first wait with half
# of the folder written until they are killed: some of the moments meet that however slow the machine is.
WRITES = """0
import shutil, time
if sys.argv[1] == "verify":
    sys.exit(len(os.listdir("out")) != 2)
with open("runs", "a") as runs:
    runs.write("x")
    half_way = 1000 if runs.tell() % 4 != 1 else 0.4
shutil.rmtree("FIRST", ignore_errors=True)
os.mkdir("FIRST")
for name in "ab":
    open("FIRST/" + name, "w").close()
    time.sleep(half_way * (name == "a"))
os.rename("FIRST", "out")
"""


@pytest.mark.parametrize("first", ["box", "out"])
def test_folder_that_is_left_in_pieces_is_noticed(first: str) -> None:
    found = rows(WRITES.replace("FIRST", first), "SIGKILL", kills=8)
    assert len(found) == 9
    assert any(found) == (first == "out")


def test_all_that_is_to_be_refused_is_there() -> None:
    names = " ".join(case.name for case in cases(0))
    wanted = "missing empty truncated random os.system eval GraphModule ScriptModule child TorchScript --arch keys"
    wanted += " -0.1 1.0 1.5 nan NaN infinite channel two prunable exists permission full"
    assert all(word in names for word in wanted.split())
