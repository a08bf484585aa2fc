"""Statistics over channels keep as many channels as they need to say anything."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune


class Net(nn.Module):
    """16 channels, a statistic over them, two convolutions."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.run, self.norm = run, nn.LayerNorm(16)
        self.d, self.e = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3)
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.c(self.b(self.run(self, self.a(x))).relu())
        return out


def standardised(weight: Tensor) -> Tensor:
    return (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)


def normalised(weight: Tensor) -> Tensor:
    return F.batch_norm(weight.flatten(1)[None], None, None, training=True)[0].reshape(weight.shape)


LEAST: dict[str, tuple[int, Callable[[Net, Tensor], Tensor]]] = {
    "a variance divides by one less": (2, lambda s, x: x / (x.var(1, keepdim=True) + 1e-6).sqrt()),
    "so does a deviation": (2, lambda s, x: x / (x.std(dim=1, keepdim=True) + 1e-3)),
    "of both": (2, lambda s, x: x / (torch.var_mean(x, 1, keepdim=True)[0] + 1e-3)),
    "by three less": (4, lambda s, x: x / (torch.var(x, dim=1, keepdim=True, correction=3) + 1e-3)),
    "by the number itself": (1, lambda s, x: x / (1 + x.var(1, keepdim=True, unbiased=False))),
    "pixels count, too": (1, lambda s, x: x / x.var((1, 2, 3), keepdim=True)),
    "a mean": (1, lambda s, x: x * x.mean(1, keepdim=True)),
    "weights standardised": (2, lambda s, x: F.conv2d(x, standardised(s.d.weight))),
    "weights standardised by batch norm": (2, lambda s, x: F.conv2d(x, normalised(s.d.weight))),
    "windows are of nine": (1, lambda s, x: F.conv2d(x, normalised(s.e.weight))),
    "a layer norm subtracts the mean": (2, lambda s, x: s.norm(x.movedim(1, -1)).movedim(-1, 1)),
}


@pytest.mark.parametrize("name", LEAST)
def test_least_channels(name: str) -> None:
    least, run = LEAST[name]
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    done = fxprune.compile(Net(run), x, keep_rate=0.01, select="random", keep_weights=True, approximate="cut")
    assert done.module.get_parameter("a.weight").shape[0] == least
    assert done.module.get_parameter("b.weight").shape[0] == 1  # others lose what they can
    error, signal = done.report.proof_error, done.report.proof_signal
    assert error is not None and error <= 1e-9 and signal is not None and signal > 1e-3
    assert bool(done.module.eval()(x).isfinite().all())


def test_channels_that_are_all_needed_say_so() -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), Deviating(), nn.Conv2d(2, 8, 1), nn.Conv2d(8, 4, 1))
    done = fxprune.compile(model, torch.randn(2, 3, 8, 8), keep_rate=0.5, select="first", approximate="cut")
    (reason,) = [group.frozen for group in done.report.groups if "0.weight[0]" in group.members]
    assert reason is not None and reason.startswith("a statistic over channels needs 2 of them")
    assert done.module.get_parameter("2.weight").shape == (4, 2, 1, 1)


class Deviating(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / (x.std(1, keepdim=True) + 1)
