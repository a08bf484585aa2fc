"""Damage valid model files and recipes in every way, and watch fxprune read them.

`python tools/fuzz.py` reads 2000 damaged files in watched processes, prints a summary, and exits with 1 when one
  - ended in anything but an FxpruneError of one line (another exception, a signal, an exit),
  - took more than 60 s, or a gigabyte of memory,
  - executed code, unpickled with Python's pickle, started a process, opened a socket or wrote outside its folder.

--seed N       other files (0); the same seed gives the same files
--count N      how many (2000)
--kinds A,B    some of whole.pt, state.pt, weights.safetensors, exported.pt2, recipe.json
--case K       one of them again; its file stays in --folder
--plant FAULT  break fxprune first; a run that does not notice is worth nothing
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from queue import Empty, SimpleQueue
from random import Random

sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from fuzz_mutations import KINDS, MARKER, mutate
from fuzz_watch import serve

PATIENCE = 60.0  # seconds


@dataclass(frozen=True)
class Result:
    case: int
    kind: str
    outcome: str
    message: str
    seconds: float
    megabytes: int


@dataclass
class Reader:
    """A watched process; begun anew when it has died or had to be ended."""

    folder: Path
    sound: list[Path]
    patience: float = PATIENCE
    process: multiprocessing.process.BaseProcess | None = None
    connection: Connection | None = None
    stuck: bool = False

    def read(self, path: Path, plant: str | None = None) -> tuple[str, str, int]:
        """(outcome, message, megabytes) of one file; `plant` names a fault of fuzz_targets."""
        answer = self._ask(path, plant)
        canary = self.folder / MARKER
        if canary.exists():
            canary.unlink()
            return "fault", f"code of the file ran: there was {MARKER}", 0
        return answer

    def _ask(self, path: Path, plant: str | None) -> tuple[str, str, int]:
        self.begin()
        assert self.connection is not None and self.process is not None
        self.connection.send((path, plant, self.patience))
        if not self.connection.poll(self.patience):
            stack = self._stack(self.folder / f"{self.process.pid}.txt")
            self.stuck = True
            self.end()
            return "fault", f"not done after {self.patience:.0f} s\n{stack[:1500]}", 0
        try:
            answer: tuple[str, str, int] = self.connection.recv()
            return answer
        except EOFError:
            self.process.join()
            code = self.process.exitcode
            self.end()
            return "fault", f"the process ended with status {code}", 0

    def _stack(self, written: Path) -> str:
        """What the process is doing. On a busy machine it began later than it was asked, and tells later."""
        end = time.monotonic() + 10 * self.patience
        while not (stack := written.read_text()) and time.monotonic() < end:
            time.sleep(0.1)
        return stack

    def begin(self) -> None:
        """Start the process and let it read the sound files, unless it is there."""
        if self.process is not None:
            return
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, self.folder, self.sound), daemon=True)
        self.process.start()
        theirs.close()
        answer = self.connection.recv()
        if answer[0] != "ready":
            raise SystemExit(f"a sound file is not read: {answer[1]}")

    def end(self) -> None:
        """Let it end by itself where it is waiting for work, by force where it is not."""
        if self.process is not None and self.connection is not None:
            with contextlib.suppress(OSError):
                self.connection.send(None)
            self.process.join(0.0 if self.stuck else 10.0)
            self.process.kill()
            self.process.join()
        self.process, self.stuck = None, False


def damaged(case: int, seed: int, sound: list[Path], folder: Path) -> Path:
    """Write the file of one case."""
    source = sound[case % len(sound)]
    draw = Random(f"{seed}/{case}")
    path = folder / f"{source.stem}-{case}{source.suffix}"
    path.write_bytes(mutate(source.read_bytes(), draw, KINDS[source.name]))
    return path


@dataclass(frozen=True)
class Plan:
    """What to read: cases of one seed, made from these sound files."""

    cases: Sequence[int]
    seed: int
    sound: list[Path]
    folder: Path
    plant: str | None = None

    def read(self, case: int, reader: Reader) -> Result:
        path = damaged(case, self.seed, self.sound, self.folder)
        reader.begin()
        start = time.perf_counter()
        outcome, message, megabytes = reader.read(path, self.plant)
        path.unlink()
        kind = self.sound[case % len(self.sound)].name
        return Result(case, kind, outcome, message, time.perf_counter() - start, megabytes)


def run(plan: Plan, jobs: int = 2, patience: float = PATIENCE) -> Iterator[Result]:
    """Read all cases with several processes; results come in the order in which they are done."""
    waiting: SimpleQueue[int] = SimpleQueue()
    done: SimpleQueue[Result | None] = SimpleQueue()
    for case in plan.cases:
        waiting.put(case)

    def work() -> None:
        reader = Reader(plan.folder, plan.sound, patience)
        try:
            while True:
                done.put(plan.read(waiting.get_nowait(), reader))
        except Empty:
            reader.end()
        finally:
            done.put(None)

    with ThreadPoolExecutor(jobs) as pool:
        workers = [pool.submit(work) for _ in range(jobs)]
        for _ in workers:
            yield from iter(done.get, None)
        for worker in workers:
            worker.result()


def summary(results: list[Result]) -> str:
    """A line for each kind: how many were accepted and refused, and the slowest and largest."""
    lines = []
    for kind in dict.fromkeys(result.kind for result in sorted(results, key=lambda one: one.case)):
        own = [result for result in results if result.kind == kind]
        count = Counter(result.outcome for result in own)
        lines.append(
            f"{kind:20} {len(own):5} read: {count['refused']:5} refused, {count['accepted']:5} accepted, "
            f"{count['fault']:3} faults; slowest {max(one.seconds for one in own):.1f} s, "
            f"most memory {max(one.megabytes for one in own)} MiB"
        )
    return "\n".join(lines)


def main() -> int:
    asked = arguments()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(asked.folder or name).resolve()
        folder.mkdir(exist_ok=True)
        from fuzz_targets import write_sound

        sound = [path for path in write_sound(folder) if asked.kinds is None or path.name in asked.kinds.split(",")]
        plan = Plan(range(asked.count), asked.seed, sound, folder, asked.plant)
        if asked.case is not None:
            return again(asked.case, plan, asked.patience)
        again_with = f"--seed {asked.seed}{f' --kinds {asked.kinds}' if asked.kinds else ''} --folder kept --case"
        results = []
        for result in run(plan, asked.jobs, asked.patience):
            results.append(result)
            if result.outcome == "fault":
                print(f"case {result.case} ({result.kind}): {result.message}")
                print(f"  again: python tools/fuzz.py {again_with} {result.case}", flush=True)
    print(summary(results))
    faults = sum(result.outcome == "fault" for result in results)
    print(f"seed {asked.seed}: {len(results)} files, {faults} faults")
    return 1 if faults else 0


def again(case: int, plan: Plan, patience: float) -> int:
    """One case in a process of its own; its file stays where it is."""
    path = damaged(case, plan.seed, plan.sound, plan.folder)
    reader = Reader(plan.folder, plan.sound, patience)
    outcome, message, megabytes = reader.read(path, plan.plant)
    reader.end()
    print(f"{path}\n{outcome}: {message}\n{megabytes} MiB")
    return 1 if outcome == "fault" else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--patience", type=float, default=PATIENCE)
    parser.add_argument("--kinds")
    parser.add_argument("--case", type=int)
    parser.add_argument("--folder")
    parser.add_argument("--plant")
    return parser.parse_args()


if __name__ == "__main__":
    raise SystemExit(main())
