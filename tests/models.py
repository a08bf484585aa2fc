"""Small networks, one for each way in which channels can be coupled.

Widths and pixel counts all differ, so that nothing fits by chance. `NETWORKS` holds them all by name; the families live
in `models_*.py` beside this file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
IMAGE: Shape = (2, 3, 8, 6)


class Net(nn.Module):
    """Parts under their names, and a forward pass that is handed the network itself."""

    def __init__(self, run: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        for name, part in parts.items():
            if isinstance(part, nn.Module | nn.Parameter):
                setattr(self, name, part)
            else:
                self.register_buffer(name, part)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


@dataclass(frozen=True)
class Case:
    """One network and what is expected of it when every group keeps half its channels.

    build      makes the network
    shapes     of its inputs, in order or by name
    cut        shape of every parameter that loses something, afterwards
    consumers  parameter -> dimension it is summed over, for weights that are no part of a convolution or linear module
    silenced   parameters whose removed rows must be zero in the reference, because what sums over them is no weight
    random     two runs in train mode differ
    inexact    its channels stand behind a statistic over channels
    """

    build: Callable[[], nn.Module]
    shapes: Sequence[Shape] | Mapping[str, Shape]
    cut: Mapping[str, Shape]
    consumers: Mapping[str, int] = field(default_factory=dict)
    silenced: tuple[str, ...] = ()
    random: bool = False
    inexact: bool = False

    def example(self) -> Any:
        """Float64 inputs in the form that `compile` takes; the same numbers each time."""
        generator = torch.Generator().manual_seed(3)

        def draw(shape: Shape) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        if isinstance(self.shapes, Mapping):
            return {name: draw(shape) for name, shape in self.shapes.items()}
        return tuple(draw(shape) for shape in self.shapes)

    def model(self) -> nn.Module:
        """The network in float64 and eval mode, every vector and statistic away from where it starts."""
        torch.manual_seed(5)
        model = self.build().double().eval()
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, tensor in (*model.named_parameters(), *model.named_buffers()):
                if tensor.is_floating_point() and tensor.ndim <= 1:
                    noise = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                    tensor.copy_(0.5 + noise if name.endswith("var") else tensor + noise - 0.5)
        return model


NETWORKS: dict[str, Case] = {}


def network(cut: Mapping[str, Shape], *shapes: Shape, **expected: Any) -> Callable[[Callable[[], nn.Module]], None]:
    """Register the function below under its name. Without shapes the input is one small image."""

    def register(build: Callable[[], nn.Module]) -> None:
        NETWORKS[build.__name__] = Case(build, expected.pop("named", None) or shapes or (IMAGE,), cut, **expected)

    return register


def call(model: nn.Module, inputs: Any) -> Any:
    """Run a network on what `Case.example` returns."""
    return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)


def conv(inputs: int, outputs: int, size: int = 3, **more: Any) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2, **more)


def pooled(x: Tensor) -> Tensor:
    return x.mean((2, 3))


import models_blocks  # noqa: E402, F401  (imported for the networks they register)
import models_layers  # noqa: E402, F401
import models_layout  # noqa: E402, F401
import models_mixed  # noqa: E402, F401
import models_modes  # noqa: E402, F401
import models_writes  # noqa: E402, F401
