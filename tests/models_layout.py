"""Networks that move channels about: reshaping, shuffling, slicing, padding, indexing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models import Net, conv, network, pooled
from torch import Tensor, nn


def _shuffle_parts() -> dict[str, nn.Module]:
    return {"a": conv(3, 12), "b": conv(12, 12, groups=12), "c": conv(12, 5, 1)}


SHUFFLED = {"a.weight": (6, 3, 3, 3), "b.weight": (6, 1, 3, 3), "c.weight": (5, 6, 1, 1)}


@network(SHUFFLED)
def shuffle_literal() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x).view(-1, 2, 6, 8, 6).transpose(1, 2).contiguous().view(-1, 12, 8, 6)
        return s.c(s.b(x).relu())

    return Net(run, **_shuffle_parts())


@network(SHUFFLED)
def shuffle_sizes() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        batch, channels, height, width = x.size()
        x = x.reshape(batch, 3, channels // 3, height, width)
        x = torch.transpose(x, 1, 2).reshape(batch, -1, height, width)
        return s.c(s.b(x).relu())

    return Net(run, **_shuffle_parts())


@network(SHUFFLED)
def shuffle_module() -> nn.Module:
    return Net(lambda s, x: s.c(s.b(s.mix(s.a(x))).relu()), mix=nn.ChannelShuffle(3), **_shuffle_parts())


@network({"a.weight": (8, 3, 3, 3), "a.bias": (8,), "c.weight": (5, 2, 1, 1)})
def pixel_shuffle() -> nn.Module:
    return Net(lambda s, x: s.c(s.up(s.a(x))), a=conv(3, 16), up=nn.PixelShuffle(2), c=conv(4, 5, 1))


@network({"a.weight": (3, 3, 3, 3), "bn.weight": (12,), "c.weight": (5, 12, 1, 1)})
def pixel_unshuffle() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(s.bn(F.pixel_unshuffle(s.a(x), 2)))

    return Net(run, a=conv(3, 6), bn=nn.BatchNorm2d(24), c=conv(24, 5, 1))


FLATTENED = {"a.weight": (3, 3, 3, 3), "b.weight": (5, 36), "c.weight": (4, 5)}


def _flat_parts() -> dict[str, nn.Module]:
    return {"a": conv(3, 6), "b": nn.Linear(72, 10), "c": nn.Linear(10, 4)}


@network(FLATTENED)
def flatten_literal() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        return s.c(s.b(F.max_pool2d(s.a(x), 2).view(-1, 6 * 4 * 3)).relu())

    return Net(run, **_flat_parts())


@network(FLATTENED)
def flatten_sizes() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = F.max_pool2d(s.a(x), 2)
        return s.c(s.b(x.view(x.shape[0], x.shape[1] * x.shape[2] * x.shape[3])).relu())

    return Net(run, **_flat_parts())


@network(FLATTENED)
def flatten_call() -> nn.Module:
    return Net(lambda s, x: s.c(s.b(torch.flatten(F.max_pool2d(s.a(x), 2), 1)).relu()), **_flat_parts())


@network(FLATTENED)
def flatten_module() -> nn.Module:
    return Net(lambda s, x: s.c(s.b(s.flat(F.max_pool2d(s.a(x), 2))).relu()), flat=nn.Flatten(), **_flat_parts())


PADDED = {"a.weight": (3, 3, 3, 3), "b.weight": (5, 3, 3, 3), "c.weight": (4, 5, 1, 1)}


def _padded_parts() -> dict[str, nn.Module]:
    return {"a": conv(3, 6), "b": conv(6, 10, stride=2), "c": conv(10, 4, 1)}


@network(PADDED)
def pad_positional() -> nn.Module:
    """The shortcut of the first residual networks: fewer pixels, new channels of zeros at both ends."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x).relu()
        return s.c(s.b(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0))

    return Net(run, **_padded_parts())


@network(PADDED)
def pad_keywords() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x).relu()
        return s.c(s.b(x) + F.pad(F.avg_pool2d(x, 2), pad=[0, 0, 0, 0, 0, 4], mode="constant", value=0.0))

    return Net(run, **_padded_parts())


