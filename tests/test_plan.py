"""The plan pass: how many channels each group keeps, which ones, and what coupled layers agree on."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fxprune.capture.module import capture
from fxprune.channels.engine import analyse
from fxprune.channels.groups import Couplings, couple
from fxprune.errors import OptionError
from fxprune.facts import Prunable, SensitivityReport, Share, SparsityReport, WeightMasks, WidthPlan
from fxprune.passes.plan import Plan
from fxprune.program import Program


def analysed(model: nn.Module, size: int = 8) -> Program:
    program = capture(model, torch.empty(2, 3, size, size))
    return program.with_facts(couple(analyse(program)))


def masked(program: Program, masks: Mapping[str, Tensor], sensitive: tuple[str, ...] = ()) -> Program:
    """Facts as the earlier passes would have stated them for these masks."""
    shares = {name: Share(int((~mask).sum()), mask.numel()) for name, mask in masks.items()}
    return program.with_facts(
        WeightMasks(masks),
        SparsityReport(shares, Fraction(1, 2)),
        SensitivityReport({name: name not in sensitive for name in masks}),
        Prunable(dict.fromkeys(masks, "conv"), {}),
    )


def first_kept(program: Program, name: str, kept: int) -> Tensor:
    """A mask of this weight whose first `kept` entries stay."""
    shape = program.module.get_parameter(name).shape
    return (torch.arange(shape.numel()) < kept).reshape(shape)


def kept_by(program: Program, coupling: str = "max") -> dict[str, list[int]]:
    """Producers of each group, joined by +, and the positions it keeps."""
    couplings = program.fact(Couplings)
    plan = Plan(coupling).run(program).fact(WidthPlan).kept
    return {"+".join(couplings.groups[index].producers): kept.tolist() for index, kept in plan.items()}


class Chain(nn.Module):
    def __init__(self, width: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, width, kernel), nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.conv(x).relu())
        return out


def width_of_chain(width: int, kept: int, kernel: int = 1) -> int:
    """Channels that a resilient conv of `width` channels with `kept` surviving weights gets."""
    program = analysed(Chain(width, kernel))
    done = kept_by(masked(program, {"conv.weight": first_kept(program, "conv.weight", kept)}))
    return len(done.get("conv.weight", range(width)))


def test_100_channels_at_95_percent_give_5() -> None:
    assert width_of_chain(100, 100 * 3 * 5 // 100) == 5  # a float ceil of 100 * (1 - 0.95) gives 6


def test_3_channels_at_a_third_give_2() -> None:
    assert width_of_chain(3, 6) == 2


@pytest.mark.parametrize(("kept", "width"), [(0, 1), (1, 1), (3, 1), (4, 2), (27, 9), (28, 10), (30, 10)])
def test_rounds_up_and_keeps_at_least_one(kept: int, width: int) -> None:
    assert width_of_chain(10, kept) == width


@given(st.integers(1, 600), st.integers(0, 10**6), st.integers(1, 10**6))
def test_request_is_the_exact_ceiling(width: int, zeros: int, total: int) -> None:
    share = Share(min(zeros, total), total)
    facts = {
        SensitivityReport: SensitivityReport({"w": True}),
        SparsityReport: SparsityReport({"w": share}, Fraction(0)),
    }
    program = Program(None, {}, inputs=None, facts=facts)  # type: ignore[arg-type]
    exact = Fraction(width * share.kept, total)
    assert Plan()._request(width, "w", program) == max(1, -(-exact.numerator // exact.denominator))


def test_sensitive_layers_keep_all() -> None:
    program = analysed(Chain(10))
    mask = {"conv.weight": first_kept(program, "conv.weight", 3)}
    assert kept_by(masked(program, mask, sensitive=("conv.weight",))) == {}


def test_groups_that_an_option_freezes_keep_all() -> None:
    program = masked(analysed(Chain(10)), {"conv.weight": torch.zeros(10, 3, 1, 1, dtype=torch.bool)})
    (group,) = program.fact(Couplings).prunable()
    assert kept_by(program)
    assert kept_by(program.with_facts(Prunable({"conv.weight": "conv"}, {group.index: "asked for"}))) == {}


def rows(counts: list[int], columns: int = 3) -> Tensor:
    """A 1x1 conv's mask with so many surviving weights in each row."""
    return (torch.arange(columns) < torch.tensor(counts)[:, None])[:, :, None, None]


def test_channels_with_most_surviving_weights_stay() -> None:
    program = analysed(Chain(6))
    assert kept_by(masked(program, {"conv.weight": rows([0, 3, 1, 0, 2, 0])}))["conv.weight"] == [1, 4]


def test_ties_go_to_the_lowest_index() -> None:
    program = analysed(Chain(6))
    assert kept_by(masked(program, {"conv.weight": rows([1, 1, 1, 1, 1, 1])}))["conv.weight"] == [0, 1]
    assert kept_by(masked(program, {"conv.weight": rows([0, 1, 2, 1, 1, 1])}))["conv.weight"] == [1, 2]


