"""Are learned widths worth it? On scikit-learn's digits, at equal MACs and equal numbers of training steps.

    python tools/digits_experiment.py even|pyramid [--seeds 5] [--epochs 60] [--page docs/structure-learning.md]

For each seed and keep rate: a small CNN whose widths are learned (StructureLearner, cut, trained on), the same CNN with
one fraction for all layers, five with random widths, and one with the learned widths trained from scratch. All take the
same number of steps; those of the first include structure learning on the full network. The others have at least as
many MACs as the learned one, and at most 5 % more. Settings are the paper's: SGD, rate 0.1 divided by ten after each
third, momentum 0.9, weight decay 1e-4, s = 0.5, eps = 0.98. Eight CPU minutes for each of the two networks.

Writes numbers beside the page, as .json, and all tables into the page between its marks.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.data import open_data
from fxprune.program import Inputs
from fxprune.training.batches import Part, split
from fxprune.training.checkpoints import Checkpoints
from fxprune.training.keeping import Keeping
from fxprune.training.learning import Asked, Learning
from fxprune.training.loop import Training
from fxprune.training.randomness import own_randomness
from fxprune.training.settings import THIRDS, LearnSettings, Settings

TESTED = 0.3
KEEP_RATES = (0.5, 0.25)
RANDOM = 5  # networks of random widths for each seed
SLACK = 0.05  # MACs that the others may have more
BEGIN, END = "<!-- digits: written by tools/digits_experiment.py -->", "<!-- end of digits -->"
KINDS = {
    "learned": "learned widths",
    "fresh": "the same widths, trained from scratch",
    "uniform": "one fraction for all layers",
    "random": "random widths",
}
_HEAD = "| keep rate | network | accuracy, mean over seeds | standard deviation | by seed | MACs | widths, seed 0 |"


@dataclass(frozen=True)
class Plan:
    """Convolutions with batch normalisation on 8 x 8 pixels, then a linear layer. `pooled`: layers with 2 x 2 pooling
    in front.
    """

    widths: tuple[int, ...]
    pooled: tuple[int, ...]

    def network(self, widths: Sequence[int]) -> nn.Module:
        layers: list[nn.Module] = []
        before = 1
        for number, width in enumerate(widths):
            layers += [nn.MaxPool2d(2)] if number in self.pooled else []
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            before = width
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))

    def macs(self, widths: Sequence[int]) -> int:
        """Multiply-accumulates for one picture."""
        found, before, pixels = 0, 1, 64
        for number, width in enumerate(widths):
            pixels //= 4 if number in self.pooled else 1
            found += 9 * before * width * pixels
            before = width
        return found + 10 * before

    def scaled(self, fractions: Sequence[float], least: int) -> tuple[int, ...] | None:
        """Widths in these proportions with at least so many MACs and at most SLACK more; None when there are none."""
        found = None
        for step in range(4000, 0, -1):
            wanted = (round(one * limit * step / 1000) for one, limit in zip(fractions, self.widths, strict=True))
            widths = tuple(min(limit, max(1, one)) for one, limit in zip(wanted, self.widths, strict=True))
            if self.macs(widths) < least:
                break
            found = widths
        return found if found and self.macs(found) <= least * (1 + SLACK) else None

    def uniform(self, least: int) -> tuple[int, ...]:
        """The smallest widths near one fraction of all layers that have so many MACs; where rounding leaves none, one
        layer is a little narrower.
        """
        every = range(len(self.widths))
        tries = [(1.0,) * len(self.widths)]
        tries += [
            tuple(part if layer == k else 1.0 for k in every) for part in (0.98, 0.96, 0.94, 0.92) for layer in every
        ]
        return next(widths for fractions in tries if (widths := self.scaled(fractions, least)))

    def at_random(self, least: int, draw: random.Random) -> Iterator[tuple[int, ...]]:
        """Widths drawn for each layer between a tenth and all of its channels, scaled to the MACs; those that cannot be
        scaled are drawn again.
        """
        while True:
            widths = self.scaled([draw.uniform(0.1, 1.0) for _ in self.widths], least)
            if widths:
                yield widths


PLANS = {"even": Plan((16, 16, 32, 32), (2,)), "pyramid": Plan((8, 16, 32, 64), (1, 3))}


def learned(plan: Plan, parts: tuple[Part, Part], settings: Settings, keep_rate: float) -> dict[str, Any]:
    """Accuracy and widths of a network whose widths were learned, and for how many epochs that took."""
    with own_randomness(settings.seed), tempfile.TemporaryDirectory() as folder:
        asked = Asked(settings, LearnSettings(keep_rate))
        run = Learning(plan.network(plan.widths), Inputs((torch.zeros(2, 1, 8, 8),)), parts, asked)
        done = run.run(Keeping(Checkpoints(Path(folder), {})))
    widths = tuple(one.out_channels for one in done.module.modules() if isinstance(one, nn.Conv2d))
    assert plan.macs(widths) == done.report.after.macs
    return {**result(plan, run.training, widths), "structure_epochs": len(run.learner.history)}


def trained(plan: Plan, widths: Sequence[int], parts: tuple[Part, Part], settings: Settings) -> dict[str, Any]:
    """The same for a network of given widths."""
    with own_randomness(settings.seed):
        training = Training(plan.network(widths), parts, settings, torch.device("cpu"))
        while not training.finished:
            training.train_epoch()
    return result(plan, training, widths)


def result(plan: Plan, training: Training, widths: Sequence[int]) -> dict[str, Any]:
    accuracy = training.history[-1]["validation_accuracy"]
    return {"widths": list(widths), "macs": plan.macs(widths), "accuracy": accuracy, "steps": training.steps_done}


def experiment(plan: Plan, seeds: int, epochs: int) -> dict[str, Any]:
    """All runs. The split into pictures to train on and to test with is the same for all."""
    parts = split(open_data("digits", (1, 8, 8), 10), None, TESTED, 0)
    runs: list[dict[str, Any]] = []
    start = time.process_time()
    for keep_rate in KEEP_RATES:
        for seed in range(seeds):
            settings = Settings(epochs, 64, drops=THIRDS, seed=seed)
            first = learned(plan, parts, settings, keep_rate)
            drawn = plan.at_random(first["macs"], random.Random(seed))
            found = {
                "keep_rate": keep_rate,
                "seed": seed,
                "learned": [first],
                "fresh": [trained(plan, first["widths"], parts, settings)],
                "uniform": [trained(plan, plan.uniform(first["macs"]), parts, settings)],
                "random": [trained(plan, next(drawn), parts, settings) for _ in range(RANDOM)],
            }
            runs.append(found)
            print(
                f"{time.process_time() - start:5.0f} s", *(f"{kind} {accuracy(found, kind):.2%}" for kind in KINDS),
                flush=True,
            )  # fmt: skip
    pictures = [len(part) for part in parts]
    return {"epochs": epochs, "pictures": pictures, "dense_macs": plan.macs(plan.widths), "runs": runs}


def accuracy(run: dict[str, Any], kind: str) -> float:
    """Mean over the networks of one kind and one seed."""
    return statistics.mean(one["accuracy"] for one in run[kind])


def by_keep_rate(found: dict[str, Any]) -> Iterator[tuple[float, list[dict[str, Any]]]]:
    for keep_rate in dict.fromkeys(run["keep_rate"] for run in found["runs"]):
        yield keep_rate, [run for run in found["runs"] if run["keep_rate"] == keep_rate]


def table(found: dict[str, Any]) -> str:
    """Markdown: a row for each keep rate and kind, mean and standard deviation over the seeds."""
    lines = [_HEAD, "|---" * 7 + "|"]
    for keep_rate, runs in by_keep_rate(found):
        for kind, name in KINDS.items():
            each = [accuracy(run, kind) for run in runs]
            spent = [one["macs"] for run in runs for one in run[kind]]
            cells = (
                f"{keep_rate:g}", name + (f", mean of {RANDOM}" if kind == "random" else ""),
                f"{statistics.mean(each):.2%}", f"{statistics.stdev(each) if len(each) > 1 else 0:.2%}",
                " ".join(f"{100 * one:.1f}" for one in each), f"{min(spent):,} to {max(spent):,}",
                "-".join(map(str, runs[0][kind][0]["widths"])),
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(found: dict[str, Any]) -> str:
    """Whether learned widths beat the others, in words, for each keep rate."""
    lines = []
    for keep_rate, runs in by_keep_rate(found):
        told = " and ".join(against(runs, kind) for kind in ("uniform", "random"))
        lines.append(f"* At keep rate {keep_rate:g} learned widths {told}.")
    return "\n".join(lines)


def against(runs: list[dict[str, Any]], kind: str) -> str:
    """`beat random widths (+0.30 points, ahead in 4 of 5 seeds)`."""
    gap = 100 * statistics.mean(accuracy(run, "learned") - accuracy(run, kind) for run in runs)
    wins = sum(accuracy(run, "learned") > accuracy(run, kind) for run in runs)
    how = "beat" if gap > 0 else "do not beat"
    return f"{how} {KINDS[kind]} ({gap:+.2f} points, ahead in {wins} of {len(runs)} seeds)"


def written(networks: dict[str, dict[str, Any]]) -> str:
    """What stands between the marks of the page."""
    parts = []
    for name, found in networks.items():
        dense = "-".join(map(str, PLANS[name].widths))
        parts += [f"**{name}**: {dense} channels, {found['dense_macs']:,} MACs", table(found), verdict(found)]
    return "\n\n".join(parts)


def put(page: Path, text: str) -> None:
    """Between the marks of the page. Raises ValueError without them."""
    content = page.read_text("utf-8")
    start, end = content.index(BEGIN) + len(BEGIN), content.index(END)
    page.write_text(f"{content[:start]}\n\n{text}\n\n{content[end:]}", "utf-8")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("network", choices=PLANS)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--epochs", type=int, default=60)
    options.add_argument("--page", type=Path, default=Path("docs/structure-learning.md"))
    asked = options.parse_args()
    torch.set_num_threads(1)
    numbers = asked.page.with_suffix(".json")
    networks = json.loads(numbers.read_text("utf-8")) if numbers.exists() else {}
    networks[asked.network] = experiment(PLANS[asked.network], asked.seeds, asked.epochs)
    networks = {name: networks[name] for name in PLANS if name in networks}
    numbers.write_text(json.dumps(networks, indent=1) + "\n", "utf-8")
    print(written(networks))
    if asked.page.exists():
        put(asked.page, written(networks))


if __name__ == "__main__":
    main()
