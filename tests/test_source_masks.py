"""model.py keeps masked weights at zero in training, with a plain state, and ties what is tied."""

from __future__ import annotations

import pytest
import torch
from emitted_sources import check, compiled, network
from models import NETWORKS, conv
from torch import Tensor, nn

from fxprune.emit.source_run import network_from


@pytest.mark.parametrize("optimiser", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("name", ["residual", "transposed", "conv1d", "functional_conv", "tied_weights"])
def test_masked_weights_stay_zero_in_training_and_the_state_stays_plain(name: str, optimiser: str) -> None:
    done = network(name)
    state = done.state_dict()
    net = network_from(done.to_source().source.text, {key: one.clone() for key, one in state.items()}, "model.py")
    assert net.state_dict().keys() == state.keys()
    steps = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    }[optimiser](net.parameters())
    for _ in range(3):
        steps.zero_grad()
        net(*NETWORKS[name].example()).square().mean().backward()
        steps.step()
    trained = net.state_dict()
    assert trained.keys() == state.keys()
    assert done.recipe.masks, "a network without masks proves nothing"
    for weight in done.recipe.masks:
        mask = trained[f"{weight}_mask"]
        assert not mask.all() and not trained[weight][~mask].any()
        assert not torch.equal(trained[weight], state[weight])


def test_masks_of_tied_weights_are_tied() -> None:
    done = network("tied_weights")
    assert {"b.weight", "c.weight"} <= done.recipe.masks.keys()
    net = network_from(done.to_source().source.text, done.state_dict(), "model.py")
    assert net.get_parameter("b.weight") is net.get_parameter("c.weight")


class RootMatrix(nn.Module):
    """A masked weight of the network itself, and different graphs for the two modes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.matrix, self.fc = conv(3, 6), nn.Parameter(torch.randn(6, 10)), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).mean((2, 3)) @ self.matrix
        out: Tensor = self.fc(torch.dropout(x.relu(), 0.5, self.training))
        return out + 1 if self.training else out


def test_network_that_owns_a_masked_weight_changes_its_mode() -> None:
    done = compiled(RootMatrix(), torch.randn(2, 3, 8, 8))
    assert "matrix" in done.recipe.masks
    for mode in (False, True, False):
        assert done.module.train(mode)(torch.randn(2, 3, 8, 8)).shape == (2, 4)
    assert check(done).notes == ()
