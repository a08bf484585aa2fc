"""Ask the real command line for what it has to refuse, and kill it at random moments.

`python tools/refusals.py` runs `fxprune compile` in a process of its own for each case, in a temporary folder, and
prints a table: case, exit status, seconds, the one line. It exits with 1 unless every case
  - ended with a status that is not 0, in 60 s,
  - printed exactly one line on stderr, `error: ...` with the words of the case, nothing on stdout and no traceback,
  - left the folder as it was, and ran no code of the file.
Then it kills ten sound runs at random moments: each leaves nothing, or a folder that `fxprune verify` finds in order.

--only TEXT    cases with this in their names
--seed N       of the random bytes and moments (0)
--kills N      how many runs are killed (10)
--command TEXT what to run for `fxprune`; a fault to plant. A run that does not notice it is worth nothing
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from refusal_cases import CANARY, Case, cases

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60.0  # seconds
SOUND = ("compile", "zoo:resnet8", "--sparsity", "0.9", "--no-measure", "-q", "-o", "out")


@dataclass(frozen=True)
class Answer:
    """What a command did: status, seconds, and what it printed."""

    status: int
    seconds: float
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Row:
    """One line of the table; no faults where all was as it should be."""

    name: str
    status: str
    seconds: float
    line: str
    faults: tuple[str, ...]


def ask(command: list[str]) -> Answer:
    """Run it here. A command that takes too long is ended, and its status is -9."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        stdout, stderr = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        stdout, stderr = process.communicate()
    return Answer(process.returncode, time.perf_counter() - start, stdout, stderr)


def seen(folder: Path) -> dict[str, tuple[int, int]]:
    """Every path below a folder, files with their size and the time when they were changed."""
    found = {str(one): one.lstat() for one in sorted(folder.rglob("*"))}
    return {
        name: (0, 0) if stat.S_ISDIR(one.st_mode) else (one.st_size, one.st_mtime_ns) for name, one in found.items()
    }


def faults(case: Case, answer: Answer, changed: set[str]) -> Iterator[str]:
    """What is wrong with an answer."""
    if answer.status == 0:
        yield "it was not refused"
    if answer.status < 0:
        yield f"it ended by signal {-answer.status}"
    if answer.stderr.count("\n") != 1 or not answer.stderr.startswith("error: "):
        yield f"stderr is not one line that begins with error: {answer.stderr[-300:]!r}"
    if "Traceback" in answer.stderr or "not foreseen" in answer.stderr:
        yield "nobody has thought of it"
    if answer.stdout:
        yield f"stdout holds {answer.stdout[:100]!r}"
    missing = [word for word in case.words if word not in answer.stderr]
    if missing:
        yield f"the line does not say {', '.join(map(repr, missing))}"
    if any(Path(path).name == CANARY for path in changed):
        yield "code of the file ran"
    if changed:
        yield f"written or removed: {', '.join(sorted(changed))}"


def tried(case: Case, fxprune: list[str], folder: Path) -> Row:
    """One case in an empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with contextlib.chdir(folder):
        hindrance = case.prepare()
        if isinstance(hindrance, str):
            return Row(case.name, "-", 0.0, f"skipped: {hindrance}", ())
        output = [] if " -o " in case.arguments else ["-o", "out"]
        command = [*case.prefix, *fxprune, "compile", *case.arguments.split(), "--no-measure", *output]
        with case.around():
            before = seen(Path())
            answer = ask(command)
            after = seen(Path())
    changed = {path for path in {**before, **after} if before.get(path) != after.get(path)}
    line = answer.stderr.strip().replace("\n", " | ")
    return Row(case.name, str(answer.status), answer.seconds, line, tuple(faults(case, answer, changed)))


def killed(fxprune: list[str], folder: Path, draw: random.Random, count: int) -> Iterator[Row]:
    """Sound runs, killed at moments from their start to after their usual end."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    with contextlib.chdir(folder):
        usual = ask([*fxprune, *SOUND])
        yield whole_or_nothing("a sound run", usual, fxprune, must=True)
        for number in range(1, count + 1):
            moment = draw.uniform(0.2, 1.5) * usual.seconds
            process = subprocess.Popen([*fxprune, *SOUND], env={**os.environ, "PYTHONPATH": str(ROOT)})
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moment)
            process.kill()
            answer = Answer(process.wait(), moment, "", "")
            yield whole_or_nothing(f"SIGKILL {number}", answer, fxprune, must=answer.status == 0)


def whole_or_nothing(name: str, answer: Answer, fxprune: list[str], *, must: bool) -> Row:
    """Whether there is no folder, or one that verify finds in order; it is removed. `must`: it has to be there."""
    if not Path("out").exists():
        wrong = (f"there is no folder: {answer.stderr[-300:]}",) if must else ()
        return Row(name, str(answer.status), answer.seconds, "nothing left", wrong)
    verdict = ask([*fxprune, "verify", "out"])
    shutil.rmtree("out")
    wrong = () if verdict.status == 0 else (f"verify: {verdict.stdout} {verdict.stderr}",)
    return Row(name, str(answer.status), answer.seconds, "a whole folder, in order" if not wrong else "", wrong)


def rows(asked: argparse.Namespace) -> Iterator[Row]:
    fxprune = shlex.split(asked.command) if asked.command else [sys.executable, "-m", "fxprune"]
    with tempfile.TemporaryDirectory(prefix="refusals-") as name:
        folder = Path(name).resolve() / "work"
        for case in cases(asked.seed):
            if asked.only in case.name:
                yield tried(case, fxprune, folder)
        if asked.kills and asked.only in "SIGKILL":
            yield from killed(fxprune, folder, random.Random(asked.seed), asked.kills)


def main() -> int:
    asked = arguments()
    found = []
    print(f"{'case':30} {'exit':>4} {'s':>5}  line")
    for row in rows(asked):
        found.append(row)
        print(f"{row.name:30} {row.status:>4} {row.seconds:5.1f}  {row.line}")
        for fault in row.faults:
            print(f"  FAULT: {fault}")
        sys.stdout.flush()
    skipped = sum(row.status == "-" for row in found)
    wrong = sum(bool(row.faults) for row in found)
    print(f"{len(found)} cases, {skipped} skipped, {wrong} with faults")
    return 1 if wrong or not found else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--command")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
