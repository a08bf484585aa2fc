"""Weights that are computed at each call are cut as what they are now: plain weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from family_oracle import oracle, relative
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import fxprune
from fxprune.capture.plain import plain_weights


class Doubled(nn.Module):
    """A parametrisation of the user's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight / weight.abs().amax()


def own(conv: nn.Conv2d) -> nn.Module:
    parametrize.register_parametrization(conv, "weight", Doubled())
    parametrize.register_parametrization(conv, "bias", Doubled())
    return conv


def old_weight_norm(conv: nn.Conv2d) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(conv)


COMPUTED: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "weight norm": parametrizations.weight_norm,
    "old weight norm": old_weight_norm,
    "spectral norm": parametrizations.spectral_norm,
    "old spectral norm": spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "pruned": lambda conv: prune.random_unstructured(conv, "weight", 0.5),
    "own": own,
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    middle = COMPUTED[name](nn.Conv2d(16, 12, 3, padding=1).double())
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), middle, nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 5, 1))
    return nn.Sequential(*layers).double()


def images() -> Tensor:
    return torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", COMPUTED)
def test_cut_exactly_and_the_model_is_left_alone(name: str) -> None:
    net = network(name)
    before = net.eval()(images()).detach()
    done = fxprune.compile(net, images(), keep_rate=0.5, select="random", keep_weights=True)
    assert tuple(done.module.get_parameter("2.weight").shape) == (6, 8, 3, 3) and not done.report.refused
    assert any("plain weights now: 2.weight" in note for note in done.report.notes)
    plain, names = plain_weights(net)
    assert "2.weight" in names and relative(before, plain(images())) <= 1e-12
    with torch.no_grad():
        assert relative(oracle(plain, done.recipe)(images()), done.module.eval()(images())) <= 1e-9
        assert torch.equal(net(images()), before)
        assert relative(done.recipe.apply(net)(images()), done.module(images())) <= 1e-12
    assert list(network(name).state_dict()) == list(net.state_dict())


def test_a_network_of_plain_weights_is_itself() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1))
    assert plain_weights(net) == (net, ())
