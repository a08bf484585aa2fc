"""CPU seconds that criteria take to mask a network, against one training step of it.

    .venv/bin/python tools/bench_criteria.py
    .venv/bin/python tools/bench_criteria.py --net vgg16 --rounds 3

A training step is forward, backward and an SGD step on a batch of 128 pictures of 32 x 32 (VGG-16) or 64 of 64 x 64
(ResNet-50), one thread. Magnitude and SynFlow (100 iterations on one picture of the same size) score all weights and
mask 95 % of them; `sorting` is the same magnitude mask by sorting all scores. Rounds run everything in turns; medians.

Masks come from `fxprune.saliency.selection.masks_without_lowest`: one walk counts scores by the upper 16 bits of their
numbers, a second one masks what lies outside the bucket of the threshold, and only that bucket is sorted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from fxprune import zoo
from fxprune.capture.module import capture
from fxprune.facts import Prunable, WeightMasks
from fxprune.manager import PassManager
from fxprune.options import Options
from fxprune.pass_lists import finding_passes
from fxprune.passes.mask import Mask
from fxprune.program import Program
from fxprune.saliency.magnitude import Magnitude
from fxprune.saliency.synflow import Synflow

SPARSITY = 0.95
NETS = {"vgg16": (128, 32), "resnet50": (64, 64)}  # batch, pixels
COLUMNS = "{:10} {:>10} {:>22} {:>10} {:>20}"


def main() -> int:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", nargs="*", choices=tuple(NETS), default=tuple(NETS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--synflow-rounds", type=int, default=1, help="of those, with SynFlow, which takes longest")
    options = parser.parse_args()
    for name in options.net:
        told(name, *NETS[name], options.rounds, options.synflow_rounds)
    return 0


def told(name: str, batch: int, pixels: int, rounds: int, slow_rounds: int) -> None:
    model = zoo.build(name)
    program = found(model, pixels)
    total = sum(one.numel() for one in weights(program).values())
    masks: dict[str, Tensor] = {}

    def magnitude() -> None:
        masks.update(Mask(SPARSITY, Magnitude()).run(program).fact(WeightMasks).masks)

    def sorting() -> None:
        check(masks, by_sorting(program))

    def synflow() -> None:
        Mask(SPARSITY, Synflow(SPARSITY)).run(program)

    step = training_step(model, batch, pixels)
    seconds = in_turns({"step": step, "magnitude": magnitude, "sorting": sorting}, rounds)
    seconds |= in_turns({"synflow": synflow}, slow_rounds)
    one = median(seconds["step"])
    print(f"{name}: {total:,} weights, batch {batch} of {pixels} x {pixels}, {rounds} rounds", flush=True)
    print(COLUMNS.format("", "CPU s", "of a training step", "weights/s", "fastest - slowest"))
    for what, times in seconds.items():
        share, rate, span = median(times) / one, total / median(times), f"{min(times):.3f} - {max(times):.3f}"
        print(COLUMNS.format(what, f"{median(times):.3f}", f"{share:.3f}", f"{rate:.2e}", span), flush=True)


def found(model: nn.Module, pixels: int) -> Program:
    """The network with everything that can be masked."""
    options = Options(sparsity=SPARSITY)
    return PassManager(finding_passes(options), (), {}).run(capture(model, torch.zeros(2, 3, pixels, pixels)))


def weights(program: Program) -> dict[str, Tensor]:
    return {name: program.tensors[name].detach() for name in program.fact(Prunable).kinds}


def by_sorting(program: Program) -> dict[str, Tensor]:
    """The same masks by a stable sort of all scores."""
    parts = {name: one.abs().reshape(-1) for name, one in weights(program).items()}
    flat = torch.cat(list(parts.values()))
    order = torch.sort(flat.flip(0), stable=True).indices
    keep = torch.ones(len(flat), dtype=torch.bool)
    keep[len(flat) - 1 - order[: round(SPARSITY * len(flat))]] = False
    return dict(zip(parts, keep.split([len(one) for one in parts.values()]), strict=True))


def check(masks: dict[str, Tensor], others: dict[str, Tensor]) -> None:
    assert all(torch.equal(masks[name].reshape(-1), other) for name, other in others.items())


def training_step(model: nn.Module, batch: int, pixels: int) -> Callable[[], None]:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
    images, labels = torch.randn(batch, 3, pixels, pixels), torch.randint(10, (batch,))

    def step() -> None:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimiser.step()

    return step


def in_turns(works: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """CPU seconds of each, over rounds after one to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + (rounds > 1)):
        for name, work in works.items():
            start = time.process_time()
            work()
            if number or rounds == 1:
                seconds[name].append(time.process_time() - start)
    return seconds


if __name__ == "__main__":
    sys.exit(main())
