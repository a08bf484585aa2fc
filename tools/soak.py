"""Thousands of random networks, cut at random and compared with an oracle that knows no labels.

    .venv/bin/python tools/soak.py 10000                     a line for every 250 networks, counterexamples as they come
    .venv/bin/python tools/soak.py 10000 --seed 7            other networks; the same seed draws the same ones
    .venv/bin/python tools/soak.py 500 --first 3250          from the block of networks that starts at this number
    .venv/bin/python tools/soak.py 2000 --faults             plant faults into the engine, see how soon each is found

A counterexample is shrunk to the fewest steps that still fail and printed with its fault; the exit status is then 1.
The number of its block is printed with it: `--first` begins there.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from random_faults import FAULTS  # noqa: E402
from random_genes import networks  # noqa: E402
from random_networks import Network  # noqa: E402
from random_oracle import Choice, Disagreement, check, choices  # noqa: E402

BLOCK = 250
_QUIET = settings(database=None, deadline=None, suppress_health_check=list(HealthCheck), print_blob=False)


@dataclass
class Tally:
    """What has been drawn so far; `failed_at` counts from one."""

    networks: int = 0
    steps: int = 0
    nothing: int = 0  # networks of which nothing can be removed
    failed_at: int = 0


def main() -> int:
    options = parsed()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return plant(options) if options.faults else soak(options)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, nargs="?", default=10_000, help="how many networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help=f"where to begin, a multiple of {BLOCK}")
    parser.add_argument("--faults", action="store_true", help="plant faults instead")
    return parser.parse_args()


def soak(options: argparse.Namespace) -> int:
    found, start = 0, time.perf_counter()
    total = Tally()
    for first in range(options.first, options.first + options.count, BLOCK):
        count = min(BLOCK, options.first + options.count - first)
        tally, counterexample = block(options.seed, first, count, choices(), shrink=True)
        total.networks, total.steps = total.networks + tally.networks, total.steps + tally.steps
        total.nothing += tally.nothing
        each = (time.perf_counter() - start) / max(1, total.networks)
        steps = total.steps / max(1, total.networks)
        print(f"{first + count:6} networks, {steps:.1f} steps and {each:.3f} s each, {found} failed", flush=True)
        if counterexample:
            found += 1
            print(f"--seed {options.seed} --first {first}, network {tally.failed_at}:\n{counterexample}\n", flush=True)
    print(f"{total.networks} networks ({total.nothing} with nothing to remove), {found} blocks with a counterexample")
    return 1 if found else 0


def block(number: int, first: int, count: int, choice: object, *, shrink: bool) -> tuple[Tally, str]:
    """Check `count` networks; returns what was drawn and the smallest counterexample, if there is one."""
    tally = Tally()

    @seed(number * 1_000_003 + first)
    @given(networks(), choice)
    @settings(_QUIET, max_examples=count, phases=[Phase.generate, *[Phase.shrink] * shrink], report_multiple_bugs=False)
    def run(network: Network, choice: Choice) -> None:
        if not tally.failed_at:
            tally.networks += 1
            tally.steps += len(network.steps)
        try:
            tally.nothing += check(network, choice) is None and not tally.failed_at
        except Disagreement:
            tally.failed_at = tally.failed_at or tally.networks
            raise

    try:
        with contextlib.redirect_stderr(io.StringIO()):  # torch.fx prints the code of a graph that fails
            run()
    except Disagreement as error:
        return tally, str(error)
    return tally, ""


def plant(options: argparse.Namespace) -> int:
    """Each fault, with the numerical proof and without it: the number of the network that first shows it."""
    print(f"{'fault':26} {'with the proof':>15} {'oracle alone':>15}")
    missed = 0
    for name, fault in FAULTS.items():
        firsts = []
        for proof in (True, False):
            with fault():
                tally, message = block(options.seed, 0, options.count, choices(proof), shrink=False)
            firsts.append(f"network {tally.failed_at}" if message else "not found")
            missed += not message
        print(f"{name:26} {firsts[0]:>15} {firsts[1]:>15}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
