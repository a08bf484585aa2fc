"""The pass manager: requirements, the check after every pass, observers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import fxprune
from fxprune.capture.module import capture
from fxprune.channels.groups import Couplings
from fxprune.errors import OptionError, PassError
from fxprune.facts import Prunable, Ranking, Repairs, SensitivityReport, Shrunk, SparsityReport, WeightMasks, WidthPlan
from fxprune.manager import PassManager, inconsistency
from fxprune.options import Options
from fxprune.pass_lists import passes_for
from fxprune.program import Program


@dataclass(frozen=True)
class Step:
    """A pass for tests: does what it is told."""

    act: Callable[[Program], Program] = lambda program: program
    name: str = "step"
    requires: tuple[type, ...] = ()

    def run(self, program: Program) -> Program:
        return self.act(program)


@dataclass(frozen=True)
class Found:
    number: int


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 3))


def program() -> Program:
    return capture(network(), torch.empty(2, 3, 8, 8))


def test_runs_in_order_and_hands_facts_on() -> None:
    first = Step(lambda one: one.with_facts(Found(1)), "first")
    second = Step(lambda one: one.with_facts(Found(one.fact(Found).number + 1)), "second", (Found,))
    assert PassManager([first, second, second]).run(program()).fact(Found) == Found(3)


def test_a_pass_without_what_it_requires() -> None:
    steps = [Step(name="alpha"), Step(name="beta"), Step(name="gamma", requires=(Found, WidthPlan))]
    with pytest.raises(PassError, match=r"pass 'gamma' \(after alpha, beta\) needs Found, WidthPlan"):
        PassManager(steps).run(program())
    with pytest.raises(PassError, match=r"pass 'gamma' \(after capture\) needs"):
        PassManager(steps[2:]).run(program())


def test_every_real_pass_says_what_it_requires() -> None:
    for options in (Options(sparsity=0.5), Options(keep_rate=0.5)):
        steps = passes_for(options)
        PassManager(steps).run(program())
        for place, step in enumerate(steps):
            if step.requires:
                with pytest.raises(
                    PassError, match=rf"'{step.name}' \(after capture\) needs {step.requires[0].__name__}"
                ):
                    PassManager(steps[place:]).run(program())


def test_errors_inside_a_pass_name_it() -> None:
    def fail(_: Program) -> Program:
        raise ZeroDivisionError("by zero")

    with pytest.raises(PassError, match=r"pass 'bad' \(after step\) failed: ZeroDivisionError: by zero") as caught:
        PassManager([Step(), Step(fail, "bad")]).run(program())
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_errors_for_the_user_come_through_as_they_are() -> None:
    def refuse(_: Program) -> Program:
        raise OptionError("no")

    with pytest.raises(OptionError, match="^no$"):
        PassManager([Step(refuse)]).run(program())


def test_observers_see_each_pass_in_order() -> None:
    seen: list[tuple[str, bool, float]] = []
    manager = PassManager(
        [Step(name="one"), Step(lambda one: one.with_facts(Found(1)), "two")],
        observers=[lambda name, after, seconds: seen.append((name, Found in after.facts, seconds))],
    )
    manager.run(program())
    assert [(name, knows) for name, knows, _ in seen] == [("one", False), ("two", True)]
    assert set(manager.seconds) == {"one", "two"} and all(seconds >= 0 for _, _, seconds in seen)


def test_compile_hands_observers_every_pass() -> None:
    names: list[str] = []
    fxprune.compile(
        network(), torch.empty(2, 3, 8, 8), sparsity=0.5, observers=[lambda name, after, seconds: names.append(name)]
    )
    assert names == ["analyse", "select", "initialise", "mask", "sparsity", "sensitivity", "plan", "shrink", "reinit"]


def test_a_rewrite_drops_facts() -> None:
    """No fact about the dense network outlives its graph."""
    after: dict[str, frozenset[type]] = {}
    fxprune.compile(
        network(),
        torch.empty(2, 3, 8, 8),
        sparsity=0.5,
        observers=[lambda name, one, seconds: after.update({name: frozenset(one.facts)})],
    )
    assert {Couplings, Prunable, SparsityReport, SensitivityReport, WidthPlan} <= after["plan"]
    assert after["shrink"] == after["reinit"] == {Shrunk, WeightMasks, Repairs, Ranking}


def test_an_unknown_fact_is_named() -> None:
    with pytest.raises(PassError, match="no WidthPlan is known"):
        program().fact(WidthPlan)


# ---- planted faults


def shrink_tensor(one: Program) -> Program:
    return one.with_tensors({"0.weight": torch.zeros(7, 3, 3, 3)})


def lose_tensor(one: Program) -> Program:
    return replace(one, tensors={name: tensor for name, tensor in one.tensors.items() if name != "1.bias"})


def put_numbers_into_the_skeleton(one: Program) -> Program:
    one.module.get_submodule("1").running_mean = torch.zeros(8)
    return one


def misfit_mask(one: Program) -> Program:
    return one.with_facts(WeightMasks({"0.weight": torch.ones(8, 3, 3, 1)}))


def mask_of_nothing(one: Program) -> Program:
    return one.with_facts(WeightMasks({"9.weight": torch.ones(8)}))


def break_graph(one: Program) -> Program:
    nodes = list(one.module.graph.nodes)
    nodes[-1].append(nodes[1])  # a node after the one that reads it
    return one


FAULTS: dict[Callable[[Program], Program], str] = {
    shrink_tensor: r"0\.weight has shape \(7, 3, 3, 3\), its module says \(8, 3, 3, 3\)",
    lose_tensor: r"1\.bias has no numbers",
    put_numbers_into_the_skeleton: r"1\.running_mean holds numbers",
    misfit_mask: r"the mask of 0\.weight does not fit",
    mask_of_nothing: r"the mask of 9\.weight does not fit",
    break_graph: "",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_pass_that_leaves_an_inconsistent_program_is_caught(fault: Any) -> None:
    with pytest.raises(PassError, match=rf"pass 'bad' \(after good\) left the program inconsistent: .*{FAULTS[fault]}"):
        PassManager([Step(name="good"), Step(fault, "bad"), Step(name="never")]).run(program())


def test_a_sound_program_passes_the_check() -> None:
    assert inconsistency(program()) == ""


@dataclass(frozen=True)
class Planted:
    name: ClassVar[str] = "shrink"
    requires: ClassVar[tuple[type, ...]] = ()

    def run(self, one: Program) -> Program:
        return shrink_tensor(one)


def test_a_fault_in_the_default_order_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxprune.pass_lists.Shrink", lambda *_: Planted())
    with pytest.raises(PassError, match=r"pass 'shrink' \(after analyse, .*, plan\) left the program inconsistent"):
        fxprune.compile(network(), torch.empty(2, 3, 8, 8), sparsity=0.5)
