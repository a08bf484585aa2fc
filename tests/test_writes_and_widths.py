"""Awkward spellings: writes through other names, widths used as numbers, copies of a channel, random leaves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.proof import _Nudge


class Net(nn.Module):
    """3 -> 8 channels twice (a, b), then `run`, then 8 -> 5 (c)."""

    def __init__(self, run: Callable[[Net, Tensor], Tensor], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.run = run
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 5, 3, padding=1)
        self.one = nn.Conv2d(3, 1, 3, padding=1)
        for name, part in parts.items():
            self.register_buffer(name, part) if isinstance(part, Tensor) else setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.run(self, x))


def add_through_another_name(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    z = y
    z -= net.b(x)
    return y


def add_out(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    torch.add(y, net.b(x), out=y)
    return y


def scale_a_view(net: Net, x: Tensor) -> Tensor:
    y = net.a(x)
    v = y[:, :4]
    v *= 3
    return y


WRITES = [add_through_another_name, add_out, scale_a_view]
FREE: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "a fill value from a width": lambda n, x: n.a(x) * torch.full((2, 8, 1, 1), 1.0 / n.a(x).shape[1]),
    "a padding value from a width": lambda n, x: F.pad(n.a(x), (1, 1, 1, 1), value=1.0 / n.a(x).shape[1]),
    "one channel copied by expand": lambda n, x: n.a(x) * n.one(x).expand_as(n.a(x)),
    "one channel copied by repeat": lambda n, x: n.a(x) * n.one(x).repeat(1, 8, 1, 1),
    "a norm over channels": lambda n, x: F.normalize(n.a(x), dim=1),
    "arguments by keyword": lambda n, x: torch.reshape(input=n.a(x), shape=(2, 8, 8, 6)),
    "pieces in another order": lambda n, x: torch.cat([part.relu() for part in n.a(x).chunk(2, 1)][::-1], 1),
}


def x() -> Tensor:
    return torch.randn(2, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def halved(net: nn.Module, **options: object) -> fxprune.Compiled:
    return fxprune.compile(net.double(), x(), keep_rate=0.5, select="random", keep_weights=True, **options)


def width(done: fxprune.Compiled) -> int:
    return done.module.get_parameter("a.weight").shape[0]


@pytest.mark.parametrize("run", WRITES)
def test_a_write_is_a_write_for_all_who_hold_the_tensor(run: Callable[[Net, Tensor], Tensor]) -> None:
    net = Net(run)
    same = fxprune.compile(net.double(), x(), keep_rate=1.0, keep_weights=True, proof=False)
    with torch.no_grad():
        assert torch.allclose(same.module.eval()(x()), net.eval()(x()), rtol=0, atol=1e-12)
    done = halved(net)
    assert done.report.front_end == "fx" and width(done) == 4 and not done.report.refused


@pytest.mark.parametrize("name", FREE)
def test_cut_and_proved(name: str) -> None:
    done = halved(Net(FREE[name]))
    assert width(done) in (4, 5) and not done.report.refused
    with_proof, without = done.module.eval()(x()), halved(Net(FREE[name]), proof=False).module.eval()(x())
    assert with_proof.shape == without.shape


class DoublesSome(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x[:, :4] * 2, x[:, 4:]], 1) if self.training else x


class NoiseOfItsWidth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(1, 8, 1, 1) if self.training else x


class DropsImages(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rand(x.shape[0], 1, 1, 1).bernoulli_(0.9) / 0.9 if self.training else x


@pytest.mark.parametrize(("leaf", "wanted"), [(DoublesSome(), 8), (NoiseOfItsWidth(), 8), (DropsImages(), 4)])
def test_own_random_leaves_are_proved_in_training_too(leaf: nn.Module, wanted: int) -> None:
    done = halved(Net(lambda n, t: n.leaf(n.a(t)), leaf=leaf))
    assert width(done) == wanted
    assert done.module.train()(x()).shape == (2, 5, 8, 6)


def test_one_index_buffer_has_one_numbering() -> None:
    net = Net(lambda n, t: F.pad(n.a(t)[:, n.i] + n.b(t)[:, n.i].relu(), (0, 0, 0, 0, 0, 5)), i=torch.tensor([5, 1, 7]))
    done = halved(net, proof=False)
    assert done.module.eval()(x()).isfinite().all()
    assert done.recipe.kept["a.weight"][0] == done.recipe.kept["b.weight"][0]


def test_numbers_of_an_index_used_elsewhere_keep_its_channels() -> None:
    net = Net(
        lambda n, t: F.pad(n.a(t)[:, n.i] * n.i.view(1, -1, 1, 1), (0, 0, 0, 0, 0, 4)), i=torch.tensor([0, 2, 5, 6])
    )
    with pytest.raises(fxprune.FxpruneError, match="whose numbers are used elsewhere too"):
        halved(net, proof=False)


def test_outputs_without_numbers_are_said_to_prove_nothing() -> None:
    done = halved(Net(lambda n, t: n.a(t).log()))
    assert done.report.proof_error is None and any("nothing was proved" in note for note in done.report.notes)


def test_proof_turns_weights_around_where_nothing_passes() -> None:
    """Kernels that are all negative behind a ReLU, in front of another: no input reaches the outputs as they are."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False), nn.ReLU(), nn.Conv2d(8, 2, 1))
    with torch.no_grad():
        net[2].weight.abs_().neg_()
    done = halved(net)
    assert done.report.proof_signal is not None and done.report.proof_signal > 1e-3
    assert done.report.proof_error is not None and done.report.proof_error < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_rounding_can_do_is_measured_with_last_bits(dtype: torch.dtype) -> None:
    """An ill-conditioned network is not refused: the proof allows what nudged inputs and weights do to its outputs."""
    one = torch.rand(1000, dtype=dtype) + 0.5
    moved = ((_Nudge()(one) - one) / one).abs()
    assert 0.3 < (moved > 0).double().mean() < 0.9 and moved.max() <= 2.1 * torch.finfo(dtype).eps


def test_a_mask_of_true_and_false_loses_its_entries_with_the_channels() -> None:
    mask = torch.tensor([True, False, True, True, False, False] * 2)
    parts = {"a": nn.Conv2d(3, 12, 3), "mask": mask, "c": nn.Conv2d(6, 5, 1)}
    net = Net(lambda s, x: s.a(x)[:, s.mask].relu(), **parts).double().eval()
    x = torch.randn(2, 3, 8, 6, dtype=torch.float64)
    done = fxprune.compile(net, x, keep_rate=0.5, select="random", keep_weights=True)
    assert not done.report.refused
    kept = done.recipe.kept
    assert len(kept["a.weight"][0]) == 6 and torch.equal(done.module.get_buffer("mask"), mask[kept["a.weight"][0]])
    with torch.no_grad():
        net.c.weight.mul_(torch.tensor([float(index in kept["c.weight"][1]) for index in range(6)]).view(1, 6, 1, 1))
        assert torch.allclose(done.module.eval()(x), net(x), rtol=0, atol=1e-12)
