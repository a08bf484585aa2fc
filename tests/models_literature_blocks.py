"""Blocks of classifiers from the literature, second part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models_literature import cbr, work
from torch import Tensor, nn


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    b, c, h, w = x.data.size()
    x = x.view(b, groups, c // groups, h, w)
    return torch.transpose(x, 1, 2).contiguous().view(b, -1, h, w)


class ShuffleUnitV1(nn.Module):
    """Zhang et al. 2018: grouped, shuffled, depthwise, grouped; a concatenation where it strides."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int) -> None:
        super().__init__()
        self.groups, self.stride = groups, stride
        mid = outputs // 4 if stride == 1 else outputs // 2
        outputs = outputs - inputs if stride == 2 else outputs
        self.a, self.dw = cbr(inputs, mid, 1, groups=groups), cbr(mid, mid, 3, stride, groups=mid, act=nn.Identity)
        self.b = cbr(mid, outputs, 1, groups=groups, act=nn.Identity)

    def forward(self, x: Tensor) -> Tensor:
        out = self.b(self.dw(channel_shuffle(self.a(x), self.groups)))
        if self.stride == 1:
            return F.relu(x + out)
        return F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), out], 1))


@work()
class ShuffleNetV1(nn.Module):
    def __init__(self, groups: int = 3) -> None:
        super().__init__()
        self.stem = cbr(3, 12)
        self.down = ShuffleUnitV1(12, 48, groups, 2)
        self.body = nn.Sequential(ShuffleUnitV1(48, 48, groups, 1), ShuffleUnitV1(48, 48, groups, 1))
        self.fc = nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.down(self.stem(x))).mean((2, 3)))


