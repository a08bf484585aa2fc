"""Kill `fxprune learn` or `fxprune train` with SIGKILL at random moments, take it up again, compare with a run that
nobody touched.

    python tools/kill_learn.py [--kills 10] [--seed 0] [--command learn|train]

Prints a line for each kill: the steps that had been taken, those in the checkpoint, and when all files of the finished
folder equal those of the other run, byte for byte but for report.json, which holds seconds. Leaves with 1 when they do
not, or when more steps were lost than lie between two checkpoints. Linux.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parent.parent
EVERY = 7  # steps between checkpoints
STEPS = 26  # of an epoch: 1797 digits, a tenth held out, batches of 64
FILES = ("model.onnx", "model.py", "model.safetensors", "recipe.json", "history.json", "learning.png")
_USUAL = ("--data", "digits", "--batch", "64", "--augment", "shift", "--checkpoint-steps", str(EVERY), "--threads", "1")
# Imports once, then forks for each line it reads: a list of arguments for the command line. Says the child's number,
# each step it has taken, and how it ended.
SERVER = """
import contextlib, json, os, sys
import torch
torch.set_num_threads(1)
import onnxscript, sklearn.datasets, torch.onnx, torch._dynamo
import fxprune.emit.onnx, fxprune.training.runs
from fxprune import cli, cli_train_progress

@contextlib.contextmanager
def told(_wanted):
    yield lambda training: print(training.steps_done, file=sys.__stdout__, flush=True)

cli_train_progress.shown_training = told
for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        sys.argv = ["fxprune", *json.loads(line)]
        try:
            cli.main()
        except SystemExit as end:
            sys.stderr.flush()
            os._exit(end.code or 0)  # the threads that libraries would join stayed in the parent
    print(f"pid {pid}", flush=True)
    _, status = os.waitpid(pid, 0)
    print(f"end {os.waitstatus_to_exitcode(status)}", flush=True)
"""


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit status (negative: the signal), the last step it told of, and how long it lived."""

    status: int
    step: int
    seconds: float


class Runs:
    """Runs of the command line, each in a process of its own that needs no imports any more."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self.server = server

    def run(self, arguments: list[str], kill_at: int | None = None, later: float = 0.0) -> Ended:
        """Wait for the end of a run, or kill it so many seconds after a step that it tells of."""
        assert self.server.stdin is not None and self.server.stdout is not None
        start = time.monotonic()
        self.server.stdin.write(json.dumps(arguments) + "\n")
        self.server.stdin.flush()
        lines = iter(self.server.stdout.readline, "")
        pid, step = 0, 0
        while not (line := next(lines)).startswith("end "):
            pid, step = (int(line.split()[1]), step) if line.startswith("pid ") else (pid, int(line))
            if kill_at is not None and pid and step >= kill_at:
                time.sleep(later)
                with suppress(ProcessLookupError):  # it came to its end
                    os.kill(pid, signal.SIGKILL)
                kill_at = None
        return Ended(int(line.split()[1]), step, time.monotonic() - start)


@contextmanager
def serving(folder: Path) -> Iterator[Runs]:
    """Runs with this working folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        text=True,
    ) as process:  # fmt: skip
        yield Runs(process)
        assert process.stdin is not None
        process.stdin.close()


def write_network(path: Path) -> None:
    """A small network in which each part has a state of its own: batch statistics, dropout."""
    torch.manual_seed(1)

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, 8), nn.MaxPool2d(2), *block(8, 12), nn.Dropout(0.2), *block(12, 12)]
    torch.save(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)), path)


def arguments(command: str, output: str) -> list[str]:
    """The command line of a run of 104 steps."""
    if command == "train":
        return ["train", "small", *_USUAL, "--epochs", "4", "-o", output, "-q"]
    network = ["net.pt", "--input", "2x1x8x8", "--structure-epochs", "2"]
    return ["learn", *network, *_USUAL, "--epochs", "4", "-o", output, "-q"]


def prepare(command: str, folder: Path, runs: Runs) -> Ended:
    """The network, and the run that nobody touches, in `whole`."""
    write_network(folder / "net.pt")
    if command == "train":
        small = ["compile", "net.pt", "--input", "2x1x8x8", "--sparsity", "0.6", "-o", "small", "--no-measure", "-q"]
        assert runs.run(small).status == 0
    ended = runs.run(arguments(command, "whole"))
    assert ended.status == 0, ended
    return ended


def kill_and_resume(command: str, folder: Path, runs: Runs, kills: int, draw: random.Random) -> Iterator[str]:
    """Kill a run so often: a moment after a step, drawn from those it still has to take and those in between, or while
    the artefacts are written. A run that ends before its moment is compared, removed, and begun anew. Yields what
    happened. Raises AssertionError.
    """
    whole, kept, left = prepare(command, folder, runs), 0, kills
    while left:
        at = draw.randint(kept, whole.step)
        later = draw.uniform(0, whole.seconds / 2 if at == whole.step else whole.seconds / whole.step)
        ended = runs.run(arguments(command, "killed"), at, later)
        if ended.status == 0:
            yield f"ended by itself; {compared(folder)}"
            shutil.rmtree(folder / "killed")
            kept = 0
            continue
        assert ended.status == -signal.SIGKILL, ended
        before, left, kept = kept, left - 1, steps_kept(folder / "killed")
        assert kept >= before, f"the checkpoint went back from step {before} to {kept}"
        assert ended.step - kept <= EVERY, f"step {ended.step} had been taken, the checkpoint has {kept}"
        yield f"killed after {ended.seconds:.1f} s and {ended.step} steps; {kept} are in the checkpoint"
    assert runs.run(arguments(command, "killed")).status == 0
    yield f"resumed to the end; {compared(folder)}"


def steps_kept(folder: Path) -> int:
    """Steps in the checkpoint, none without one."""
    path = folder / "checkpoint.pt"
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True)["state"]
    training = state.get("training", state)
    return int(training["epoch"] * STEPS + training["step"])


def compared(folder: Path) -> str:
    """Raises AssertionError when a file of both runs differs."""
    for name in FILES:
        assert (folder / "killed" / name).read_bytes() == (folder / "whole" / name).read_bytes(), f"{name} differs"
    return f"{len(FILES)} files equal those of the whole run"


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=10)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--command", choices=("learn", "train"), default="learn")
    asked = options.parse_args()
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as runs:
        try:
            for line in kill_and_resume(asked.command, Path(name), runs, asked.kills, random.Random(asked.seed)):
                print(line, flush=True)
        except AssertionError as error:
            print(f"FAILED: {error}")
            return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
