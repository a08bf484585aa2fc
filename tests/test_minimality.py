"""No rule ties more than it must, and a rule that does is found: the proof of exactness cannot see it."""

from __future__ import annotations

import pytest
from models import NETWORKS
from pytest import MonkeyPatch

from fxprune.capture.module import capture
from fxprune.channels.context import Context
from fxprune.channels.engine import analyse
from fxprune.channels.groups import couple
from fxprune.channels.records import Call
from fxprune.channels.rules import RULES
from fxprune.channels.rules.joining import concatenated
from fxprune.channels.rules.normalisation import batch_norm
from fxprune.minimality import unneeded_ties

UNNEEDED = {
    # q.(k + bias) adds the same number to all keys of a query, and softmax takes that away again
    "attention_fused": ["k"],
    "attention_explicit": ["k"],
    # the mean of each channel is taken off right behind the convolution, its bias with it
    "group_norm_single": ["a"],
    "instance_norm_plain": ["a"],
    # four channels that nobody reads: their weights and biases may go separately
    "index_select": ["a"],
    # channels of `a` that `side` overwrites: whatever they are, nobody reads them
    "view_assigned": ["a"],
}


def ties_left_over(network: str) -> list[str]:
    case = NETWORKS[network]
    program = capture(case.model(), case.example())
    return unneeded_ties(program, couple(analyse(program)))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_tie_is_unneeded(name: str) -> None:
    found = ties_left_over(name)
    assert [line.partition(" at ")[2].split()[0] for line in found] == UNNEEDED.get(name, []), found


def tied_operands(ctx: Context, call: Call) -> None:
    """Concatenation that also ties its operands together, as far as they reach."""
    concatenated(ctx, call)
    left, right = (ctx.of(tensor).layers_along({1})[0] for tensor in call.arguments["tensors"][:2])
    width = min(left.shape[1], right.shape[1])
    ctx.tie(left.narrow(1, 0, width), right.narrow(1, 0, width))


def tied_evens(ctx: Context, call: Call) -> None:
    """Batch normalisation that also ties all channels of even index."""
    batch_norm(ctx, call)
    layer = ctx.of(call.tensor("input")).layers_along({1})[0]
    ctx.tie(layer[:, :1], layer[:, ::2])


@pytest.mark.parametrize("network", ["concat", "nested_concat", "pad_zeros"])
def test_concat_that_ties_too_much(network: str, monkeypatch: MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "cat", tied_operands)
    assert any(line.startswith("aten.cat at ") for line in ties_left_over(network)), network


@pytest.mark.parametrize("network", ["residual", "depthwise", "concat", "transposed", "conv1d", "auxiliary_head"])
def test_batch_norm_that_ties_too_much(network: str, monkeypatch: MonkeyPatch) -> None:
    for name in [name for name in RULES if "batch_norm" in name]:
        monkeypatch.setitem(RULES, name, tied_evens)
    assert any("batch_norm" in line for line in ties_left_over(network)), network