@network(PADDED)
def pad_module() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x).relu()
        return s.c(s.b(x) + s.pad(x[..., ::2, ::2]))

    return Net(run, pad=nn.ConstantPad3d((0, 0, 0, 0, 1, 3), 0.5), **_padded_parts())


@network(PADDED)
def pad_zeros() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x).relu()
        y = F.avg_pool2d(x, 2)
        return s.c(s.b(x) + torch.cat([y, torch.zeros(2, 4, 4, 3, dtype=x.dtype)], 1))

    return Net(run, **_padded_parts())


@network(PADDED)
def pad_sizes() -> nn.Module:
    """The same with sizes taken from the input."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x).relu()
        y = F.avg_pool2d(x, 2)
        zeros = torch.zeros(x.shape[0], 4, y.size(2), y.size(3), dtype=x.dtype, device=x.device)
        return s.c(s.b(x) + torch.cat((zeros, y), dim=1))

    return Net(run, **_padded_parts())


@network({"a.weight": (8, 3, 3, 3), "b.weight": (5, 4, 1, 1), "c.weight": (4, 8, 1, 1)})
def slice_strided() -> nn.Module:
    """Every second channel: pairs stay or go together."""

    def run(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        x = s.a(x)
        return s.b(x[:, ::2]), s.c(x)

    return Net(run, a=conv(3, 16), b=conv(8, 5, 1), c=conv(16, 4, 1))


@network({"a.weight": (7, 3, 3, 3), "b.weight": (5, 4, 1, 1), "c.weight": (4, 7, 1, 1)})
def slice_negative() -> nn.Module:
    def run(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        x = s.a(x)
        return s.b(x[:, -8:]), s.c(x)

    return Net(run, a=conv(3, 14), b=conv(8, 5, 1), c=conv(14, 4, 1))


@network({"a.weight": (7, 3, 3, 3), "b.weight": (5, 3, 1, 1), "c.weight": (4, 7, 1, 1)})
def narrowed() -> nn.Module:
    def run(s: Net, x: Tensor) -> tuple[Tensor, Tensor]:
        x = s.a(x)
        return s.b(x.narrow(1, 4, 6)), s.c(x)

    return Net(run, a=conv(3, 14), b=conv(6, 5, 1), c=conv(14, 4, 1))


@network({"a.weight": (6, 3, 3, 3), "c.weight": (4, 6, 1, 1)})
def select() -> nn.Module:
    """One channel is used by itself, so it stays; the others can go."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        return s.c(x) * x[:, 3].unsqueeze(1).sigmoid()

    return Net(run, a=conv(3, 11), c=conv(11, 4, 1))


@network({"a.weight": (5, 3, 3, 3), "c.weight": (4, 5, 1, 1)})
def roll() -> nn.Module:
    return Net(lambda s, x: s.c(torch.roll(s.a(x), 3, dims=1)), a=conv(3, 10), c=conv(10, 4, 1))


@network({"a.weight": (5, 3, 3, 3), "order": (5,), "c.weight": (4, 5, 1, 1)})
def index_buffer() -> nn.Module:
    order = torch.tensor([4, 7, 1, 0, 9, 2, 8, 3, 6, 5])
    return Net(lambda s, x: s.c(s.a(x)[:, s.order].relu()), a=conv(3, 10), order=order, c=conv(10, 4, 1))


@network({"a.weight": (5, 3, 3, 3), "order": (3,), "c.weight": (4, 3, 1, 1)})
def index_select() -> nn.Module:
    """Some channels are picked, one of them twice; the others are read by nobody else."""
    order = torch.tensor([4, 7, 9, 6, 4, 5, 8])
    return Net(lambda s, x: s.c(torch.index_select(s.a(x), 1, s.order)), a=conv(3, 10), order=order, c=conv(7, 4, 1))


@network({"a.weight": (5, 3, 3, 3), "fc.weight": (4, 5)})
def width_as_number() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        return s.fc(pooled(x / x.shape[1] ** 0.5))

    return Net(run, a=conv(3, 10), fc=nn.Linear(10, 4))