class ShuffleUnitV2(nn.Module):
    """Ma et al. 2018, with the split as slices of odd and even channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            cbr(half, half, 1), cbr(half, half, groups=half, act=nn.Identity), cbr(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        pairs = x.reshape(batch * channels // 2, 2, height * width).permute(1, 0, 2)
        pairs = pairs.reshape(2, -1, channels // 2, height, width)
        return torch.cat([pairs[0], self.branch(pairs[1])], 1)


@work()
class ShuffleNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = cbr(3, 20), nn.Sequential(ShuffleUnitV2(20), ShuffleUnitV2(20))
        self.fc = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean((2, 3)))


@work()
class Inception(nn.Module):
    """Szegedy et al. 2016: factorised kernels, a pooled branch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 10)
        self.b1 = cbr(10, 6, 1)
        self.b2 = nn.Sequential(
            cbr(10, 4, 1), nn.Conv2d(4, 6, (1, 7), padding=(0, 3)), nn.Conv2d(6, 8, (7, 1), padding=(3, 0))
        )
        self.b3 = cbr(10, 5, 1)
        self.b3a, self.b3b = nn.Conv2d(5, 4, (1, 3), padding=(0, 1)), nn.Conv2d(5, 4, (3, 1), padding=(1, 0))
        self.b4 = cbr(10, 5, 1)
        self.fc = nn.Linear(27, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        b3 = self.b3(x)
        b3 = torch.cat([self.b3a(b3), self.b3b(b3)], 1)
        b4 = self.b4(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return self.fc(F.relu(torch.cat([self.b1(x), self.b2(x), b3, b4], 1)).mean((2, 3)))


class Separable(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(inputs, inputs, 3, padding=1, groups=inputs, bias=False)
        self.pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(x))


@work()
class Xception(nn.Module):
    """Chollet 2017: activations first, and a strided projection beside."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = cbr(3, 8)
        self.rep = nn.Sequential(
            nn.ReLU(), Separable(8, 14), nn.BatchNorm2d(14), nn.ReLU(), Separable(14, 14), nn.BatchNorm2d(14),
            nn.MaxPool2d(3, 2, 1),
        )  # fmt: skip
        self.skip, self.skip_bn = nn.Conv2d(8, 14, 1, stride=2, bias=False), nn.BatchNorm2d(14)
        self.fc = nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.rep(x) + self.skip_bn(self.skip(x))
        return self.fc(F.adaptive_avg_pool2d(F.relu(x, inplace=True), (1, 1)).squeeze(3).squeeze(2))


class StochasticBlock(nn.Module):
    """Residual block with layer scale and drop path of the user's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dw, self.norm = nn.Conv2d(width, width, 7, padding=3, groups=width), nn.BatchNorm2d(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(1e-6 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dw(x)).permute(0, 2, 3, 1)
        y = (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2)
        if self.training:
            keep = torch.floor(0.8 + torch.rand((x.shape[0],) + (1,) * (x.ndim - 1), dtype=x.dtype, device=x.device))
            y = y.div(0.8) * keep
        return x + y


@work()
class ConvNextWithDropPath(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 10, 4, 4), nn.Sequential(StochasticBlock(10), StochasticBlock(10))
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(self.stem(x)).mean([2, 3]))


class ReversibleBlock(nn.Module):
    """Gomez et al. 2017, the forward pass."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f, self.g = cbr(width, width), cbr(width, width)

    def forward(self, x: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x1, x2 = x
        y1 = x1 + self.f(x2)
        return y1, x2 + self.g(y1)


@work()
class RevNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = cbr(3, 16), nn.Sequential(ReversibleBlock(8), ReversibleBlock(8))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        halves = self.body(torch.chunk(self.stem(x), 2, dim=1))
        return self.fc(torch.cat(halves, dim=1).mean((2, 3)))


@work(share=0.7, meets=True)
class BilinearPooling(nn.Module):
    """Lin et al. 2015: the outer product of channels, signed root, unit length."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 12), cbr(12, 10)
        self.fc = nn.Linear(100, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        n, c, h, w = x.size()
        x = x.view(n, c, h * w)
        x = (torch.bmm(x, x.transpose(1, 2)) / (h * w)).view(n, c * c)
        x = torch.sign(x) * torch.sqrt(torch.abs(x) + 1e-5)
        return self.fc(F.normalize(x))


@work((2, 1, 20, 20), meets=True, share=0.5, frozen=("_softmax",))
class CapsuleNet(nn.Module):
    """Sabour et al. 2017: eight-dimensional capsules squashed by their length, routing by agreement."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.primary = nn.Conv2d(1, 12, 9), nn.Conv2d(12, 32, 5, stride=2)
        self.votes = nn.Parameter(torch.randn(4 * 16, 3, 6, 8) * 0.1)

    @staticmethod
    def squash(x: Tensor) -> Tensor:
        square = (x**2).sum(-1, keepdim=True)
        return square / (1 + square) * x / (square + 1e-9).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(F.relu(self.conv(x)))
        u = self.squash(x.view(x.size(0), 4, 8, -1).permute(0, 1, 3, 2).reshape(x.size(0), -1, 8))
        u_hat = torch.einsum("njdk,bnk->bnjd", self.votes, u)
        logits = torch.zeros_like(u_hat[..., :1])
        for _ in range(2):
            v = self.squash((logits.softmax(2) * u_hat).sum(1, keepdim=True))
            logits = logits + (u_hat * v).sum(-1, keepdim=True)
        return v.squeeze(1).norm(dim=-1)


@work()
class MaxoutAndConcatenatedRelu(nn.Module):
    """Maxout (Goodfellow et al. 2013), CReLU (Shang et al. 2016), pixels to channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(24, 10, 1)
        self.fc = nn.Linear(40, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = torch.cat((F.relu(x), F.relu(-x)), 1).view(x.shape[0], 2, 12, *x.shape[2:]).max(1).values
        x = self.b(x)
        x = self.c(torch.cat((x.clamp(min=0), (-x).clamp(min=0)), 1))
        x = F.pixel_unshuffle(x, 2)
        return F.log_softmax(self.fc(x.amax((2, 3))), dim=-1)


@work()
class DenseNetFromLists(nn.Module):
    """Huang et al. 2017 in the memory-efficient spelling: layers are handed the list of all features so far."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 6 * i), nn.ReLU(), nn.Conv2d(8 + 6 * i, 6, 3, padding=1)) for i in range(4)
        )
        self.transition = nn.Sequential(nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 10, 1), nn.AvgPool2d(2))
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.fc(self.transition(torch.cat(features, 1)).mean((2, 3)))


@work()
class Res2Net(nn.Module):
    """Gao et al. 2019: a hierarchy over slices of one convolution, with a residual around it."""

    def __init__(self, width: int = 5, scale: int = 4) -> None:
        super().__init__()
        self.width, self.scale = width, scale
        self.stem, self.a, self.b = cbr(3, 16), cbr(16, width * scale, 1), nn.Conv2d(width * scale, 16, 1)
        self.convs = nn.ModuleList(cbr(width, width) for _ in range(scale - 1))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        spx = torch.split(self.a(x), self.width, 1)
        out = sp = self.convs[0](spx[0])
        for i in range(1, self.scale - 1):
            sp = self.convs[i](sp + spx[i])
            out = torch.cat((out, sp), 1)
        out = self.b(torch.cat((out, spx[self.scale - 1]), 1))
        return self.fc((out + x).relu().mean((2, 3)))
