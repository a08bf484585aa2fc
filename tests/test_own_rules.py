"""Rules for operators that do not come from PyTorch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.channels.context import Context
from fxprune.channels.records import Call
from fxprune.channels.rules import RULES, rule, rule_for, table
from fxprune.errors import ProofError


@torch.library.custom_op("fxprune_tests::relu", mutates_args=())
def relu(x: Tensor) -> Tensor:
    """Bears the name of an ATen operator, and is another one: channel i meets channel n - 1 - i."""
    return x + 0.5 * x.flip(1)


@relu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.ops.fxprune_tests.relu(self.first(x)))
        return out


def mirrored(ctx: Context, call: Call) -> None:
    labels = ctx.of(call.tensor("x"))
    for layer in labels.layers_along({1}):
        ctx.tie(layer, layer.flip(1))
    ctx.label(call.result, labels.layers)


def unmirrored(ctx: Context, call: Call) -> None:
    ctx.label(call.result, ctx.of(call.tensor("x")).layers)


@pytest.fixture(autouse=True)
def own_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table, "RULES", dict(RULES))


def compiled(seed: int = 0) -> fxprune.Compiled:
    return fxprune.compile(Network(), torch.zeros(2, 3, 8, 6), keep_rate=0.5, select="random", seed=seed, retry=False)


def test_names_of_other_namespaces_are_apart() -> None:
    assert rule_for(torch.ops.aten.relu.default) is not None
    assert rule_for(torch.ops.fxprune_tests.relu.default) is None
    rule("fxprune_tests::relu")(mirrored)
    assert rule_for(torch.ops.fxprune_tests.relu.default) is mirrored
    assert rule_for(torch.ops.aten.relu.default) is not mirrored
    assert rule_for(torch.ops.aten.relu_.default) is not mirrored


def test_channels_go_in_pairs_with_the_right_rule() -> None:
    rule("fxprune_tests::relu")(mirrored)
    kept = compiled().recipe.kept["first.weight"][0]
    assert len(kept) == 4 and sorted(7 - one for one in kept) == kept


def test_a_wrong_rule_is_refused_by_the_proof() -> None:
    rule("fxprune_tests::relu")(unmirrored)
    with pytest.raises(ProofError, match="outputs of the eval graph differ"):
        compiled()
