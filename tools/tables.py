"""Compression of VGGs by each method next to the numbers that are known; exits with 1 when one is too far off.

    .venv/bin/python tools/tables.py              beside them the range over three seeds
    .venv/bin/python tools/tables.py --seeds 0    in seconds

VGG-19 by Reconvene and PreCrop: Table III of Eccles, Wong, Varghese (CCGrid 2024). SPaI and Inverted are drawn there
only, so that their numbers are those of a computation that shares no code with this one, for VGG-16: bytes by SPaI, and
the ends of the ranges by Inverted. Everything is for 32 x 32 pixels, 10 classes and convolutions with biases, without
training; compression is bytes of parameters and buffers, dense over small.

What is judged is the expected compression: widths follow from shapes, or from the closed form of magnitude masks at
Kaiming initialisation. A known number is one draw of weights; at 98 % a layer of SPaI keeps 21 or 22 channels, which
alone makes 1.5 %.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fxprune import zoo
from fxprune.cost import Cost
from fxprune.pipeline import dry_run
from fxprune.planning import plan
from fxprune.report import Report

IMAGE = torch.zeros(2, 3, 32, 32)
COLUMNS = "{:10} {:6} {:>8} {:>6} {:>9} {:>7} {:>7} {:>6} {:>19}  {}"
POLICIES = {"reconvene": "reconvene", "spai": "all", "inverted": "inverted"}


@dataclass(frozen=True)
class Known:
    """kind: "bytes" or "macs"; limit: relative."""

    method: str
    network: str
    sparsity: float
    value: float
    limit: float
    kind: str = "bytes"


KNOWN = (
    *(Known("reconvene", "vgg19", at, value, 0.025) for at, value in ((0.8, 4.66), (0.9, 5.33), (0.95, 5.46))),
    *(Known("precrop", "vgg19", at, value, 0.01) for at, value in ((0.8, 4.55), (0.9, 8.89), (0.95, 17.59))),
    *(
        Known("spai", "vgg16", at, value, 0.02)
        for at, value in ((0.8, 18), (0.9, 50), (0.95, 117), (0.97, 204), (0.98, 301))
    ),
    Known("inverted", "vgg16", 0.8, 1.38, 0.02),
    Known("inverted", "vgg16", 0.98, 1.53, 0.02),
    Known("inverted", "vgg16", 0.8, 2.3, 0.02, "macs"),
    Known("inverted", "vgg16", 0.98, 3.7, 0.02, "macs"),
)


def main() -> int:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(parser.parse_args().seeds)
    print(COLUMNS.format("method", "net", "sparsity", "what", "found", "known", "off by", "limit", "seeds", ""))
    faults = 0
    for one in KNOWN:
        found, drawn = expected(one), [sampled(one, seed) for seed in seeds]
        off = found / one.value - 1
        wrong = abs(off) > one.limit
        faults += wrong
        span = f"{min(drawn):.2f}x - {max(drawn):.2f}x" if drawn else ""
        numbers = f"{found:.2f}x", f"{one.value:g}x", f"{off:+.2%}", f"{one.limit:.1%}", span
        line = COLUMNS.format(one.method, one.network, one.sparsity, one.kind, *numbers, "TOO FAR" if wrong else "ok")
        print(line, flush=True)
    print(f"{faults} of {len(KNOWN)} are too far off" if faults else f"all {len(KNOWN)} are as near as they should be")
    return 1 if faults else 0


def expected(one: Known) -> float:
    """From shapes alone."""
    if one.method in POLICIES:
        [found] = plan(zoo.build(one.network), IMAGE, one.sparsity, policy=POLICIES[one.method])
        return ratio(found.before, found.after, one.kind)
    return sampled(one, 0)  # PreCrop looks at shapes too


@cache
def report(method: str, network: str, sparsity: float, seed: int) -> Report:
    return dry_run(zoo.build(network, seed=seed), IMAGE, sparsity=sparsity, method=method, seed=seed)


def sampled(one: Known, seed: int) -> float:
    """With weights drawn from the seed."""
    found = report(one.method, one.network, one.sparsity, seed)
    return ratio(found.before, found.after, one.kind)


def ratio(before: Cost, after: Cost, kind: str) -> float:
    return float(getattr(before, kind) / getattr(after, kind))


if __name__ == "__main__":
    sys.exit(main())
