"""Networks as the literature writes them, small, each in the spelling that its papers' code has; none of them is in a
library that the other tests read. `LITERATURE` holds them all by name; more in models_literature_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from families import randomise
from torch import Tensor, nn

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Work:
    """One network.

    shapes     of its inputs
    share      of all weights that make channels, how much makes channels that can go, at least
    frozen     words of the reasons that must be given for the rest, if any
    meets      its channels meet outside of layers too: in products, or as lengths of vectors
    statistic  words of the reason why its groups are approximate, if some are
    """

    build: Callable[[], nn.Module]
    shapes: Sequence[Shape]
    share: float = 0.8
    frozen: tuple[str, ...] = ()
    meets: bool = False
    statistic: str = ""


LITERATURE: dict[str, Work] = {}


def inputs(work: Work) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(3)
    return tuple(torch.randn(shape, generator=draw, dtype=torch.float64) for shape in work.shapes)


def trained_alike(work: Work) -> nn.Module:
    """The network in float64 and eval mode, with random statistics and affine parameters."""
    torch.manual_seed(0)
    return randomise(work.build(), 0).double().eval()


def work(*shapes: Shape, **expected: Any) -> Callable[[type[nn.Module]], type[nn.Module]]:
    """Register the class below under its name."""

    def register(build: type[nn.Module]) -> type[nn.Module]:
        LITERATURE[build.__name__] = Work(build, shapes or ((2, 3, 16, 16),), **expected)
        return build

    return register


def cbr(
    inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1, act: Any = nn.ReLU
) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, reduction: int = 4) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(width, width // reduction), nn.ReLU(), nn.Linear(width // reduction, width))

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        y = F.adaptive_avg_pool2d(x, 1).view(b, c)
        return x * self.fc(y).sigmoid().view(b, c, 1, 1).expand_as(x)


class Fire(nn.Module):
    def __init__(self, inputs: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeeze, 1)
        self.left, self.right = nn.Conv2d(squeeze, expand, 1), nn.Conv2d(squeeze, expand, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.squeeze(x), inplace=True)
        return torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)


@work()
class SqueezeNetWithSE(nn.Module):
    """Iandola et al. 2016 with Hu et al. 2018."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, 2, 1)
        self.fire1, self.se1, self.fire2 = Fire(12, 6, 8), SqueezeExcite(16), Fire(16, 7, 10)
        self.head = nn.Conv2d(20, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.stem(x).relu_(), 3, 2, ceil_mode=True)
        x = self.fire2(self.se1(self.fire1(x)))
        return self.head(x).mean([-2, -1])


class Cbam(nn.Module):
    """Woo et al. 2018: channels by average and maximum through one shared MLP, pixels by both over channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Conv2d(width, width // 2, 1, bias=False), nn.ReLU(), nn.Conv2d(width // 2, width, 1)
        )
        self.spatial = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x * torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1)))
        pooled = torch.cat([torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)], dim=1)
        return x * torch.sigmoid(self.spatial(pooled))


@work(statistic="the extreme one of all channels")
class CbamNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.attention, self.b, self.fc = cbr(3, 12), Cbam(12), cbr(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.attention(self.a(x))).mean((2, 3)))


@work(statistic="a convolution over channels")
class EcaNet(nn.Module):
    """Wang et al. 2020: a 1-D convolution along the channels, whose neighbours must stay neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mid, self.b = cbr(3, 8), cbr(8, 14), nn.Conv2d(14, 14, 3, padding=1)
        self.eca = nn.Conv1d(1, 1, 3, padding=1, bias=False)
        self.fc = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.mid(self.a(x)))
        y = self.eca(F.adaptive_avg_pool2d(x, 1).squeeze(-1).transpose(-1, -2))
        x = x * y.transpose(-1, -2).unsqueeze(-1).sigmoid().expand_as(x)
        return self.fc(x.mean((2, 3)))


