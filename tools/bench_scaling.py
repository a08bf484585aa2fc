"""How compiling scales: seconds against depth, and peak memory against the model's bytes.

`python tools/bench_scaling.py` prints two tables; each line is measured in a process of its own. `--depth 50 200` and
`--memory zoo:vgg16` choose what is in them (nothing after either name leaves its table out), `--profile 1000` prints
where the time goes at one depth. The networks of the first table are CIFAR-style: a stem, basic blocks in three stages
of 8, 16 and 32 channels, a linear layer. 1000 layers may take at most six times the seconds of 200.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import pstats
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from fresh_process import MIB, forget_peak, peak, resident, run_alone

DEPTHS = (50, 200, 1000)
MODELS = ("zoo:vgg16", "torchvision:resnet50", "torchvision:vgg16_bn")
STAGES = (8, 16, 32)
LIMIT = 6.0


def residual_network(depth: int) -> Any:
    """A residual network of `depth` layers on the longest path: the stem, two a block, the linear layer."""
    from torch import nn

    from fxprune.zoo import BasicBlock

    blocks = (depth - 2) // 2
    layers: list[nn.Module] = [nn.Conv2d(3, STAGES[0], 3, padding=1, bias=False), nn.BatchNorm2d(STAGES[0])]
    width = STAGES[0]
    for number in range(blocks):
        wanted = STAGES[number * len(STAGES) // blocks]
        layers.append(BasicBlock(width, wanted, wanted // width, _shortcut(width, wanted)))
        width = wanted
    named = OrderedDict((f"part{number}", layer) for number, layer in enumerate(layers))
    return nn.Sequential(named | {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "fc": nn.Linear(width, 10)})


def _shortcut(width: int, wanted: int) -> Any:
    from torch import nn

    if width == wanted:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(width, wanted, 1, wanted // width, bias=False), nn.BatchNorm2d(wanted))


def _compile(model: Any, size: int, proof: bool, observers: Sequence[Any] = ()) -> Any:
    import torch

    import fxprune

    inputs = torch.empty(2, 3, size, size, device="meta")
    return fxprune.compile(model, inputs, sparsity=0.9, policy="all", proof=proof, observers=observers)


def _warm_up() -> None:
    """What is loaded or started at first use belongs to no network."""
    import torch

    torch.set_num_threads(1)
    _compile(residual_network(8), 32, proof=True)


def time_depth(depth: int, proof: bool) -> dict[str, float]:
    """Seconds of each pass from capture to reinit, of all of them, and of the whole call."""
    _warm_up()
    model = residual_network(depth)
    start = time.perf_counter()
    seconds = dict(_compile(model, 32, proof).report.seconds)
    return {**seconds, "to reinit": sum(seconds.values()), "call": time.perf_counter() - start}


def measure_memory(spec: str) -> dict[str, float]:
    """Bytes of a model's tensors, and how far the process grew beyond its size with the model in it while compiling."""
    _warm_up()
    model, size = _model(spec)
    held = sum(tensor.numel() * tensor.element_size() for tensor in {*model.parameters(), *model.buffers()})
    peaks: dict[str, float] = {"model": held}
    forget_peak()
    before = resident()

    def note(step: str, program: Any, seconds: float) -> None:
        peaks[step] = peak() - before

    _compile(model, size, proof=False, observers=[note])
    return {**peaks, "call": peak() - before}


def _model(spec: str) -> tuple[Any, int]:
    source, _, name = spec.partition(":")
    if source == "zoo":
        from fxprune import zoo

        return zoo.build(name), zoo.entry(name).input_shape[-1]
    from fxprune.capture.zoo_imports import import_torchvision

    return import_torchvision().models.get_model(name, weights=None), 224


def profile(depth: int) -> None:
    """Print the functions that take most of the time at one depth, by their own and by cumulative seconds."""
    _warm_up()
    model = residual_network(depth)
    profiler = cProfile.Profile()
    profiler.enable()
    _compile(model, 32, proof=True)
    profiler.disable()
    for order in ("tottime", "cumulative"):
        pstats.Stats(profiler).sort_stats(order).print_stats(30)


def print_times(depths: list[int]) -> bool:
    """The first table. Returns whether the limit holds, as far as the depths asked for can tell."""
    kept = True
    for proof in ("off", "on"):
        lines = {depth: run_alone(__file__, "--time-one", str(depth), proof) for depth in depths}
        names = list(dict.fromkeys(name for line in lines.values() for name in line))
        print(f"\nseconds, proof {proof}\n{'layers':>8}", *(f"{name:>11}" for name in names))
        for depth, line in lines.items():
            print(f"{depth:>8}", *(f"{line[name]:>11.2f}" for name in names))
        if {200, 1000} <= lines.keys():
            ratios = {name: lines[1000][name] / max(lines[200][name], 1e-3) for name in names}
            print(f"{'1000/200':>8}", *(f"{ratios[name]:>11.1f}" for name in names))
            kept &= ratios["to reinit"] <= LIMIT
    return kept


def print_memory(specs: list[str]) -> None:
    """The second table."""
    steps = ("model", "analyse", "mask", "plan", "shrink", "call")
    print(f"\n{'peak MiB beyond the model, after pass':<40}" + "".join(f"{step:>10}" for step in steps))
    for spec in specs:
        line = run_alone(__file__, "--memory-one", spec, frugal=True)
        print(f"{spec:<40}" + "".join(f"{line[step] / MIB:>10.1f}" for step in steps))


def main() -> int:
    """Exit status 1 when 1000 layers take more than six times the seconds of 200."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--depth", type=int, nargs="*", default=list(DEPTHS), help="depths of the first table")
    parser.add_argument("--memory", nargs="*", default=list(MODELS), metavar="SPEC", help="models of the second one")
    parser.add_argument("--profile", type=int, metavar="DEPTH", help="print a profile of one depth instead")
    parser.add_argument("--time-one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--memory-one", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.profile:
        profile(asked.profile)
    elif asked.time_one:
        print(json.dumps(time_depth(int(asked.time_one[0]), asked.time_one[1] == "on")))
    elif asked.memory_one:
        print(json.dumps(measure_memory(asked.memory_one)))
    else:
        kept = print_times(asked.depth) if asked.depth else True
        print_memory(asked.memory)
        return 0 if kept else 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
