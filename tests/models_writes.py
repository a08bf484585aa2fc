"""Networks that write into parts of tensors, and rarer ways to move channels or to add them up."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from models import Net, conv, network, pooled
from torch import Tensor, nn


def _parts(width: int = 12) -> dict[str, nn.Module]:
    return {"a": conv(3, width), "b": conv(width, 10), "c": conv(10, 4, 1)}


PLAIN = {"a.weight": (6, 3, 3, 3), "b.weight": (5, 6, 3, 3), "c.weight": (4, 5, 1, 1)}


@network({"a.weight": (6, 3, 3, 3), "side.weight": (2, 3, 3, 3), "b.weight": (5, 6, 3, 3)})
def view_assigned() -> nn.Module:
    """The first channels of `a` are overwritten with those of `side`: they go together."""

    def run(s: Net, x: Tensor) -> Tensor:
        y = s.side(x)
        x = s.a(x)
        x[:, :4] = y
        return s.c(s.b(x).relu())

    return Net(run, side=conv(3, 4), **_parts())


@network({"a.weight": (6, 3, 3, 3), "side.weight": (2, 3, 3, 3), "b.weight": (5, 6, 3, 3)})
def view_added_to() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        y = s.side(x)
        x = s.a(x)
        x[:, 4:8].add_(y)
        return s.c(s.b(x).relu())

    return Net(run, side=conv(3, 4), **_parts())


@network(PLAIN)
def view_filled() -> nn.Module:
    """A number written into some channels."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        x[:, :4] = 0.3
        return s.c(s.b(x).relu())

    return Net(run, **_parts())


@network({"a.weight": (6, 3, 3, 3), "side.weight": (6, 3, 1, 1), "c.weight": (4, 6, 1, 1)})
def interleaved_by_writing() -> nn.Module:
    """Every second row of pixels comes from another branch."""

    def run(s: Net, x: Tensor) -> Tensor:
        y = torch.zeros(2, 12, 8, 6, dtype=x.dtype)
        y[:, :, ::2] = s.a(x)[:, :, ::2]
        y[:, :, 1::2] = s.side(x)[:, :, 1::2]
        return s.c(y)

    return Net(run, a=conv(3, 12), side=conv(3, 12, 1), c=conv(12, 4, 1))


@network({"a.weight": (6, 3, 3, 3), "b.weight": (5, 6, 3, 3), "c.weight": (4, 5, 1, 1)})
def circular_padding() -> nn.Module:
    """PyTorch pads in a circle by writing into views of a new tensor."""
    parts = {**_parts(), "b": conv(12, 10, padding_mode="circular")}
    return Net(lambda s, x: s.c(s.b(s.a(x).relu()).relu()), **parts)


@network(PLAIN)
def rotated() -> nn.Module:
    return Net(lambda s, x: s.c(s.b(torch.rot90(s.a(x), 1, (2, 3))).relu()), **_parts())


@network(PLAIN)
def folded_windows() -> nn.Module:
    """Unfold and fold: 9 rows a channel and back."""

    def run(s: Net, x: Tensor) -> Tensor:
        windows = F.unfold(s.a(x), 3, padding=1).relu()
        return s.c(s.b(F.fold(windows, (8, 6), 3, padding=1)).relu())

    return Net(run, **_parts())


@network(PLAIN)
def unpooled() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        values, places = s.pool(s.a(x))
        return s.c(s.b(s.back(values, places)).relu())

    return Net(run, pool=nn.MaxPool2d(2, return_indices=True), back=nn.MaxUnpool2d(2), **_parts())


@network({"a.weight": (6, 3, 3, 3), "w": (6,)}, consumers={"w": 0})
def matrix_times_vector() -> nn.Module:
    return Net(lambda s, x: torch.mv(pooled(s.a(x)), s.w), a=conv(3, 12), w=nn.Parameter(torch.rand(12) + 0.5))


def _shuffled_twice(s: Net, x: Tensor) -> Tensor:
    """The unit of ShuffleNet (Zhang et al., CVPR 2018): grouped convolution, shuffle, depthwise, grouped, residual."""
    x = s.stem(x).relu()
    y = s.a(x).relu()
    y = y.view(2, 3, 8, 8, 6).transpose(1, 2).reshape(2, 24, 8, 6)
    return s.head((x + s.b(s.dw(y))).relu())


@network({"a.weight": (18, 4, 1, 1), "dw.weight": (18, 1, 3, 3), "b.weight": (12, 6, 1, 1)})
def grouped_shuffled_grouped() -> nn.Module:
    """8 channels a conv group meet rows of 8 after the shuffle, in threes: sets that take as many from every row go."""
    grouped = {name: conv(24, 24, 1, groups=3) for name in ("a", "b")}
    return Net(_shuffled_twice, stem=conv(3, 24), dw=conv(24, 24, groups=24), head=conv(24, 4, 1), **grouped)


@network(
    {"q.weight": (6, 3, 1, 1), "kv.weight": (10, 3, 1, 1), "c.weight": (4, 4, 1, 1)},
    silenced=("q.weight", "q.bias"),
)
def keys_and_values_split_in_each_head() -> nn.Module:
    """Heads stand beside the batch, and 6 keys and 4 values behind each other in each head (Vaswani et al., HaloNet,
    CVPR 2021): every head loses the same ones.
    """

    def run(s: Net, x: Tensor) -> Tensor:
        query = s.q(x).reshape(-1, 6, 48)
        key, value = s.kv(x).reshape(-1, 10, 48).split([6, 4], dim=1)
        weights = (query.transpose(1, 2) @ key).softmax(-1)
        return s.c((value @ weights.transpose(1, 2)).reshape(-1, 8, 8, 6).relu())

    return Net(run, q=conv(3, 12, 1), kv=conv(3, 20, 1), c=conv(8, 4, 1))


@network({"a.weight": (4, 3, 3, 3), "c.weight": (5, 4, 1, 1), "fc.weight": (5, 5)}, inexact=True)
def extremes_over_channels() -> nn.Module:
    """Spatial attention by the largest and the smallest channel, in both spellings."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(x)
        return s.fc(pooled(s.c(x * (x.amax(1, keepdim=True) - x.min(dim=1, keepdim=True)[0])).relu()))

    return Net(run, a=conv(3, 8), c=conv(8, 10, 1), fc=nn.Linear(10, 5))
