"""What fxprune does not understand stays as it is, with a reason that names operator and place; all else shrinks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from models import Case, Net, Shape, call, conv, pooled
from oracle import EXACT, difference, halved, zeroed
from torch import Tensor, nn

from fxprune.capture.module import capture
from fxprune.channels.engine import analyse
from fxprune.channels.groups import couple
from fxprune.program import named_tensors


@torch.library.custom_op("fxprune_tests::mirrored", mutates_args=())
def mirrored(x: Tensor) -> Tensor:
    """Mixes channels behind the engine's back: channel i meets channel n - 1 - i."""
    return x + 0.5 * x.flip(1)


@mirrored.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


Build = Callable[[], nn.Module]


@dataclass(frozen=True)
class Stopped:
    """A network with something not understood in it.

    frozen   parameter dimensions that must stay, and words that their reasons must contain
    cut      shapes of what shrinks all the same
    """

    build: Build
    frozen: Mapping[str, tuple[str, ...]]
    cut: Mapping[str, Shape]

    def case(self) -> Case:
        return Case(self.build, ((2, 3, 8, 6),), self.cut)


STOPPED: dict[str, Stopped] = {}


def stopped(frozen: Mapping[str, tuple[str, ...]], cut: Mapping[str, Shape]) -> Callable[[Build], None]:
    def register(build: Build) -> None:
        STOPPED[build.__name__] = Stopped(build, frozen, cut)

    return register


def _convs() -> dict[str, nn.Module]:
    """a and b end at the obstacle; m, before them, and c, behind them, are free."""
    return {"m": conv(3, 12), "a": conv(12, 6), "b": conv(6, 10), "c": conv(10, 4, 1)}


FREE = {"m.weight": (6, 3, 3, 3), "a.weight": (6, 6, 3, 3), "b.weight": (5, 6, 3, 3), "c.weight": (4, 5, 1, 1)}


@stopped({"a.weight[0]": ("no rule", "mirrored"), "b.weight[1]": ("meets", "aten.convolution at b")}, FREE)
def custom_operator() -> nn.Module:
    return Net(lambda s, x: s.c(s.b(torch.ops.fxprune_tests.mirrored(s.a(s.m(x)))).relu()), **_convs())


@stopped({"a.weight[0]": ("no rule", "logcumsumexp"), "a.bias[0]": ("logcumsumexp",)}, FREE)
def operator_without_rule() -> nn.Module:
    return Net(lambda s, x: s.c(s.b(torch.logcumsumexp(s.a(s.m(x)), 2)).relu()), **_convs())


@stopped(
    {"a.weight[0]": ("inside LSTM", "lstm"), "fc.weight[1]": ("meets", "aten.addmm at fc")},
    {"m.weight": (6, 3, 3, 3), "a.weight": (6, 6, 3, 3), "fc.weight": (7, 9), "end.weight": (4, 7)},
)
def lstm() -> nn.Module:
    """The row of pixel means is read as a sequence."""

    def run(s: Net, x: Tensor) -> Tensor:
        states, _ = s.lstm(s.a(s.m(x)).mean(2).transpose(1, 2))
        return s.end(s.fc(states[:, -1]).relu())

    parts = {"m": conv(3, 12), "a": conv(12, 6), "fc": nn.Linear(9, 14), "end": nn.Linear(14, 4)}
    return Net(run, lstm=nn.LSTM(6, 9, batch_first=True), **parts)


@stopped(
    {"a.weight[0]": ("inside MultiheadAttention", "attention")},
    {"m.weight": (6, 3, 3, 3), "a.weight": (8, 6, 3, 3), "fc.weight": (7, 8), "end.weight": (4, 7)},
)
def multihead_attention() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(s.m(x)).flatten(2).permute(0, 2, 1)
        return s.end(s.fc(s.attention(x, x, x, need_weights=False)[0].mean(1)).relu())

    parts = {"m": conv(3, 12), "a": conv(12, 8), "fc": nn.Linear(8, 14), "end": nn.Linear(14, 4)}
    return Net(run, attention=nn.MultiheadAttention(8, 2, batch_first=True), **parts)


