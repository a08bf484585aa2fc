"""What structure learning costs: seconds of `StructureLearner.update` beside those of the training step it follows.

`python tools/bench_learner.py [--steps N] [--batch N]` prints, for ResNet-56 and VGG-16 on random pictures of 32 x 32:
median seconds of a step (forward, backward, SGD), of an update, and their ratio. Both are timed in the same loop.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn import functional as F

from fxprune import StructureLearner, zoo


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--batch", type=int, default=128)
    asked = options.parse_args()
    print(f"{'network':<10} {'scope':<6} {'step s':>8} {'update s':>9} {'share':>7}   batch {asked.batch}")
    for name in ("resnet56", "vgg16"):
        for scope in ("paper", "all"):
            step, update = medians(name, scope, asked.steps, asked.batch)
            print(f"{name:<10} {scope:<6} {step:>8.3f} {update:>9.5f} {update / step:>7.2%}")


def medians(name: str, scope: str, steps: int, batch: int) -> tuple[float, float]:
    """Median seconds of a training step and of an update, the first two steps left out."""
    model = zoo.build(name)
    x, y = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))
    learner = StructureLearner(model, x[:2], scope=scope)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    seconds: list[tuple[float, float]] = []
    for _ in range(steps + 2):
        start = time.perf_counter()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        middle = time.perf_counter()
        learner.update()
        end = time.perf_counter()
        optimizer.step()
        seconds.append((middle - start + time.perf_counter() - end, end - middle))
    step, update = zip(*seconds[2:], strict=True)
    return statistics.median(step), statistics.median(update)


if __name__ == "__main__":
    main()
