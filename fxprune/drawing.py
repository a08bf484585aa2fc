"""Seeded draws, layer by layer. A layer's numbers depend on the seed, the purpose and its name only, never on its
neighbours.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn


def generator(seed: int, purpose: str, name: str = "") -> torch.Generator:
    """A CPU generator of its own for this purpose and name."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:4], "little"))


def fan_in(shape: torch.Size) -> int:
    """Inputs of one output: the product of all dimensions but the first."""
    return math.prod(shape[1:])


def kaiming_normal(shape: torch.Size, source: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal with standard deviation sqrt(2 / fan_in) (He et al. 2015), fan_in of the given shape, masks not
    considered.
    """
    drawn = torch.empty(shape, dtype=torch.float32).normal_(0.0, math.sqrt(2.0 / fan_in(shape)), generator=source)
    return drawn.to(dtype)


def default_bias(shape: torch.Size, inputs: int, source: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Uniform in +-1/sqrt(fan_in), PyTorch's default for convolutions and linear layers."""
    bound = 1 / math.sqrt(inputs)
    return torch.empty(shape, dtype=torch.float32).uniform_(-bound, bound, generator=source).to(dtype)


class DrawnTensors(Mapping[str, Tensor]):
    """Tensors of a network some of whose weights are drawn afresh each time they are asked for.

    A big network's fresh weights are needed a few times, one layer at a time; they are never all in memory. Asking
    twice gives the same numbers.
    """

    def __init__(
        self, base: Mapping[str, Tensor], drawn: frozenset[str], seed: int, first: Mapping[str, str] | None = None
    ) -> None:
        """`first` leads from further names of tied tensors to the one that is drawn."""
        self.base, self.drawn, self.seed, self.first = base, drawn, seed, first or {}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.base[name]
        name = self.first.get(name, name)
        if name not in self.drawn:
            return tensor
        fresh = kaiming_normal(tensor.shape, generator(self.seed, "rank", name), tensor.dtype)
        return nn.Parameter(fresh, requires_grad=tensor.requires_grad)

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)
