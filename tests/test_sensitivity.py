"""The sensitivity pass: Equation 1 with integers, the five policies, and which layers are marked at all."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import fxprune
from fxprune import zoo
from fxprune.capture.module import capture
from fxprune.channels.groups import Couplings
from fxprune.errors import OptionError
from fxprune.facts import Prunable, SensitivityReport, Share, SparsityReport
from fxprune.manager import PassManager
from fxprune.options import Options
from fxprune.pass_lists import passes_for
from fxprune.passes.sensitivity import POLICIES, Sensitivity
from fxprune.program import Program

NO_GROUPS = Couplings(None, None, (), np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))  # type: ignore[arg-type]


def marks(layers: Mapping[str, Share], average: Fraction, policy: str = "reconvene", seed: int = 0) -> dict[str, bool]:
    """Marks of convolutions with these sparsities."""
    facts = {
        SparsityReport: SparsityReport(layers, average),
        Prunable: Prunable(dict.fromkeys(layers, "conv"), {}),
        Couplings: NO_GROUPS,
    }
    program = Program(None, {}, inputs=None, facts=facts)  # type: ignore[arg-type]
    return dict(Sensitivity(policy, seed).run(program).fact(SensitivityReport).resilient)


def test_equality_counts_as_resilient() -> None:
    layers = {"below": Share(32, 100), "equal": Share(33, 99), "above": Share(34, 100)}
    assert marks(layers, Fraction(1, 3)) == {"below": False, "equal": True, "above": True}


def test_decided_with_integers_where_floats_cannot_tell() -> None:
    big = 10**17
    layers = {"below": Share(big, 3 * big + 1), "equal": Share(big, 3 * big), "above": Share(big + 1, 3 * big + 2)}
    assert len({share.sparsity for share in layers.values()}) == 1
    assert marks(layers, Fraction(1, 3)) == {"below": False, "equal": True, "above": True}


shares = st.integers(1, 50).flatmap(lambda total: st.builds(Share, st.integers(0, total), st.just(total)))


@given(st.lists(shares, min_size=1, max_size=8))
def test_resilient_exactly_when_its_sparsity_reaches_the_average(found: list[Share]) -> None:
    layers = {f"layer{number}": share for number, share in enumerate(found)}
    zeros, total = sum(share.zeros for share in found), sum(share.total for share in found)
    expected = {name: share.zeros * total >= zeros * share.total for name, share in layers.items()}
    assert marks(layers, Fraction(zeros, total)) == expected
    assert marks(layers, Fraction(zeros, total), "inverted") == {name: not one for name, one in expected.items()}
    assert any(expected.values())


def test_all_and_none() -> None:
    layers = {"a": Share(1, 9), "b": Share(9, 9), "c": Share(0, 3)}
    assert set(marks(layers, Fraction(1, 2), "all").values()) == {True}
    assert set(marks(layers, Fraction(1, 2), "none").values()) == {False}


def test_random_is_a_fair_coin_from_the_seed_and_the_name() -> None:
    layers = {f"layer{number}": Share(number, 1000) for number in range(1000)}
    first = marks(layers, Fraction(1, 2), "random", seed=4)
    assert marks(layers, Fraction(1, 2), "random", seed=4) == first
    assert marks(layers, Fraction(1, 2), "random", seed=5) != first
    assert 420 < sum(first.values()) < 580
    alone = marks({"layer7": Share(0, 1)}, Fraction(1, 2), "random", seed=4)
    assert alone["layer7"] == first["layer7"]  # neighbours have no say


def test_five_policies() -> None:
    assert set(POLICIES) == {"reconvene", "all", "none", "inverted", "random"}
    with pytest.raises(OptionError, match="'spai': choose reconvene, all, none, inverted, random"):
        marks({}, Fraction(0), "spai")


class Perceptron(nn.Module):
    """A hidden linear layer between convolutions and classes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.depthwise = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8)
        self.hidden, self.classes = nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.depthwise(self.conv(x)).mean((2, 3))
        out: torch.Tensor = self.classes(self.hidden(x).relu())
        return out


def until_sensitivity(model: nn.Module, size: int, options: Options) -> Program:
    program = capture(model, torch.empty(2, 3, size, size))
    steps = passes_for(options)
    names = [step.name for step in steps]
    return PassManager(steps[: names.index("sensitivity") + 1]).run(program)


def test_hidden_linears_are_marked_classes_and_depthwise_layers_are_not() -> None:
    program = until_sensitivity(Perceptron(), 8, Options(sparsity=0.5))
    assert set(program.fact(SensitivityReport).resilient) == {"conv.weight", "hidden.weight"}
    assert set(program.fact(SparsityReport).layers) == {"conv.weight", "hidden.weight", "classes.weight"}


def test_sparsity_zero_makes_every_layer_resilient_and_changes_nothing() -> None:
    program = until_sensitivity(Perceptron(), 8, Options(sparsity=0.0))
    assert all(program.fact(SensitivityReport).resilient.values())
    done = fxprune.compile(Perceptron(), torch.empty(2, 3, 8, 8), sparsity=0.0)
    assert done.report.before == done.report.after


@pytest.fixture(scope="module")
def resnet50() -> nn.Module:
    return zoo.build("resnet50", num_classes=1000)


@pytest.mark.parametrize(("average", "resilient"), [("prunable", 15), ("conv", 22)])
def test_resnet50_stands_on_an_edge_at_90_percent(resnet50: nn.Module, average: str, resilient: int) -> None:
    program = until_sensitivity(resnet50, 64, Options(sparsity=0.9, average=average))
    marked = program.fact(SensitivityReport).resilient
    assert len(marked) == 53
    assert sum(marked.values()) == resilient
