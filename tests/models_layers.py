"""Networks around one kind of layer: normalisation, transposed convolution, other dimensions, activations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models import Net, conv, network, pooled
from torch import Tensor, nn


@network({"a.weight": (4, 3, 3, 3), "kernel": (5, 4, 3, 3), "c.weight": (5, 5, 1, 1)}, inexact=True)
def weight_standardised() -> nn.Module:
    """Weights are normalised over all that one output channel reads, on their way into the convolution."""

    def run(s: Net, x: Tensor) -> Tensor:
        weight = s.kernel
        mean = weight.mean((1, 2, 3), keepdim=True)
        deviation = weight.std((1, 2, 3), keepdim=True)
        return s.c(F.conv2d(s.a(x).relu(), (weight - mean) / (deviation + 1e-5), padding=1))

    return Net(run, a=conv(3, 8), kernel=nn.Parameter(torch.randn(10, 8, 3, 3)), c=conv(10, 5, 1))


@network(
    {"a.weight": (3, 3, 3, 3), "up.weight": (3, 5, 2, 2), "up.bias": (5,), "bn.weight": (5,), "c.weight": (4, 5, 1, 1)}
)
def transposed() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(s.bn(s.up(s.a(x).relu())).relu())

    return Net(run, a=conv(3, 6), up=nn.ConvTranspose2d(6, 10, 2, stride=2), bn=nn.BatchNorm2d(10), c=conv(10, 4, 1))


@network({"a.weight": (4, 3, 3, 3), "up.weight": (4, 3, 2, 2), "up.bias": (6,), "c.weight": (5, 6, 1, 1)})
def transposed_grouped() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(s.up(s.a(x).relu()).relu())

    return Net(run, a=conv(3, 8), up=nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2), c=conv(12, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "up.weight": (3, 1, 2, 2), "up.bias": (3,), "c.weight": (5, 3, 1, 1)})
def transposed_depthwise() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(s.up(s.a(x).relu()).relu())

    return Net(run, a=conv(3, 6), up=nn.ConvTranspose2d(6, 6, 2, stride=2, groups=6), c=conv(6, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "norm.weight": (3,), "norm.bias": (3,), "c.weight": (5, 3, 1, 1)})
def group_norm_single() -> nn.Module:
    """One channel a group: like an InstanceNorm."""
    return Net(lambda s, x: s.c(s.norm(s.a(x)).relu()), a=conv(3, 6), norm=nn.GroupNorm(6, 6), c=conv(6, 5, 1))


@network({"a.weight": (6, 3, 3, 3), "norm.weight": (6,), "norm.bias": (6,), "c.weight": (5, 6, 1, 1)})
def group_norm_whole() -> nn.Module:
    """Four groups of three; where weights are kept, whole groups go and the result is exact."""
    return Net(lambda s, x: s.c(s.norm(s.a(x)).relu()), a=conv(3, 12), norm=nn.GroupNorm(4, 12), c=conv(12, 5, 1))


@network({"a.weight": (6, 3, 3, 3), "scale": (6,), "c.weight": (5, 6, 1, 1)})
def group_norm_function() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(F.group_norm(s.a(x), 4, s.scale).relu())

    return Net(run, a=conv(3, 12), scale=nn.Parameter(torch.ones(12)), c=conv(12, 5, 1))


@network({"a.weight": (4, 3, 3, 3), "norm.weight": (4,), "c.weight": (5, 4, 1, 1)}, inexact=True)
def group_norm_part() -> nn.Module:
    """Two groups of four, followed by a plain convolution."""
    return Net(lambda s, x: s.c(s.norm(s.a(x)).relu()), a=conv(3, 8), norm=nn.GroupNorm(2, 8), c=conv(8, 5, 1))


@network({"a.weight": (4, 3, 3, 3), "norm.weight": (4,), "up.weight": (7, 4), "down.weight": (5, 7)}, inexact=True)
def layer_norm() -> nn.Module:
    """Channels last, as in ConvNeXt."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.norm(s.a(x).permute(0, 2, 3, 1))
        return s.down(F.gelu(s.up(x))).permute(0, 3, 1, 2)

    return Net(run, a=conv(3, 8), norm=nn.LayerNorm(8), up=nn.Linear(8, 14), down=nn.Linear(14, 5))


