"""More steps of random networks: elements that only move, and channels that meet without a weight between them."""

from __future__ import annotations

from functools import reduce
from operator import mul
from typing import Any

import torch
import torch.nn.functional as F
from random_steps import operation
from torch import Tensor, nn

# -- elements only move ----------------------------------------------------------------------------------------------


@operation("moved")
def cat(part: None, *values: Any) -> Tensor:
    """The last argument is the dimension."""
    return torch.cat(values[:-1], dim=values[-1])


@operation("moved")
def split(part: None, x: Tensor, dim: int, *sizes: int) -> tuple[Tensor, ...]:
    return x.split(sizes, dim)


@operation("moved")
def chunk(part: None, x: Tensor, count: int, dim: int) -> tuple[Tensor, ...]:
    return torch.chunk(x, count, dim=dim)


@operation("moved")
def unbind_stack(part: None, x: Tensor, *order: int) -> Tensor:
    """Single channels are taken out and put together again."""
    single = x.unbind(1)
    return torch.stack([single[one] for one in order], dim=1)


@operation("moved")
def slice_(part: None, x: Tensor, start: int | None, stop: int | None, step: int) -> Tensor:
    return x[:, start:stop:step]


@operation("moved")
def narrow(part: None, x: Tensor, start: int, length: int) -> Tensor:
    return x.narrow(1, start, length)


@operation("moved")
def select(part: None, x: Tensor, index: int) -> Tensor:
    return x[:, index].unsqueeze(1)


@operation("moved")
def flip(part: None, x: Tensor) -> Tensor:
    return x.flip(1)


@operation("moved")
def roll(part: None, x: Tensor, shift: int) -> Tensor:
    return torch.roll(x, shift, dims=1)


@operation("moved")
def repeat(part: None, x: Tensor, times: int, rank: int) -> Tensor:
    return x.repeat(1, times, *[1] * rank)


@operation("moved", nn.ChannelShuffle)
def shuffle_module(part: nn.Module, x: Tensor, groups: int) -> Tensor:
    return part(x)


