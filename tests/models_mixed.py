"""Networks in which several constructs meet, or one is written in an unusual way."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models import Net, conv, network, pooled
from torch import Tensor, nn


@network({"a.weight": (3, 3, 3, 3), "g.weight": (3, 1, 3, 3), "c.weight": (5, 3, 1, 1)})
def grouped_becomes_depthwise() -> nn.Module:
    """Three groups of two channels each: one channel a group is left, and still every output reads its own group."""
    return Net(lambda s, x: s.c(s.g(s.a(x))), a=conv(3, 6), g=conv(6, 6, groups=3), c=conv(6, 5, 1))


@network({"a.weight": (6, 3, 3, 3), "g.weight": (6, 2, 3, 3), "c.weight": (5, 6, 1, 1)})
def grouped_residual() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        return s.c(x + s.g(x))

    return Net(run, a=conv(3, 12), g=conv(12, 12, groups=3), c=conv(12, 5, 1))


@network({"a.weight": (4, 3, 3, 3), "g.weight": (8, 2, 3, 3), "h.weight": (4, 4, 3, 3), "c.weight": (5, 4, 1, 1)})
def grouped_and_shuffled() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(s.h(F.channel_shuffle(s.g(s.a(x)), 2)))

    return Net(run, a=conv(3, 8), g=conv(8, 12, groups=2), h=conv(12, 8, groups=2), c=conv(8, 5, 1))


@network({"a.weight": (2, 3, 3, 3), "b.weight": (2, 3, 3, 3), "g.weight": (4, 2, 3, 3), "c.weight": (5, 4, 1, 1)})
def grouped_over_concat() -> nn.Module:
    """Conv groups of four lie across two operands of four."""

    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(s.g(torch.cat([s.a(x), s.b(x)], 1)))

    return Net(run, a=conv(3, 4), b=conv(3, 4), g=conv(8, 8, groups=2), c=conv(8, 5, 1))


@network({"a.weight": (8, 3, 3, 3), "b.weight": (5, 3, 1, 1), "c.weight": (4, 8, 1, 1)})
def slice_strided_inside() -> nn.Module:
    def run(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        x = s.a(x)
        return s.b(x[:, 1:-2:2]), s.c(x)

    return Net(run, a=conv(3, 13), b=conv(5, 5, 1), c=conv(13, 4, 1))


@network({"a.weight": (3, 3, 3, 3), "b.weight": (3, 3, 3, 3), "c.weight": (5, 6, 1, 1)})
def stacked() -> nn.Module:
    """Channels of two branches alternate."""

    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(torch.stack([s.a(x), s.b(x)], 2).flatten(1, 2))

    return Net(run, a=conv(3, 6), b=conv(3, 6), c=conv(12, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "c.weight": (5, 6, 1, 1)})
def repeated() -> nn.Module:
    return Net(lambda s, x: s.c(s.a(x).flip(1).repeat(1, 2, 1, 1)), a=conv(3, 6), c=conv(12, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "mask": (3, 1, 1), "c.weight": (5, 3, 1, 1)})
def buffer_factor() -> nn.Module:
    mask = torch.tensor([0.5, 2.0, -1.0, 3.0, 1.5, -0.5]).reshape(6, 1, 1)
    return Net(lambda s, x: s.c(s.a(x) * s.mask), a=conv(3, 6), mask=mask, c=conv(6, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "b.weight": (5, 3, 1, 1), "fc.weight": (4, 5)})
def kernel_as_matrix() -> nn.Module:
    """One weight serves a convolution and a linear layer."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        return s.fc(F.linear(pooled(x), s.b.weight.flatten(1)) + pooled(s.b(x).relu()))

    return Net(run, a=conv(3, 6), b=conv(6, 10, 1), fc=nn.Linear(10, 4))


@network({"a.weight": (3, 3, 3, 3), "matrix": (3, 5), "fc.weight": (4, 5)}, consumers={"matrix": 0})
def matrix_product() -> nn.Module:
    matrix = nn.Parameter(torch.randn(6, 10))
    return Net(lambda s, x: s.fc((pooled(s.a(x)) @ s.matrix).relu()), a=conv(3, 6), matrix=matrix, fc=nn.Linear(10, 4))


@network({"a.weight": (3, 3, 3, 3), "fc.weight": (5, 27)})
def unfolded() -> nn.Module:
    """A convolution written as windows and a linear layer."""

    def run(s: Net, x: Tensor) -> Tensor:
        return s.fc(F.unfold(s.a(x), 3).transpose(1, 2).contiguous())

    return Net(run, a=conv(3, 6), fc=nn.Linear(54, 5))


@network({"a.weight": (9, 3), "fc.weight": (4, 3)}, (2, 7, 3), silenced=("a.weight", "a.bias"))
def joint_projection() -> nn.Module:
    """Queries, keys and values from one linear layer, tokens first; all three lose the same positions."""

    def run(s: Net, x: Tensor) -> Tensor:
        q, k, v = s.a(x).reshape(2, 7, 3, 6).permute(2, 0, 1, 3)
        return s.fc((q @ k.transpose(-2, -1)).softmax(-1) @ v)

    return Net(run, a=nn.Linear(3, 18), fc=nn.Linear(6, 4))


@network({"a.weight": (6, 3, 3, 3), "c.weight": (5, 3, 1, 1)})
def split_attention() -> nn.Module:
    """Two views of each channel are weighed against each other and summed."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x).view(-1, 2, 6, 8, 6)
        return s.c((x * x.mean((3, 4), keepdim=True).softmax(1)).sum(1))

    return Net(run, a=conv(3, 12), c=conv(6, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "fc.weight": (4, 3)})
def convolution_over_tokens() -> nn.Module:
    """Pixels are mixed as if they were channels, by a window of one feature: each feature stays by itself."""

    def run(s: Net, x: Tensor) -> Tensor:
        tokens = s.a(x).flatten(2).transpose(1, 2)
        return s.fc(s.mix(tokens).relu())

    return Net(run, a=conv(3, 6), mix=nn.Conv1d(48, 5, 1), fc=nn.Linear(6, 4))


@network({"a.weight": (6, 3, 3, 3), "c.weight": (5, 6, 1, 1)})
def split_by_name() -> nn.Module:
    """hsplit counts along channels; pieces of four that are cut unevenly need their sizes written down."""
    return Net(lambda s, x: s.c(torch.cat(s.a(x).hsplit(3)[::-1], 1).relu()), a=conv(3, 12), c=conv(12, 5, 1))
