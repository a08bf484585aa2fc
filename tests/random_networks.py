"""Random convolutional networks as plain data: a list of steps, each naming the values it reads and its numbers.

`Genes` are what Hypothesis draws and shrinks: any list of them is a network, because each is read in the light of what
is there already (an index counts back from the last value, modulo how many there are). `develop` turns them into
steps; `RandomNet` is the module that runs these; `text` prints them, one line each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from random_steps import OPERATIONS
from torch import Tensor, nn

BATCH = 2


@dataclass(frozen=True)
class Step:
    """One call. `part` is the step whose module or parameter it uses, its own number unless it shares."""

    op: str
    reads: tuple[int, ...]
    numbers: tuple[Any, ...]
    part: int
    writes: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """image: shape without the batch; outputs: values that are returned, one alone, several as a tuple or dict."""

    image: tuple[int, ...]
    steps: tuple[Step, ...]
    outputs: tuple[int, ...]
    as_dict: bool = False

    def build(self, seed: int = 0) -> RandomNet:
        """The module in float64 and eval mode, every vector and statistic away from where it starts."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = RandomNet(self)
            with torch.no_grad():
                for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                    if tensor.is_floating_point() and tensor.ndim <= 1:
                        noise = torch.rand(tensor.shape)
                        tensor.copy_(0.5 + noise if name.endswith("var") else tensor + noise - 0.5)
        return model.double().eval()

    def example(self, batch: int = BATCH) -> Tensor:
        generator = torch.Generator().manual_seed(batch)
        return torch.randn(batch, *self.image, generator=generator, dtype=torch.float64)


def part_name(step: Step) -> str:
    return f"{step.op}{step.part}"


class RandomNet(nn.Module):
    """Runs the steps one after the other."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        for number, step in enumerate(network.steps):
            if step.part == number:
                self.add_part(step)

    def add_part(self, step: Step) -> None:
        make = OPERATIONS[step.op].part
        if make is None:
            return
        part = make(*step.numbers)
        if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
            self.register_buffer(part_name(step), part)
        else:
            setattr(self, part_name(step), part)

    def part_of(self, step: Step) -> Any:
        return getattr(self, part_name(step)) if OPERATIONS[step.op].part else None

    def run(self, step: Step, values: Sequence[Tensor]) -> tuple[Tensor, ...]:
        found = OPERATIONS[step.op].run(self.part_of(step), *(values[one] for one in step.reads), *step.numbers)
        if not step.writes:
            return found if isinstance(found, tuple) else (found,)
        return tuple(found[number] for number in range(len(step.writes))) if len(step.writes) > 1 else (found,)

    def forward(self, x: Tensor) -> Any:
        values = [x]
        for step in self.network.steps:
            values += self.run(step, values)
        found = [values[one] for one in self.network.outputs]
        if self.network.as_dict:
            return {f"out{number}": one for number, one in enumerate(found)}
        return found[0] if len(found) == 1 else tuple(found)


def text(network: Network) -> str:
    """A line a step, as `x3 = conv(x1, 2, 4, 6, 3, 1, 1, True)`; a shared part is named behind it."""
    lines = [f"x0 = image{network.image}"]
    for number, step in enumerate(network.steps):
        written = ", ".join(f"x{one}" for one in step.writes)
        given = ", ".join([*(f"x{one}" for one in step.reads), *map(str, step.numbers)])
        shared = f"  # the part of step {step.part}" if step.part != number else ""
        owner = f"  # {part_name(step)}" if not shared and OPERATIONS[step.op].part else shared
        lines.append(f"{written} = {step.op}({given}){owner}")
    found = ", ".join(f"x{one}" for one in network.outputs)
    return "\n".join([*lines, f"return {{{found}}}" if network.as_dict else f"return {found}"])
