"""Fourier transforms over pixels, entries picked by computed indices, copies, and padding behind a shuffle."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small_network import Small, X
from torch import Tensor, nn

import fxprune


class Net(Small):
    """The middle has 12 channels of 4 x 4 pixels and keeps them."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.middle = middle
        self.spectrum, self.score = nn.Conv2d(24, 24, 1), nn.Conv2d(12, 1, 1)
        self.filter, self.mix = nn.Parameter(torch.randn(12, 4, 3, 2)), nn.Conv2d(3, 24, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.middle(self, self.features(x)))


def fourier_convolution(net: Any, x: Tensor) -> Tensor:
    """The spectral transform of FFC (Chi et al., NeurIPS 2020)."""
    parts = torch.fft.rfft2(x, norm="ortho")
    both = torch.stack((parts.real, parts.imag), 2).flatten(1, 2)
    both = net.spectrum(both).relu().unflatten(1, (12, 2))
    return torch.fft.irfft2(torch.complex(both[:, :, 0], both[:, :, 1]), s=x.shape[2:], norm="ortho")


def global_filter(net: Any, x: Tensor) -> Tensor:
    """A complex weight for each channel and frequency (GFNet, Rao et al., NeurIPS 2021)."""
    return torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(net.filter), s=x.shape[2:])


def back_and_forth(_: Any, x: Tensor) -> Tensor:
    parts = torch.view_as_real(torch.fft.fft2(x)) * 2
    return torch.fft.ifft2(torch.view_as_complex(parts)).real


def best_tokens(net: Any, x: Tensor) -> Tensor:
    """As detectors pick their queries."""
    tokens, best = x.flatten(2).transpose(1, 2), net.score(x).flatten(1).topk(9, 1).indices
    picked = tokens.gather(1, best.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))
    return picked.transpose(1, 2).unflatten(2, (3, 3))


def taken_along(net: Any, x: Tensor) -> Tensor:
    best = net.score(x).flatten(2).argmax(2, keepdim=True)
    return x * torch.take_along_dim(x.flatten(2), best, 2)[..., None]


MIDDLES = [fourier_convolution, global_filter, back_and_forth, best_tokens, taken_along]


@pytest.mark.parametrize("middle", MIDDLES)
def test_channels_stay_apart(middle: Callable[[Any, Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    done = fxprune.compile(Net(middle), X, keep_rate=0.5, select="random", keep_weights=True)
    assert done.report.front_end == "fx" and not done.report.refused
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    (group,) = [one for one in done.report.groups if "conv2.weight[0]" in one.members]
    assert not group.frozen and group.after < group.before


def test_a_transform_over_channels_needs_all_of_them() -> None:
    why = fxprune.explain(Net(lambda _, x: torch.fft.fft(x, dim=1).real), X)
    (group,) = [one for one in why.groups if "conv2.weight" in one.producers]
    assert group.frozen is not None and "every entry along this dimension is needed" in str(group.frozen)


def test_picking_among_channels_needs_all_of_them() -> None:
    why = fxprune.explain(Net(lambda _, x: x.gather(1, x.argsort(1))), X)
    (group,) = [one for one in why.groups if "conv2.weight" in one.producers]
    assert group.frozen is not None


class Upscales(nn.Module):
    """A pixel shuffle written by hand, padding and a pool behind it, as medical networks upsample."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.conv, self.out = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(4, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.wide(x)
        n, c, h, w = x.shape
        x = x.reshape(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3).reshape(n, c // 4, 2 * h, 2 * w)
        x = F.avg_pool2d(F.pad(x, (1, 0, 1, 0)), 2, stride=1)
        found: Tensor = self.out(self.conv(x).relu())
        return found


def test_padding_behind_a_shuffle_keeps_channels_apart() -> None:
    done = fxprune.compile(Upscales(), X, keep_rate=0.5, select="random", keep_weights=True)
    assert done.recipe.kept["conv.weight"][1] != [] and len(done.recipe.kept["wide.weight"][0]) == 8
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9


class AddsCopies(nn.Module):
    """Each colour is added to four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.conv(x) + torch.repeat_interleave(x, 4, dim=1))
        return found


def test_fewer_copies_are_made() -> None:
    done = fxprune.compile(AddsCopies(), X, keep_rate=0.5, select="random", keep_weights=True)
    assert not done.report.refused
    assert [len(done.recipe.kept["conv.weight"][0]) % 3, len(done.recipe.kept["conv.weight"][0]) < 12] == [0, True]


class SamplesByHeads(nn.Module):
    """Deformable attention (Zhu et al., ICLR 2021): each head looks at places of its own, heads lie along the batch."""

    def __init__(self, heads: int = 4, points: int = 3) -> None:
        super().__init__()
        self.heads, self.points = heads, points
        self.pixels, self.queries = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 12, 4, stride=4)
        self.value, self.out = nn.Linear(16, 16), nn.Linear(16, 5)
        self.places, self.weights = nn.Linear(12, heads * points * 2), nn.Linear(12, heads * points)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        q = self.queries(x).flatten(2).transpose(1, 2)
        value = self.value(self.pixels(x).flatten(2).transpose(1, 2))
        value = value.transpose(1, 2).reshape(n * self.heads, 16 // self.heads, h, w)
        grid = self.places(q).view(n, -1, self.heads, self.points, 2).tanh().transpose(1, 2).flatten(0, 1)
        weights = self.weights(q).view(n, -1, self.heads, self.points).softmax(-1)
        seen = F.grid_sample(value, grid, align_corners=False)
        seen = seen * weights.transpose(1, 2).reshape(n * self.heads, 1, -1, self.points)
        found: Tensor = self.out(seen.sum(-1).view(n, 16, -1).transpose(1, 2))
        return found


def test_whole_heads_go_where_places_are_sampled() -> None:
    torch.manual_seed(0)
    done = fxprune.compile(SamplesByHeads(), X, keep_rate=0.5, select="random", keep_weights=True)
    assert not done.report.refused
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    kept = {name: len(dims[0]) for name, dims in done.recipe.kept.items() if 0 in dims and name.endswith("weight")}
    assert {name: kept[name] for name in ("value.weight", "places.weight", "weights.weight")} == {
        "value.weight": 8, "places.weight": 12, "weights.weight": 6,
    }  # fmt: skip


def test_places_that_all_heads_share_keep_the_heads() -> None:
    class Shared(SamplesByHeads):
        def forward(self, x: Tensor) -> Tensor:
            value = self.pixels(x).reshape(2 * self.heads, 4, 8, 8)
            grid = torch.linspace(-1, 1, 8)[:, None].expand(8, 2).expand(2 * self.heads, 8, 8, 2)
            seen = F.grid_sample(value, grid, align_corners=False).reshape(2, 16, 64)
            found: Tensor = self.out(seen.transpose(1, 2))
            return found

    done = fxprune.compile(Shared(), X, keep_rate=0.5, select="random", keep_weights=True)
    assert not done.report.refused and done.report.proof_error is not None and done.report.proof_error < 1e-9