@work()
class SelectiveKernel(nn.Module):
    """Li et al. 2019: softmax over the branches."""

    def __init__(self, width: int = 12, branches: int = 3) -> None:
        super().__init__()
        self.stem = cbr(3, width)
        self.convs = nn.ModuleList(cbr(width, width, 3 + 2 * i, groups=2) for i in range(branches))
        self.squeeze = nn.Linear(width, 6)
        self.fcs = nn.ModuleList(nn.Linear(6, width) for _ in range(branches))
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        features = torch.cat([conv(x).unsqueeze(dim=1) for conv in self.convs], dim=1)
        z = self.squeeze(torch.sum(features, dim=1).mean(-1).mean(-1))
        vectors = torch.cat([fc(z).unsqueeze(dim=1) for fc in self.fcs], dim=1)
        vectors = torch.softmax(vectors, dim=1).unsqueeze(-1).unsqueeze(-1)
        return self.head((features * vectors).sum(dim=1).mean((2, 3)))


@work()
class SplitAttention(nn.Module):
    """Zhang et al. 2020 (ResNeSt), radix 2, cardinality 2, with its own radix softmax."""

    def __init__(self, width: int = 8, radix: int = 2, cardinality: int = 2) -> None:
        super().__init__()
        self.radix, self.cardinality, self.width = radix, cardinality, width
        self.stem = cbr(3, 10)
        self.conv = nn.Conv2d(10, width * radix, 3, padding=1, groups=cardinality * 1)
        self.bn = nn.BatchNorm2d(width * radix)
        self.fc1 = nn.Conv2d(width, 12, 1, groups=cardinality)
        self.fc2 = nn.Conv2d(12, width * radix, 1, groups=cardinality)
        self.head = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(self.conv(self.stem(x))).relu()
        batch, channels = x.shape[:2]
        splits = torch.split(x, channels // self.radix, dim=1)
        gap = F.adaptive_avg_pool2d(sum(splits), 1)
        attention = self.fc2(F.relu(self.fc1(gap))).view(batch, self.cardinality, self.radix, -1)
        attention = F.softmax(attention.transpose(1, 2), dim=1).reshape(batch, -1).view(batch, -1, 1, 1)
        parts = torch.split(attention, channels // self.radix, dim=1)
        return self.head(sum(a * s for a, s in zip(parts, splits, strict=True)).mean((2, 3)))


class GhostModule(nn.Module):
    def __init__(self, inputs: int, outputs: int, ratio: int = 2) -> None:
        super().__init__()
        self.outputs = outputs
        first = -(-outputs // ratio)
        self.primary, self.cheap = cbr(inputs, first, 1), cbr(first, first * (ratio - 1), 3, groups=first)

    def forward(self, x: Tensor) -> Tensor:
        x1 = self.primary(x)
        return torch.cat([x1, self.cheap(x1)], dim=1)[:, : self.outputs, :, :]


@work()
class GhostNet(nn.Module):
    """Han et al. 2020, with a width that the ratio does not divide."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.up, self.down = cbr(3, 9), GhostModule(9, 21), GhostModule(21, 9)
        self.fc = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.fc((self.down(self.up(x)) + x).mean((2, 3)))


@work()
class MixNet(nn.Module):
    """Tan and Le 2019: depthwise kernels of several sizes on uneven splits, swish of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.split = cbr(3, 14), [6, 4, 4]
        self.mixed = nn.ModuleList(
            nn.Conv2d(c, c, k, padding=k // 2, groups=c) for c, k in zip(self.split, (3, 5, 7), strict=True)
        )
        self.bn, self.out = nn.BatchNorm2d(14), nn.Conv2d(14, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(self.stem(x), self.split, dim=1)
        x = self.bn(torch.cat([conv(part) for conv, part in zip(self.mixed, parts, strict=True)], dim=1))
        return self.out(x * torch.sigmoid(x)).flatten(2).mean(-1)


class RepVggBlock(nn.Module):
    """Ding et al. 2021 as it is trained: three branches, one of them only a norm."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.identity = nn.BatchNorm2d(inputs) if inputs == outputs else None
        self.dense, self.point = cbr(inputs, outputs, act=nn.Identity), cbr(inputs, outputs, 1, act=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        skip = 0 if self.identity is None else self.identity(x)
        return F.relu(self.dense(x) + self.point(x) + skip)


@work()
class RepVgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(RepVggBlock(3, 12), RepVggBlock(12, 12), RepVggBlock(12, 14))
        self.fc = nn.Linear(14 * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.body(x), (2, 2))
        return self.fc(torch.flatten(x, start_dim=1))


import models_literature_blocks  # noqa: E402, F401  (imported for the networks they register)
import models_literature_maps  # noqa: E402, F401
import models_literature_more  # noqa: E402, F401
import models_literature_other  # noqa: E402, F401