@network({"a.weight": (4, 3, 3, 3), "c.weight": (5, 4, 1, 1), "fc.weight": (5, 5)}, inexact=True)
def mean_over_channels() -> nn.Module:
    """Spatial attention: a map made of the mean over all channels weighs each of them."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        return s.fc(pooled(s.c(x * x.mean(1, keepdim=True)).relu()))

    return Net(run, a=conv(3, 8), c=conv(8, 10, 1), fc=nn.Linear(10, 5))


@network({"a.weight": (4, 3, 3, 3), "c.weight": (5, 4, 1, 1)}, inexact=True)
def efficient_channel_attention() -> nn.Module:
    """A window slides over channels: the gate of each is made of its neighbours."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        gates = s.slide(pooled(x).view(x.shape[0], 1, -1)).sigmoid()
        return s.c(x * gates.view(x.shape[0], -1, 1, 1).expand_as(x))

    return Net(run, a=conv(3, 8), slide=nn.Conv1d(1, 1, 3, padding=1, bias=False), c=conv(8, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "norm.weight": (3,), "norm.running_mean": (3,), "c.weight": (5, 3, 1, 1)})
def instance_norm() -> nn.Module:
    norm = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
    return Net(lambda s, x: s.c(s.norm(s.a(x)).relu()), a=conv(3, 6), norm=norm, c=conv(6, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "c.weight": (5, 3, 1, 1)})
def instance_norm_plain() -> nn.Module:
    """Neither affine parameters nor statistics: only the module's own number knows the width."""
    return Net(lambda s, x: s.c(s.norm(s.a(x)).relu()), a=conv(3, 6), norm=nn.InstanceNorm2d(6), c=conv(6, 5, 1))


@network({"a.weight": (3, 2, 3), "bn.weight": (3,), "b.weight": (5, 3, 3), "fc.weight": (4, 5)}, (2, 2, 9))
def conv1d() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = F.max_pool1d(s.bn(s.a(x)).relu(), 2)
        return s.fc(s.b(x).mean(-1))

    return Net(run, a=nn.Conv1d(2, 6, 3), bn=nn.BatchNorm1d(6), b=nn.Conv1d(6, 10, 3, padding=1), fc=nn.Linear(10, 4))


@network(
    {"a.weight": (3, 2, 3, 3, 3), "bn.weight": (3,), "b.weight": (5, 3, 1, 1, 1), "fc.weight": (4, 5)}, (2, 2, 5, 6, 7)
)
def conv3d() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = F.avg_pool3d(s.bn(s.a(x)).relu(), 2)
        return s.fc(s.b(x).mean((2, 3, 4)))

    return Net(run, a=nn.Conv3d(2, 6, 3, padding=1), bn=nn.BatchNorm3d(6), b=nn.Conv3d(6, 10, 1), fc=nn.Linear(10, 4))


@network({"a.weight": (3, 3, 3, 3), "act.weight": (3,), "c.weight": (5, 3, 1, 1)})
def prelu() -> nn.Module:
    return Net(lambda s, x: s.c(s.act(s.a(x))), a=conv(3, 6), act=nn.PReLU(6), c=conv(6, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "c.weight": (5, 3, 1, 1)})
def prelu_single() -> nn.Module:
    """One slope for all channels."""
    return Net(lambda s, x: s.c(s.act(s.a(x))), a=conv(3, 6), act=nn.PReLU(), c=conv(6, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "c.weight": (5, 3, 1, 1)})
def bilinear() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        small = F.interpolate(s.a(x), scale_factor=0.5, mode="bilinear", align_corners=False)
        return s.c(F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=True))

    return Net(run, a=conv(3, 6), c=conv(6, 5, 1))
