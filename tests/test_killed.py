"""A run that is killed leaves nothing, the old folder, or the new one, each of them whole."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fxprune.artefact_checks import verify
from fxprune.artefacts import intact, read_recipe

ROOT = Path(__file__).parents[1]
# Imports once, then forks a writer for each line it reads: one that writes OUT over and over again until it is killed.
WRITERS = """
import itertools, os, sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
from quick_folders import Done
from fxprune.emit.folder import write_folder
for line in sys.stdin:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, b"x")
        for value in itertools.count(float(line)):
            write_folder(Done(value), Path("out"), force=True)
    os.read(reader, 1)
    os.close(reader), os.close(writer)
    print(pid, flush=True)
    os.waitpid(pid, 0)
    print("gone", flush=True)
"""


@pytest.fixture
def writers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    monkeypatch.chdir(tmp_path)
    command = [sys.executable, "-c", WRITERS, str(ROOT), str(ROOT / "tests")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield process
        assert process.stdin is not None
        process.stdin.close()


def killed_after(seconds: float | None, writers: subprocess.Popen[str], generation: int) -> float:
    """Start a writer and kill it after so long, or as soon as there is a folder. Returns how long it lived."""
    assert writers.stdin is not None and writers.stdout is not None
    writers.stdin.write(f"{generation}\n")
    writers.stdin.flush()
    pid = int(writers.stdout.readline())
    start = time.monotonic()
    while time.monotonic() - start < (600 if seconds is None else seconds):
        if seconds is None and Path("out").exists():
            break
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    assert writers.stdout.readline() == "gone\n"
    return time.monotonic() - start


def test_writers_killed_at_thirty_moments(writers: subprocess.Popen[str]) -> None:
    draw, boxes = random.Random(5), set()
    once = killed_after(None, writers, 0)
    assert Path("out").exists()
    for generation in range(1, 31):
        if generation % 3 == 0 and Path("out").exists():
            shutil.rmtree("out")
        killed_after(draw.uniform(0, 2 * once), writers, generation * 1000)
        boxes |= {one.name for one in Path().glob(".out.*")}
        if Path("out").exists():
            recipe = read_recipe(Path("out"))
            assert len(recipe.files) == 3 and all(intact(Path("out"), name, recipe) for name in recipe.files)
            assert {one.name for one in Path("out").iterdir()} == {
                *recipe.files,
                "recipe.json",
                "report.json",
                "report.html",
            }
    assert boxes, "no writer was killed at work"
    assert len(list(Path().glob(".out.*"))) <= 1, "each writer removes what the one before left"


@pytest.mark.wide
@pytest.mark.parametrize("force", [False, True])
def test_compilations_killed_at_ten_moments(force: bool, tmp_path: Path) -> None:
    """The whole command, from its start to just after its end."""
    command = [sys.executable, "-m", "fxprune", "compile", "zoo:resnet8", "--sparsity", "0.9", "--no-measure", "-q"]
    command += ["-o", "out", *["--force"] * force]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for _ in range(2):  # the second time everything is in the page cache
        start = time.monotonic()
        subprocess.run([*command, *["--force"] * (not force)], cwd=tmp_path, env=environment, check=True)
        whole = time.monotonic() - start
    if not force:
        shutil.rmtree(tmp_path / "out")
    draw, left = random.Random(1), []
    for _ in range(10):
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.1 * whole, 1.5 * whole))
        process.kill()
        process.wait()
        out = tmp_path / "out"
        left.append(out.exists())
        assert out.exists() or not force
        if out.exists():
            assert all(one.ok for one in verify(out))
            if not force:
                shutil.rmtree(out)
    print(f"{sum(left)} of 10 left a whole folder, the others nothing; boxes: {len(list(tmp_path.glob('.out.*')))}")