CHOSEN = {"m.weight": (6, 3, 3, 3), "a.weight": (9, 6, 3, 3), "b.weight": (5, 6, 3, 3), "c.weight": (4, 5, 1, 1)}


def _choosing() -> dict[str, nn.Module]:
    return {"m": conv(3, 12), "a": conv(12, 9), "b": conv(6, 10), "c": conv(10, 4, 1)}


@stopped({"a.weight[0]": ("indexed by a tensor that is not a constant", "aten.index", "at getitem")}, CHOSEN)
def given_index() -> nn.Module:
    """Which channels are picked depends on the input's values, though not on these channels."""

    def run(s: Net, x: Tensor) -> Tensor:
        order = x.sum((0, 1, 2)).argsort()
        return s.c(s.b(s.a(s.m(x))[:, order]).relu())

    return Net(run, **_choosing())


@stopped({"a.weight[0]": ("every entry along this dimension is needed", "aten.sort at argsort")}, CHOSEN)
def computed_index() -> nn.Module:
    """The six strongest channels of the first image, whichever they are."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(s.m(x))
        order = pooled(x).sum(0).argsort()[:6]
        return s.c(s.b(x[:, order]).relu())

    return Net(run, **_choosing())


@stopped({"a.weight[0]": ("every entry along this dimension is needed", "aten.topk at topk")}, CHOSEN)
def computed_selection() -> nn.Module:
    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(s.m(x))
        order = torch.topk(pooled(x).sum(0), 6).indices
        return s.c(s.b(x.index_select(1, order)).relu())

    return Net(run, **_choosing())


@stopped({"a.weight[0]": ("indexed by a tensor", "index", "getitem")}, FREE)
def masked_pixels() -> nn.Module:
    """A mask over images and channels picks feature maps."""

    def run(s: Net, x: Tensor) -> Tensor:
        x = s.a(s.m(x))
        table = torch.tensor([[5, 4, 3, 2, 1, 0], [0, 1, 2, 3, 4, 5]])
        rows = torch.tensor([[0], [1]])
        return s.c(s.b(x[rows, table]).relu())

    return Net(run, **_convs())


@stopped({"a.weight[0]": ("every entry along this dimension is needed", "aten._softmax at softmax")}, FREE)
def softmax_over_channels() -> nn.Module:
    return Net(lambda s, x: s.c(s.b(F.softmax(s.a(s.m(x)), dim=1)).relu()), **_convs())


every = pytest.mark.parametrize("name", STOPPED)


@every
def test_frozen_with_a_reason(name: str) -> None:
    wanted = STOPPED[name].frozen
    reasons = halved(STOPPED[name].case()).report.frozen
    for member, words in wanted.items():
        assert member in reasons, sorted(reasons)
        assert all(word in reasons[member] for word in words), reasons[member]


@every
def test_all_else_shrinks_and_the_result_is_exact(name: str) -> None:
    case = STOPPED[name].case()
    done = halved(case)
    assert done.report.refused == {}
    after = named_tensors(done.module)
    assert {parameter: tuple(after[parameter].shape) for parameter in case.cut} == case.cut
    found = call(done.module.eval(), case.example())
    assert difference(call(zeroed(case.model(), case, done.recipe), case.example()), found) <= EXACT
    assert difference(call(case.model(), case.example()), found) > 1e-3, "nothing was at stake"


@every
def test_every_frozen_group_has_a_site(name: str) -> None:
    case = STOPPED[name].case()
    program = capture(case.model(), case.example())
    nodes = {node.name for _, graph in program.graphs() for node in graph.nodes}
    for group in couple(analyse(program)).groups:
        if group.frozen is not None:
            assert group.frozen.node in nodes and group.frozen.operator and group.frozen.reason, str(group.frozen)