class Residual(nn.Module):
    """Stem and branch add together: one group of two producers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.branch = nn.Conv2d(3, 10, 1), nn.Conv2d(10, 10, 1), nn.Conv2d(10, 10, 1)
        self.last = nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.last((x + self.branch(self.inner(x).relu())).relu())
        return out


RESIDUAL = {"stem.weight": 9, "inner.weight": 45, "branch.weight": 61}  # asks for 3, 5 and 7 of 10


@pytest.mark.parametrize(("coupling", "joint"), [("max", 7), ("keep", None), ("min", 3)])
def test_coupled_layers_agree(coupling: str, joint: int | None) -> None:
    program = analysed(Residual())
    program = masked(program, {name: first_kept(program, name, kept) for name, kept in RESIDUAL.items()})
    widths = {name: len(kept) for name, kept in kept_by(program, coupling).items()}
    assert widths == {"inner.weight": 5} | ({"stem.weight+branch.weight": joint} if joint else {})


@pytest.mark.parametrize(("coupling", "joint"), [("max", None), ("keep", None), ("min", 3)])
def test_a_sensitive_member_asks_for_all(coupling: str, joint: int | None) -> None:
    program = analysed(Residual())
    masks = {name: first_kept(program, name, kept) for name, kept in RESIDUAL.items()}
    widths = kept_by(masked(program, masks, sensitive=("branch.weight",)), coupling)
    assert len(widths.get("stem.weight+branch.weight", [])) == (joint or 0)


def test_surviving_weights_of_all_members_count_together() -> None:
    program = analysed(Residual())
    stem, branch = rows([2, 0, 0, 0, 0, 0, 1, 0, 0, 0]), rows([0, 3, 0, 0, 0, 0, 4, 0, 0, 0], 10)
    masks = {"stem.weight": stem, "branch.weight": branch, "inner.weight": torch.ones(10, 10, 1, 1, dtype=torch.bool)}
    joint = kept_by(masked(program, masks))["stem.weight+branch.weight"]
    assert joint == [6]  # 3 of 30 and 7 of 100 weights ask for one channel: the one with 1 + 4


class Chunked(nn.Module):
    """One conv whose halves go different ways: it spans two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.left, self.right = nn.Conv2d(3, 16, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.wide(x).chunk(2, dim=1)
        out: Tensor = self.left(first.relu()) + self.right(second)
        return out


def test_a_conv_that_spans_several_groups() -> None:
    program = analysed(Chunked())
    assert [group.width for group in program.fact(Couplings).prunable()] == [8, 8]
    mask = rows([1, 2, 0, 0, 0, 0, 0, 0] + [0, 0, 0, 0, 0, 0, 3, 3])  # 9 of 48: two of eight channels in each half
    plan = Plan().run(masked(program, {"wide.weight": mask})).fact(WidthPlan).kept
    assert [kept.tolist() for kept in plan.values()] == [[0, 1], [6, 7]]


class Grouped(nn.Module):
    """Every conv group must lose equally many channels, at whatever positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped, self.last = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1, groups=2), nn.Conv2d(12, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.grouped(self.first(x)).relu())
        return out


def test_rows_of_grouped_convs_lose_equally_many() -> None:
    program = analysed(Grouped())
    masks = {
        "first.weight": rows([0, 1, 0, 1, 0, 0, 2, 3]),  # 7 of 24: 3 channels, rounded up to 2 in each of 2 rows
        "grouped.weight": rows([0, 0, 0, 0, 0, 4] + [4, 3, 2, 1, 0, 0], 4),  # 14 of 48: 4 channels, 2 in each row
        "last.weight": torch.ones(2, 12, 1, 1, dtype=torch.bool),
    }
    kept = kept_by(masked(program, masks))
    assert kept == {"first.weight": [1, 3, 6, 7], "grouped.weight": [0, 5, 6, 7]}


def test_rows_that_are_rounded_up_to_all_are_no_plan() -> None:
    program = analysed(Grouped())
    masks = {
        name: torch.ones_like(program.module.get_parameter(name), dtype=torch.bool, device="cpu") for name in MASKED
    }
    masks["first.weight"] = rows([0, 3, 3, 3, 3, 3, 3, 3])  # asks for 7 of 8
    assert kept_by(masked(program, masks)) == {}


MASKED = ("first.weight", "grouped.weight", "last.weight")


def test_positions_ascend_and_are_unique() -> None:
    program = analysed(Chain(40))
    mask = torch.rand(40, 3, 1, 1, generator=torch.Generator().manual_seed(0)) < 0.4
    kept = np.array(kept_by(masked(program, {"conv.weight": mask}))["conv.weight"])
    assert (np.diff(kept) > 0).all()
    counts = mask.sum((1, 2, 3)).numpy()
    assert counts[kept].min() >= np.delete(counts, kept).max()


def test_unknown_coupling() -> None:
    program = masked(analysed(Chain(4)), {"conv.weight": torch.ones(4, 3, 1, 1, dtype=torch.bool)})
    with pytest.raises(OptionError, match="'mean': choose max, keep, min"):
        Plan("mean").run(program)