@operation("moved")
def shuffle(part: None, x: Tensor, groups: int, width: int, *pixels: int) -> Tensor:
    """Sizes are written down."""
    return x.view(-1, groups, width // groups, *pixels).transpose(1, 2).contiguous().view(-1, width, *pixels)


@operation("moved")
def shuffle_sizes(part: None, x: Tensor, groups: int, rank: int) -> Tensor:
    """Sizes come from the tensor."""
    batch, width, *pixels = [x.size(dim) for dim in range(2 + rank)]
    return x.reshape(batch, groups, width // groups, *pixels).transpose(1, 2).reshape(batch, -1, *pixels)


@operation("moved")
def pixel_shuffle(part: None, x: Tensor, factor: int) -> Tensor:
    return F.pixel_shuffle(x, factor)


@operation("moved", nn.PixelUnshuffle)
def pixel_unshuffle(part: nn.Module, x: Tensor, factor: int) -> Tensor:
    return part(x)


@operation("moved", lambda *order: torch.tensor(order))
def index_select(part: Tensor, x: Tensor, *order: int) -> Tensor:
    return torch.index_select(x, 1, part)


@operation("moved", lambda *order: torch.tensor(order))
def index(part: Tensor, x: Tensor, *order: int) -> Tensor:
    return x[:, part]


@operation("moved")
def interleave(part: None, *values: Tensor) -> Tensor:
    return torch.stack(values, 2).flatten(1, 2)


@operation("moved")
def flatten(part: None, x: Tensor) -> Tensor:
    return torch.flatten(x, 1)


@operation("moved", nn.Flatten)
def flatten_module(part: nn.Module, x: Tensor) -> Tensor:
    return part(x)


@operation("moved")
def view(part: None, x: Tensor, *sizes: int) -> Tensor:
    """Sizes are written down, but for the batch."""
    return x.reshape(x.size(0), *sizes)


@operation("moved")
def view_sizes(part: None, x: Tensor, rank: int) -> Tensor:
    sizes = [x.shape[dim] for dim in range(2, 2 + rank)]
    return x.reshape(x.shape[0], x.shape[1] * reduce(mul, sizes))


@operation("moved")
def tokens(part: None, x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


@operation("moved")
def untokens(part: None, x: Tensor, *pixels: int) -> Tensor:
    return x.permute(0, 2, 1).reshape(x.shape[0], -1, *pixels)


@operation("moved")
def pad(part: None, x: Tensor, rank: int, before: int, after: int, value: float) -> Tensor:
    return F.pad(x, [0, 0] * rank + [before, after], value=value)


@operation("moved")
def pad_zeros(part: None, x: Tensor, rank: int, count: int) -> Tensor:
    zeros = torch.zeros(x.shape[0], count, *(x.shape[dim] for dim in range(2, 2 + rank)), dtype=x.dtype)
    return torch.cat([x, zeros], 1)


# -- channels meet without a weight between them ---------------------------------------------------------------------


@operation("folded")
def glu(part: None, x: Tensor) -> Tensor:
    return F.glu(x, dim=1)


@operation("folded")
def split_attention(part: None, x: Tensor, count: int, width: int, *pixels: int) -> Tensor:
    """`count` views of each channel are weighed against each other and summed."""
    views = x.view(x.shape[0], count, width // count, *pixels)
    return (views * views.softmax(1)).sum(1)


@operation("all", None, lambda part, alive, x: x[:, alive].sum(1, keepdim=True))
def sum_channels(part: None, x: Tensor) -> Tensor:
    return x.sum(1, keepdim=True)


@operation("all", None, lambda part, alive, x: x[:, alive].mean(1, keepdim=True))
def mean_channels(part: None, x: Tensor) -> Tensor:
    return x.mean(1, keepdim=True)


@operation("all", None, lambda part, alive, x: x[:, alive].amax(1, keepdim=True))
def max_channels(part: None, x: Tensor) -> Tensor:
    return x.amax(1, keepdim=True)


@operation("same", None, lambda part, alive, x: put(x, alive, x[:, alive].softmax(1)))
def softmax_channels(part: None, x: Tensor) -> Tensor:
    return x.softmax(1)


def put(like: Tensor, alive: Tensor, few: Tensor) -> Tensor:
    """Surviving channels have these values, all others are zero."""
    result = torch.zeros_like(like)
    result[:, alive] = few
    return result


def _few_normalised(part: nn.Module, alive: Tensor, x: Tensor, groups: int, width: int) -> Tensor:
    """Each group of channels computes its statistics from the ones that survive."""
    result = torch.zeros_like(x)
    for own in torch.arange(width).reshape(groups, -1):
        own = own[alive[own]]
        if len(own):
            result[:, own] = F.group_norm(x[:, own], 1, part.weight[own], part.bias[own], part.eps)
    return result


@operation("same", nn.GroupNorm, _few_normalised)
def group_norm(part: nn.Module, x: Tensor, *_: Any) -> Tensor:
    return part(x)


def _few_layer_normalised(part: nn.Module, alive: Tensor, x: Tensor, width: int) -> Tensor:
    rows = x.movedim(1, -1)[..., alive]
    few = F.layer_norm(rows, (int(alive.sum()),), part.weight[alive], part.bias[alive], part.eps)
    return put(x, alive, few.movedim(-1, 1))


@operation("same", nn.LayerNorm, _few_layer_normalised)
def layer_norm(part: nn.Module, x: Tensor, width: int) -> Tensor:
    """Over the channels of a map, as ConvNeXt does it."""
    return part(x.movedim(1, -1)).movedim(-1, 1)


def _few_slid_over(part: nn.Module, alive: Tensor, x: Tensor, size: int) -> Tensor:
    return put(x, alive, slid_over_channels(part, x[:, alive], size))


@operation("same", lambda size: nn.Conv1d(1, 1, size, padding=size // 2), _few_slid_over)
def slid_over_channels(part: nn.Module, x: Tensor, size: int) -> Tensor:
    """A gate for each channel from the means of its neighbours."""
    gates: Tensor = part(x.flatten(2).mean(2)[:, None]).sigmoid()
    return x * gates.reshape(*x.shape[:2], *[1] * (x.ndim - 2))


@operation("third")
def attention(part: None, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (one.reshape(one.shape[0], one.shape[1], heads, -1).transpose(1, 2) for one in (q, k, v))
    scores = (q @ k.transpose(-2, -1) * 0.5).softmax(-1)
    return (scores @ v).transpose(1, 2).flatten(2)


@operation("third")
def fused_attention(part: None, q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    batch, length = q.shape[:2]
    q, k, v = (one.reshape(batch, length, heads, -1).transpose(1, 2) for one in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, -1)
