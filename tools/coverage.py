"""Run fxprune over torchvision's classifiers and segmentation networks and over all of timm's convolutional families.

    .venv/bin/python tools/coverage.py                      all of them, smallest first; goes on where it ended, and
                                                            adds steps that a known network lacks
    .venv/bin/python tools/coverage.py --only 'timm:res*'   some of them
    .venv/bin/python tools/coverage.py --again --only ...   once more, in place of what is known
    .venv/bin/python tools/coverage.py --failed             those that are not right yet, once more
    .venv/bin/python tools/coverage.py --onnx 100           the smallest hundred as ONNX too
    .venv/bin/python tools/coverage.py --page               only write docs/coverage.md from what is known

One process and a time limit a network; a line of JSON each in build/coverage.jsonl. What is checked is written at the
top of coverage_checks.py, which networks at the top of coverage_networks.py.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import multiprocessing as mp
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import torch  # noqa: E402
from coverage_checks import measure, steps  # noqa: E402
from coverage_networks import Network, networks  # noqa: E402
from coverage_page import page  # noqa: E402

RESULTS, CHOICE = ROOT / "build" / "coverage.jsonl", ROOT / "build" / "coverage-networks.json"
PAGE = ROOT / "docs" / "coverage.md"
GIB = 2**30
SPARSITIES = (0.5, 0.9, 0.98)
BUSY = 8  # seconds on the clock for each second of CPU time, where others use the machine as well


def main() -> int:
    options = parsed()
    torch.set_num_threads(1)  # before the processes fork: none of them may have threads
    chosen = networks(CHOICE)
    if not options.page:
        done = known()
        todo = [one for one in chosen if wanted(one, chosen, done, options)]
        todo.sort(key=lambda one: one.parameters)
        print(f"{len(todo)} of {len(chosen)} networks to run", file=sys.stderr, flush=True)
        engine = commit()
        for record in results(todo, chosen, done, options):
            append(record | {"commit": joined(record.get("commit", ""), engine)})
            print(line(record), flush=True)
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(chosen, known()), "utf-8")
    return 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="*", metavar="GLOB", help="specs to run, such as 'timm:*net*'")
    parser.add_argument("--again", action="store_true", help="also those that are known already")
    parser.add_argument("--failed", action="store_true", help="also those that are known and not right")
    parser.add_argument("--page", action="store_true", help="run nothing")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--limit", type=float, default=300, metavar="SECONDS", help="CPU time of each network")
    parser.add_argument("--memory", type=float, default=12, metavar="GIB", help="for each network")
    parser.add_argument("--sparsity", type=float, action="append", help="repeatable (default: 0.5, 0.9 and 0.98)")
    parser.add_argument("--onnx", type=int, default=0, metavar="N", help="export the N smallest too")
    return parser.parse_args()


def commit() -> str:
    """Of the checkout that runs; with a + when files in it have been changed since."""
    name = subprocess.run(
        ["git", "rev-parse", "--short=7", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    changed = subprocess.run(["git", "diff", "--quiet", "HEAD", "--", "fxprune", "passes"], cwd=ROOT, check=False)
    return name.stdout.strip() + "+" * bool(changed.returncode)


def known() -> dict[str, dict[str, Any]]:
    """The last result of each network."""
    lines = RESULTS.read_text("utf-8").splitlines() if RESULTS.is_file() else []
    return {record["spec"]: record for record in map(json.loads, lines)}


def joined(before: str, engine: str) -> str:
    return ", ".join(dict.fromkeys([*filter(None, before.split(", ")), engine]))


def append(record: dict[str, Any]) -> None:
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def exported(network: Network, chosen: list[Network], count: int) -> bool:
    """Whether this network is among the smallest `count`."""
    return network in sorted(chosen, key=lambda one: one.parameters)[:count]


def wanted(
    network: Network, chosen: list[Network], done: dict[str, dict[str, Any]], options: argparse.Namespace
) -> list[str]:
    """Steps to run. A network that died before its first one is run again only when that is asked for."""
    asked = steps(options.sparsity or SPARSITIES, exported(network, chosen, options.onnx))
    if not fnmatch.fnmatch(network.spec, options.only):
        return []
    record = done.get(network.spec)
    if record is None or options.again or (options.failed and record["status"] != "ok"):
        return asked
    return [one for one in asked if one not in record["seconds"]] if "shape" in record else []


def results(
    todo: list[Network], chosen: list[Network], done: dict[str, dict[str, Any]], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A record for each network as it ends, is killed for time, or dies."""
    waiting, running = list(todo), list[_Run]()
    while waiting or running:
        while waiting and len(running) < options.jobs:
            network = waiting.pop(0)
            names = wanted(network, chosen, done, options)
            anew = names[0] == "analysis"
            running.append(_Run(network.spec, names, None if anew else done[network.spec], options))
        wait([run.outcome for run in running], timeout=1.0)
        for run in [run for run in running if run.ended()]:
            running.remove(run)
            yield run.record()


class _Run:
    """One network in a process of its own."""

    def __init__(self, spec: str, names: list[str], known: dict[str, Any] | None, options: argparse.Namespace) -> None:
        self.spec, self.known, self.limit = spec, known, BUSY * options.limit
        self.outcome, theirs = mp.Pipe(duplex=False)
        caps = int(options.memory * GIB), int(options.limit)
        arguments = (theirs, spec, names, known, caps)
        self.process = mp.get_context("fork").Process(target=work, args=arguments)
        self.start = time.monotonic()
        self.process.start()
        theirs.close()

    def ended(self) -> bool:
        return self.outcome.poll() or not self.process.is_alive() or time.monotonic() - self.start > self.limit

    def record(self) -> dict[str, Any]:
        record = self._received()
        self.process.kill()
        self.process.join()
        return record | {"total": round(time.monotonic() - self.start, 1)}

    def _received(self) -> dict[str, Any]:
        try:
            if self.outcome.poll():
                found: dict[str, Any] = self.outcome.recv()
                return found
            fault = f"more than {self.limit:.0f} s" if self.process.is_alive() else "the process died"
        except EOFError:
            fault = "the process died"
        return died(self.spec, self.known, fault)


def work(outcome: Connection, spec: str, names: list[str], known: dict[str, Any] | None, caps: tuple[int, int]) -> None:
    """Runs in the forked process."""
    for kind, cap in zip((resource.RLIMIT_AS, resource.RLIMIT_CPU), caps, strict=True):
        resource.setrlimit(kind, (cap, cap))
    try:
        record = measure(spec, names, known)
    except Exception as error:
        record = died(spec, known, f"{type(error).__name__}: {error}"[:400])
    outcome.send(record)


def died(spec: str, known: dict[str, Any] | None, fault: str) -> dict[str, Any]:
    record = known or {"spec": spec, "faults": [], "seconds": {}}
    return record | {"status": "died", "faults": [*record["faults"], fault]}


def line(record: dict[str, Any]) -> str:
    error = record.get("exact", {}).get("error")
    shown = "-" if error is None else f"{error:.0e} {record['exact']['by']}"
    share = f"{record['share']:.1%}" if "share" in record else "-"
    return (
        f"{record['spec']:48} {record['status']:8} {shown:28} {share:>7} {record['total']:6.1f} s  {record['faults']}"
    )


if __name__ == "__main__":
    sys.exit(main())
