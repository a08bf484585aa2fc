"""fxprune beside Torch-Pruning: seconds and peak memory for halving every width of a network, weights kept.

`python tools/bench_peers.py` prints four tables and ends with status 1 when a target is missed. It needs Torch-Pruning:
`pip install -c constraints.txt -e '.[zoo,bench]'`. `--models resnet50 vgg16_bn` and `--repeats 9` choose what is in
them.

Both sides start from a torchvision network with fresh weights and an example of 1x3x224x224, and end with a smaller
network that runs (it is run, outside the clock). One thread. Each model has a process of its own in which the sides
take turns; a first run on another network keeps out what is loaded at first use. Seconds are medians, of CPU time,
which other processes on the machine disturb least, and on the clock.

fxprune        compile(keep_rate=0.5, keep_weights=True, proof=False).module: from tracing to the built network. The
               given network stays as it was.
Torch-Pruning  BasePruner(GroupMagnitudeImportance(p=1), pruning_ratio=0.5, classifier ignored).step(), building its
               dependency graph included. It cuts the given network in place, as its users have it do; the copy that
               each repeat needs is made before the clock starts.

Memory is the peak of a fresh process beyond what it holds with the network in it, the median of three processes a side.
Source: Fang et al., DepGraph, CVPR 2023; https://pypi.org/project/torch-pruning/1.6.1/
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import statistics
import sys
import time
from importlib.util import find_spec
from typing import Any

from fresh_process import MIB, forget_peak, peak, resident, run_alone

MODELS = ("resnet50", "vgg16_bn", "densenet121", "mobilenet_v2", "efficientnet_b0", "shufflenet_v2_x1_0")
TIME_LIMITS = {"resnet50": 0.5, "vgg16_bn": 0.5, "densenet121": 0.5}  # of its CPU seconds; 1.0 for the others
MEMORY_LIMIT = 0.5  # of its peak
PAPER = ("zoo:vgg16 at 0.95", {"sparsity": 0.95}, "1.37 s, 0.31 GB")  # Eccles et al., CCGrid 2024, Table IV
HALF = {"keep_rate": 0.5, "keep_weights": True}
SPARSE = {"sparsity": 0.98}


def ours(model: Any, example: Any, options: dict[str, Any]) -> tuple[Any, dict[str, float]]:
    """The smaller network, and the seconds of each pass and of building it."""
    import fxprune

    done = fxprune.compile(model, example, proof=False, **options)
    start = time.perf_counter()
    network = done.module
    return network, {**done.report.seconds, "module": time.perf_counter() - start}


def theirs(model: Any, example: Any) -> tuple[Any, dict[str, float]]:
    """The same network, made smaller. Whatever goes wrong in it is raised."""
    import torch_pruning
    from torch import nn

    classifiers = [one for one in model.modules() if isinstance(one, nn.Linear) and one.out_features == 1000]
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=1)
    torch_pruning.pruner.BasePruner(
        model, example, importance, pruning_ratio=0.5, ignored_layers=classifiers, global_pruning=False
    ).step()
    return model, {}


SIDES = {
    "fxprune": lambda model, example: ours(model, example, HALF),
    "Torch-Pruning": theirs,
    "sparsity 0.98": lambda model, example: ours(model, example, SPARSE),
    PAPER[0]: lambda model, example: ours(model, example, PAPER[1]),
}


def network(name: str) -> tuple[Any, Any]:
    """A model in eval mode and an example input."""
    import torch

    from fxprune import zoo
    from fxprune.capture.zoo_imports import import_torchvision

    torch.manual_seed(0)
    if name.startswith("zoo:"):
        name = name.removeprefix("zoo:")
        return zoo.build(name).eval(), torch.randn(1, *zoo.entry(name).input_shape[1:])
    return import_torchvision().models.get_model(name, weights=None).eval(), torch.randn(1, 3, 224, 224)


def warm_up(sides: list[str]) -> None:
    """What is loaded or started at first use belongs to no network."""
    import torch

    torch.set_num_threads(1)
    model, example = network("resnet18")
    for side in sides:
        SIDES[side](copy.deepcopy(model), example)


def measure_time(name: str, sides: list[str], repeats: int) -> dict[str, Any]:
    """Side -> median CPU seconds, seconds on the clock, parameters left, seconds of each phase; or what it raised."""
    warm_up(sides)
    model, example = network(name)
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    found: dict[str, Any] = {}
    for _ in range(repeats):
        for side in sides:
            if "raises" in found.get(side, {}):
                continue
            given = copy.deepcopy(model)
            gc.collect()
            start, start_cpu = time.perf_counter(), time.process_time()
            try:
                small, phases = SIDES[side](given, example)
            except Exception as error:
                found[side] = {"raises": f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"}
                continue
            cpu, clock = time.process_time() - start_cpu, time.perf_counter() - start
            small.eval()(example)
            left = sum(one.numel() for one in small.parameters())
            runs[side].append({"cpu": cpu, "clock": clock, "left": left, **phases})
            del given, small
    for side, lines in runs.items():
        if lines:
            found[side] = {key: statistics.median(line[key] for line in lines) for key in lines[0]}
    return found


def measure_memory(name: str, side: str) -> dict[str, float]:
    """Peak bytes beyond the loaded network, and of the whole process."""
    warm_up([side])
    model, example = network(name)
    gc.collect()
    forget_peak()
    before = resident()
    small, _ = SIDES[side](model, example)
    return {"beyond": peak() - before, "whole": peak()}


def usual_memory(name: str, side: str) -> dict[str, float]:
    """The median of three processes: the system may take pages from one of them meanwhile."""
    found = [run_alone(__file__, "--memory-one", name, side, frugal=True) for _ in range(3)]
    return {key: statistics.median(one[key] for one in found) for key in found[0]}


def print_times(lines: dict[str, Any]) -> list[str]:
    """The first two tables. Returns what missed its target."""
    missed = []
    print(f"\nCPU seconds (seconds on the clock)\n{'':<20}{'fxprune':>16}{'Torch-Pruning':>18}", end="")
    print(f"{'ratio':>8}{'target':>8}{'M parameters left':>20}{'sparsity 0.98':>18}")
    for name, sides in lines.items():
        mine, other = sides["fxprune"], sides["Torch-Pruning"]
        ratio, limit = mine["cpu"] / other.get("cpu", float("nan")), TIME_LIMITS.get(name, 1.0)
        left = " ".join(f"{side['left'] / 1e6:.2f}" for side in (mine, other) if "left" in side)
        cells = [
            _seconds(mine),
            _seconds(other),
            f"{ratio:.2f}",
            f"{limit:.1f}",
            left,
            _seconds(sides["sparsity 0.98"]),
        ]
        print(
            f"{name:<20}" + "".join(f"{cell:>{size}}" for cell, size in zip(cells, (16, 18, 8, 8, 20, 18), strict=True))
        )
        if ratio > limit:
            missed.append(f"{name}: {ratio:.2f} of its seconds, not {limit:.1f}")
    raised = {name: side["raises"] for name, sides in lines.items() for side in sides.values() if "raises" in side}
    print("".join(f"{name}: Torch-Pruning raises {error[:90]}\n" for name, error in raised.items()), end="")
    phases = [key for key in next(iter(lines.values()))["fxprune"] if key not in ("cpu", "clock", "left")]
    print(f"\nwhere fxprune's go, milliseconds on the clock\n{'':<20}" + "".join(f"{phase:>12}" for phase in phases))
    for name, sides in lines.items():
        print(f"{name:<20}" + "".join(f"{sides['fxprune'][phase] * 1e3:>12.0f}" for phase in phases))
    return missed


def _seconds(side: dict[str, float]) -> str:
    return f"{side['cpu']:.2f} ({side['clock']:.2f})" if "cpu" in side else "raises"


def print_memory(lines: dict[str, dict[str, Any]]) -> list[str]:
    """The third table. Returns what missed its target."""
    missed = []
    print(f"\npeak MiB beyond the loaded network\n{'':<20}{'fxprune':>16}{'Torch-Pruning':>18}{'ratio':>8}", end="")
    print(f"{'target':>8}{'sparsity 0.98':>18}")
    for name, sides in lines.items():
        mine, other, sparse = (
            sides[side]["beyond"] / MIB if side in sides else float("nan") for side in list(SIDES)[:3]
        )
        ratio = mine / other
        print(f"{name:<20}{mine:>16.0f}{other:>18.0f}{ratio:>8.2f}{MEMORY_LIMIT:>8.1f}{sparse:>18.0f}")
        if ratio > MEMORY_LIMIT:
            missed.append(f"{name}: {ratio:.2f} of its memory, not {MEMORY_LIMIT}")
    return missed


def print_paper() -> None:
    """The fourth table: the method of the paper on the paper's network."""
    side = PAPER[0]
    times = run_alone(__file__, "--time-one", "zoo:vgg16", "5", side)[side]
    memory = run_alone(__file__, "--memory-one", "zoo:vgg16", side, frugal=True)
    print(f"\n{side}: {_seconds(times)} s; peak {memory['beyond'] / MIB:.0f} MiB beyond the network, ", end="")
    print(f"{memory['whole'] / 1e9:.2f} GB the whole process. Published: {PAPER[2]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS), metavar="NAME", help="of torchvision")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--time-one", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--memory-one", nargs=2, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.time_one:
        name, repeats, *sides = asked.time_one
        print(json.dumps(measure_time(name, sides, int(repeats))))
        return 0
    if asked.memory_one:
        print(json.dumps(measure_memory(*asked.memory_one)))
        return 0
    if find_spec("torch_pruning") is None:
        print("Torch-Pruning is not installed: pip install -c constraints.txt -e '.[zoo,bench]'", file=sys.stderr)
        return 2
    return _compare(asked.models, asked.repeats)


def _compare(models: list[str], repeats: int) -> int:
    sides = list(SIDES)[:3]
    times = {name: run_alone(__file__, "--time-one", name, str(repeats), *sides) for name in models}
    missed = print_times(times)
    memory = {name: {side: usual_memory(name, side) for side in sides if "cpu" in times[name][side]} for name in models}
    missed += print_memory(memory)
    print_paper()
    print("\n" + ("\n".join(["missed:", *missed]) if missed else "every target is met"))
    return 1 if missed else 0


if __name__ == "__main__":
    raise SystemExit(main())
