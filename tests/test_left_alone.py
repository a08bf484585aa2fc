"""What a comparison with the user's network finds, and that it leaves everything of the user's alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxprune
from fxprune.capture.left_alone import buffers_kept
from fxprune.capture.module import capture
from fxprune.capture.read_numbers import settle_numbers
from fxprune.errors import CaptureError, OptionError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
CACHE: dict[int, Tensor] = {}


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 2)

    def body(self, x: Tensor) -> Tensor:
        found: Tensor = self.norm(self.conv(x)).relu()
        return found

    def tail(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(x.mean((2, 3)))
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(x))


class MovesPrototypes(Base):
    """In training, without gradients, as codebooks and momentum encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.prototypes = nn.Parameter(torch.zeros(8), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if self.training:
            with torch.no_grad():
                self.prototypes.mul_(0.9).add_(x.mean((0, 2, 3)), alpha=0.1)
        return self.tail(x - self.prototypes.view(1, -1, 1, 1))


class FillsACache(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        if int(x.shape[2]) not in CACHE:
            CACHE[int(x.shape[2])] = x.new_ones(x.shape[2:]) * 0.5
        return self.tail(x * CACHE[int(x.shape[2])])


class DrawsInPython(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.body(x)) * (1 if random.random() < 2 else 0)


class KeepsItsNormFrozen(Base):
    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.norm.eval()  # and returns nothing


class HidesBehindAGate(Base):
    """What a trace answers otherwise than a run, times zero."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        y = F.gelu(x) if type(x) is Tensor else x
        return self.tail(x + self.gate * y)


class FoldsClips(Base):
    """Four pictures are a clip; one clip alone is not compared with others."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        clips = x.view(x.shape[0] // 4, 4, *x.shape[1:])
        out = self.tail(clips.mean(1))
        return out - out.mean(0, keepdim=True) if clips.shape[0] > 1 else out


class Remembers(Base):
    def __init__(self) -> None:
        super().__init__()
        self.last: Any = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(x)
        out = self.tail(x + self.last)
        self.last = x.mean().detach()
        return out


@pytest.mark.parametrize("make", [MovesPrototypes, FillsACache, DrawsInPython, KeepsItsNormFrozen])
def test_nothing_of_the_users_changes(make: Callable[[], nn.Module]) -> None:
    CACHE.clear()
    model, state = make(), random.getstate()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    fxprune.compile(model, X, keep_rate=0.5)
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert random.getstate() == state
    assert all(type(one) is Tensor for one in CACHE.values())
    model(X)


def test_a_forward_that_holds_on_to_the_users_modules_changes_no_statistics() -> None:
    model = Base()
    model.forward = lambda x: model.tail(model.body(x))  # type: ignore[method-assign]
    before = model.state_dict()["norm.running_mean"].clone()
    with pytest.raises(CaptureError):
        fxprune.compile(model, X, keep_rate=0.5)
    assert torch.equal(model.state_dict()["norm.running_mean"], before)
    plain = Base()
    with buffers_kept(plain):  # nobody but such a forward costs a copy
        plain.state_dict()["norm.running_mean"].add_(1)
    assert plain.state_dict()["norm.running_mean"].eq(1).all()


def test_what_is_written_without_gradients_trains() -> None:
    model = fxprune.compile(MovesPrototypes(), X, keep_rate=0.5).module.train()
    for _ in range(2):
        model(X).square().sum().backward()
    assert model.state_dict()["prototypes"].abs().sum() > 0


def test_modes_of_the_users_own_are_told() -> None:
    notes = fxprune.compile(KeepsItsNormFrozen(), X, keep_rate=0.5).report.notes
    assert any("in train mode the captured network" in note for note in notes)


def test_a_gate_that_starts_at_zero_hides_nothing() -> None:
    with pytest.raises(CaptureError, match="differs from the network"):
        fxprune.compile(HidesBehindAGate(), X, keep_rate=0.5)


def test_what_one_call_leaves_for_the_next_is_not_lost_in_silence() -> None:
    with pytest.raises(CaptureError, match="differs from the network"):
        fxprune.compile(Remembers(), X, keep_rate=0.5)


def test_a_branch_that_few_batch_sizes_tell_is_not_fixed_in_silence() -> None:
    program = capture(FoldsClips().eval(), torch.randn(8, 3, 8, 8), compare=True)
    assert program.front_end == "export"


def test_hooks_of_parameters_are_told() -> None:
    model = Base()
    model.conv.weight.register_hook(torch.neg)
    assert any("hooks on the gradients of conv.weight" in note for note in capture(model, X).notes)


def test_numbers_are_worked_out_once_each() -> None:
    graph, root = torch.fx.Graph(), nn.Module()
    root.register_buffer("one", torch.ones(()))
    node = graph.get_attr("one")
    for _ in range(40):  # along every path it would take 2 ** 40 steps
        node = graph.call_function(torch.ops.aten.mul.Tensor, (node, node))
    graph.output(graph.call_function(torch.ops.aten.item.default, (node,)))
    assert settle_numbers(torch.fx.GraphModule(root, graph), {"one": torch.ones(())}) == ("one",)


def test_an_unknown_layer_is_coupled_with_nothing_but_an_error() -> None:
    found = fxprune.explain(Base(), X)
    with pytest.raises(OptionError, match=r"did you mean conv"):
        found.coupled_with("conf.weight")
    assert len(repr(found)) < 100
    assert len(repr(fxprune.compile(Base(), X, keep_rate=0.5))) < 100
