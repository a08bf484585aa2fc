"""Weight standardisation: exact where weights are kept, because the standardised weight is what is cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from family_oracle import oracle, relative
from torch import Tensor, nn

import fxprune
from fxprune.errors import NothingPrunableError, RewriteError


class ByHand(nn.Conv2d):
    def standardised(self) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return (self.weight - mean) / (self.weight.std((1, 2, 3), keepdim=True) + 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.standardised(), self.bias, padding=1)


class ByBatchNorm(ByHand):
    """As timm does it, with a gain."""

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, size)
        self.gain = nn.Parameter(torch.rand(outputs, 1, 1, 1) + 0.5)

    def standardised(self) -> Tensor:
        rows, gain = self.weight.reshape(1, self.out_channels, -1), (self.gain * 0.3).view(-1)
        rows = F.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=1e-6)
        return rows.reshape_as(self.weight)


class Net(nn.Module):
    def __init__(self, kind: type[ByHand], run: Callable[[Net, Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.run = run
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), kind(16, 12, 3), nn.Conv2d(12, 5, 1)
        self.norm, self.drop = nn.BatchNorm2d(12), nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.drop(self.norm(self.b(self.a(x).relu())).relu())
        out: Tensor = self.c(x)
        return out if self.run is None else out + self.run(self, x)


def network(kind: type[ByHand], run: Callable[[Net, Tensor], Tensor] | None = None) -> Net:
    torch.manual_seed(0)
    return Net(kind, run).double()


def images() -> Tensor:
    return torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def halved(net: nn.Module, **options: object) -> fxprune.Compiled:
    return fxprune.compile(net, images(), keep_rate=0.5, select="random", keep_weights=True, **options)


def plain(net: Net) -> nn.Module:
    """The same function without standardisation."""
    twin = Net(ByHand).double()
    twin.load_state_dict(net.state_dict(), strict=False)
    twin.b = nn.Conv2d(16, 12, 3, padding=1).double()
    with torch.no_grad():
        twin.b.weight.copy_(net.b.standardised())
        twin.b.bias.copy_(net.b.bias)
    return twin.eval()


@pytest.mark.parametrize("kind", [ByHand, ByBatchNorm])
def test_cut_exactly_where_weights_are_kept(kind: type[ByHand]) -> None:
    net = network(kind)
    done = halved(net)
    assert tuple(done.module.get_parameter("b.weight").shape) == (6, 8, 3, 3)
    assert not done.report.approximate and not done.report.refused and not hasattr(done.module.b, "gain")
    assert any("plain weights now: b.weight" in note for note in done.report.notes)
    with torch.no_grad():
        assert relative(oracle(plain(net), done.recipe)(images()), done.module.eval()(images())) <= 1e-9
        assert relative(net.eval()(images()), plain(net)(images())) <= 1e-12, "the model itself is left alone"
    with pytest.raises(RewriteError, match="statistics over its own weights"):
        done.recipe.apply(net)


@pytest.mark.parametrize("kind", [ByHand, ByBatchNorm])
def test_standardised_anew_where_weights_are_drawn(kind: type[ByHand]) -> None:
    done = halved(network(kind), approximate="cut")
    assert done.report.approximate and not any("plain weights" in note for note in done.report.notes)


def test_a_weight_that_is_read_otherwise_too_stays_as_it_is() -> None:
    with pytest.raises(NothingPrunableError, match="a mean over channels would change value"):
        halved(network(ByHand, lambda net, x: net.b.weight.abs().max()))
