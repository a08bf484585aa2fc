"""Planted faults. Each is caught with retry off; with retry on, what it spoils is left alone and the rest is exact.

A rule that ties too much makes nothing wrong: test_minimality.py is about those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from models import NETWORKS, Case, call
from oracle import EXACT, difference, zeroed
from pytest import MonkeyPatch
from torch import Tensor

import fxprune
from fxprune.capture.module import capture
from fxprune.channels import rewrite as rewriting
from fxprune.channels.context import Context
from fxprune.channels.cut import Cut
from fxprune.channels.engine import analyse
from fxprune.channels.groups import couple
from fxprune.channels.layers import Labels
from fxprune.channels.literals import OWNERS, Patcher
from fxprune.channels.records import Call, Claim
from fxprune.channels.rules import RULES
from fxprune.channels.rules.joining import concatenated
from fxprune.errors import ProofError
from fxprune.proof import prove
from fxprune.reference import Reference

Plant = Callable[[MonkeyPatch], None]


@dataclass(frozen=True)
class Fault:
    """A mistake, the network it spoils, and what the check says about it.

    local   the fault spoils single groups, so that with retry on others still shrink
    """

    plant: Plant
    network: str
    says: str
    local: bool = False


FAULTS: dict[str, Fault] = {}


def fault(network: str, says: str, local: bool = False) -> Callable[[Plant], Plant]:
    def register(plant: Plant) -> Plant:
        FAULTS[f"{plant.__name__}-{network}"] = Fault(plant, network, says, local)
        return plant

    return register


DIFFER = "outputs of the eval graph differ"


@fault("projection_shortcut", DIFFER, local=True)
def add_ties_nothing(patch: MonkeyPatch) -> None:
    """Merges too little: both branches of a shortcut may lose what they like."""

    def rule(ctx: Context, call: Call) -> None:
        ctx.label(call.result, ctx.of(call.tensor("self")).layers)

    patch.setitem(RULES, "add", rule)


@fault("depthwise", "fails at bn")
def batch_norm_ties_nothing(patch: MonkeyPatch) -> None:
    def rule(ctx: Context, call: Call) -> None:
        ctx.label(call.results()[0], ctx.of(call.tensor("input")).layers)

    for name in [name for name in RULES if "batch_norm" in name]:
        patch.setitem(RULES, name, rule)


@fault("attention_explicit", DIFFER, local=True)
def product_ties_nothing(patch: MonkeyPatch) -> None:
    """Queries and keys lose different positions of the dimension over which they meet."""

    def rule(ctx: Context, call: Call) -> None:
        left, right = ctx.of(call.tensor("self")), ctx.of(call.tensor("mat2"))
        outer = [layer for layer in left.layers if layer.shape[2] == 1]
        ctx.label(call.result, outer + [layer for layer in right.layers if layer.shape[1] == 1])

    patch.setitem(RULES, "bmm", rule)


@fault("shuffle_literal", "view has shape")
@fault("flatten_literal", "view has shape", local=True)
def view_unpatched(patch: MonkeyPatch) -> None:
    patch.delitem(OWNERS, "view")


@fault("split", "fails at split")
def split_unpatched(patch: MonkeyPatch) -> None:
    patch.delitem(OWNERS, "split")


@fault("group_norm_whole", "channels of a.weight.* coupled")
@fault("group_norm_function", "channels of a.weight.* coupled")
@fault("depthwise", "fails at b")
@fault("depthwise_multiplier", "fails at b")
def one_group(patch: MonkeyPatch) -> None:
    """`num_groups` and `groups` become 1 where they change. For a GroupNorm all shapes fit."""
    rows_left = Patcher.rows_left

    def wrong(patcher: Patcher, claim: Claim) -> int:
        right = rows_left(patcher, claim)
        return right if right == len(claim.layer) else 1

    patch.setattr(Patcher, "rows_left", wrong)


@fault("index_buffer", "coupled after the rewrite")
@fault("index_select", "coupled after the rewrite")
def index_not_renumbered(patch: MonkeyPatch) -> None:
    """The buffer is sliced, but points at positions of the dense network."""
    patch.setattr(rewriting, "_renumbered", lambda claims, cut, tensors: {})


@fault("index_buffer", "order has shape")
def index_not_sliced(patch: MonkeyPatch) -> None:
    cut_positions = Cut.kept_positions

    def kept_positions(cut: Cut, labels: Labels) -> dict[int, Any]:
        return {} if labels.source == "order" else cut_positions(cut, labels)

    patch.setattr(Cut, "kept_positions", kept_positions)


@fault("concat", DIFFER)
@fault("residual", DIFFER)
def slice_off_by_one(patch: MonkeyPatch) -> None:
    """Right number of channels, wrong place, for every matrix or kernel."""
    cut_slice = Cut.slice

    def shifted(cut: Cut, labels: Labels, tensor: Tensor) -> Tensor:
        loses = tensor.ndim > 1 and 0 in cut.kept_positions(labels)
        return cut_slice(cut, labels, tensor.roll(1, 0) if loses else tensor)

    patch.setattr(Cut, "slice", shifted)


@fault("concat", DIFFER)
@fault("nested_concat", DIFFER)
def concat_backwards(patch: MonkeyPatch) -> None:
    """Labels stand in the opposite order of the channels."""

    def rule(ctx: Context, call: Call) -> None:
        arguments = {**call.arguments, "tensors": list(reversed(call.arguments["tensors"]))}
        concatenated(ctx, Call(arguments, call.rest, call.result, call.function))

    patch.setitem(RULES, "cat", rule)


@fault("residual", DIFFER)
@fault("grouped", DIFFER)
def nothing_zeroed(patch: MonkeyPatch) -> None:
    """The proof compares with the plain dense network: it must not agree with that."""
    patch.setattr(Reference, "_zeroed", lambda reference, args, contractions: args)


def compiled(case: Case, retry: bool) -> fxprune.Compiled:
    return fxprune.compile(case.model(), case.example(), keep_rate=0.5, select="random", keep_weights=True, retry=retry)


@pytest.mark.parametrize("name", FAULTS)
def test_caught(name: str, monkeypatch: MonkeyPatch) -> None:
    planted = FAULTS[name]
    case = NETWORKS[planted.network]
    assert compiled(case, retry=False).report.refused == {}, "the network must be fine without the fault"
    planted.plant(monkeypatch)
    with pytest.raises(ProofError, match=planted.says):
        compiled(case, retry=False)


@pytest.mark.parametrize("name", FAULTS)
def test_left_alone(name: str, monkeypatch: MonkeyPatch) -> None:
    planted = FAULTS[name]
    case = NETWORKS[planted.network]
    whole = compiled(case, retry=False)
    planted.plant(monkeypatch)
    done = compiled(case, retry=True)
    assert done.report.refused
    assert all(reason for reason in done.report.refused.values())
    lines = {line.index: line for line in done.report.groups}
    assert all(lines[index].after == lines[index].before for index in done.report.refused)
    assert all(lines[index].frozen == reason for index, reason in done.report.refused.items())
    expected = call(zeroed(case.model(), case, done.recipe), case.example())
    assert difference(expected, call(done.module.eval(), case.example())) <= EXACT
    assert done.report.after.parameters > whole.report.after.parameters
    assert (done.report.after.parameters < done.report.before.parameters) == planted.local


def test_numbers_alone_see_a_wrong_number_of_groups(monkeypatch: MonkeyPatch) -> None:
    """All shapes fit when a GroupNorm gets another number of groups."""
    case = NETWORKS["group_norm_whole"]
    program = capture(case.model(), case.example())
    couplings = couple(analyse(program, approximate="freeze"))
    plan = {group.index: np.array([0, 2]) for group in couplings.prunable()}
    assert prove(program, couplings, rewriting.rewrite(program, couplings, plan), 0)
    one_group(monkeypatch)
    assert "differ" in prove(program, couplings, rewriting.rewrite(program, couplings, plan), 0).fault
