"""Networks that torch.fx cannot follow: torch.export takes over, and the rest of the compiler does not notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune.capture.module import capture
from fxprune.errors import CaptureError
from fxprune.program import Program, materialise

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def run(program: Program, *args: Any, mode: str = "eval", **kwargs: Any) -> Any:
    """The captured graph on real numbers."""
    module = materialise(program.module, program.tensors)
    module.train(mode == "train")
    names = [node.target for node in dict(program.graphs())[mode].nodes if node.op == "placeholder"]
    values = [*args, *(kwargs[str(name)] for name in names[len(args) :])]
    return fx.Interpreter(module, graph=dict(program.graphs())[mode]).run(*values)


@torch.jit.script
def scripted(x: Tensor) -> Tensor:
    return x * torch.tanh(x)


class CallsAScript(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(scripted(self.norm(self.conv(x))))
        return out


class AsksForTheBatch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if x.shape[0] > 1:
            x = F.dropout(x.relu(), 0.5, self.training)
        out: Tensor = self.out(x)
        return out


@pytest.mark.parametrize("make", [CallsAScript, AsksForTheBatch])
def test_falls_back_to_export(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    with pytest.raises((RuntimeError, fx.proxy.TraceError)):
        fx.symbolic_trace(model)
    program = capture(model, X)
    assert program.front_end == "export"
    assert "torch.fx could not follow" in program.notes[0]
    assert all(program.tensors[name] is one for name, one in model.named_parameters())
    assert torch.equal(run(program, X), model(X))


def test_one_example_is_exported_with_a_dynamic_batch_too() -> None:
    model = CallsAScript().eval()
    program = capture(model, X[:1], compare=True)
    assert program.front_end == "export" and program.dynamic_batch
    assert torch.equal(run(program, X), model(X))


def test_what_a_network_does_with_one_example_only_fixes_the_batch() -> None:
    model = AsksForTheBatch().eval()
    program = capture(model, X[:1], compare=True)
    assert not program.dynamic_batch and "the batch size is fixed at that of the example inputs" in program.notes
    assert torch.equal(run(program, X[:1]), model(X[:1]))


class TurnsGradients(CallsAScript):
    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if x.requires_grad:
            x.register_hook(torch.neg)
        out: Tensor = self.out(x)
        return out


def test_hooks_on_gradients_are_not_dropped_in_silence() -> None:
    before = Tensor.register_hook
    assert any("hooks on gradients" in note for note in capture(TurnsGradients(), X, compare=True).notes)
    assert Tensor.register_hook is before


class NormalisesVectors(nn.Module):
    """In training it does not run on one picture: there is nothing to average over."""

    def __init__(self, scripts: bool) -> None:
        super().__init__()
        self.conv, self.linear, self.norm, self.out = (
            nn.Conv2d(3, 8, 3),
            nn.Linear(8, 8),
            nn.BatchNorm1d(8),
            nn.Linear(8, 2),
        )
        self.scripts = scripts

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout(self.conv(x).relu().mean((2, 3)), 0.5, self.training)
        x = self.norm(self.linear(x))
        out: Tensor = self.out(scripted(x) if self.scripts else x.relu())
        return out


@pytest.mark.parametrize("scripts", [False, True])
def test_one_example_is_enough_for_batch_norms_over_vectors(scripts: bool) -> None:
    done = fxprune.compile(NormalisesVectors(scripts), X[:1], keep_rate=0.5)
    assert done.report.front_end == ("export" if scripts else "fx")
    assert any("example inputs are taken twice" in note for note in done.report.notes)
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    assert done.report.before.macs == fxprune.compile(NormalisesVectors(scripts), X, keep_rate=0.5).report.before.macs
    done.module.train()(X).sum().backward()
    assert done.module.eval()(X[:1]).shape == (1, 2)


@pytest.mark.parametrize("make", [CallsAScript, AsksForTheBatch])
def test_exported_networks_compile_and_follow_the_mode(make: Callable[[], nn.Module]) -> None:
    done = fxprune.compile(make(), X, keep_rate=0.5)
    assert done.report.front_end == "export"
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    assert done.module.get_submodule("conv").weight.shape[0] == 4
    module = done.module.train()
    first, second = module(X), module.eval()(X)
    assert not torch.equal(first, second)
    assert torch.equal(module(X), second)


def test_what_neither_can_follow(capfd: pytest.CaptureFixture[str]) -> None:
    class OnValues(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(
        CaptureError, match=r"OnValues cannot be captured\. torch\.fx: .* torch\.export: .*control flow on values"
    ):
        capture(OnValues(), X)
    assert capfd.readouterr() == ("", "")  # torch.export prints the graph that it gave up


def test_assignment_to_listed_places_goes_through_export() -> None:
    class Assigns(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            x[:, [2, 0]] = 0
            return x

    program = capture(Assigns(), X)
    assert program.front_end == "export"
    assert torch.equal(run(program, X), Assigns()(X))


def test_a_device_that_is_written_down_is_forgotten() -> None:
    """The table is made and moved in forward; the network is analysed without any device."""

    class MakesATable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.out = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            made = torch.zeros(8, 8).to(x.device, x.dtype).mean() + torch.eye(8, dtype=x.dtype, device=x.device)
            out: Tensor = self.out(scripted(x) + made)
            return out

    done = fxprune.compile(MakesATable(), X, keep_rate=0.5)
    assert done.report.front_end == "export" and done.module.get_submodule("conv").weight.shape[0] == 4


class OnlyInTraining(CallsAScript):
    """Another result in training, by another way."""

    def __init__(self) -> None:
        super().__init__()
        self.helper = nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Any:
        y = scripted(self.norm(self.conv(x)))
        if not self.training:
            return self.out(y)
        y = y * torch.bernoulli(torch.full_like(y[:, :1, :1, :1], 0.5)) * torch.tensor([2.0, 1.0]).sum()
        return {"out": self.out(y), "helper": self.helper(y)}


def test_what_happens_in_training_only_is_exported_too() -> None:
    torch.manual_seed(0)
    done = fxprune.compile(OnlyInTraining(), X, keep_rate=0.5, keep_weights=True)
    assert done.report.front_end == "export"
    assert done.recipe.kept["helper.weight"][1] == done.recipe.kept["conv.weight"][0]
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    network = done.module.train()
    found = [network(X) for _ in range(8)]
    assert all(one.keys() == {"out", "helper"} for one in found)
    assert len({float(one["out"].detach().sum()) for one in found}) > 1
    assert isinstance(network.eval()(X), Tensor)


class TrainsByDice(CallsAScript):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * float(np.random.rand()) if self.training else x)


def test_training_that_cannot_be_exported_is_told() -> None:
    done = fxprune.compile(TrainsByDice(), X, keep_rate=0.5)
    assert any("torch.export cannot follow the network either" in note for note in done.report.notes)


def test_equal_modes_are_exported_without_a_note() -> None:
    done = fxprune.compile(CallsAScript(), X, keep_rate=0.5)
    assert done.report.front_end == "export" and done.program.train_graph is not None  # the norm's flag
    assert not any("train" in note for note in done.report.notes)


class EntersAutocast(CallsAScript):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return super().forward(x.float())


def test_autocast_is_left_out_of_an_exported_graph() -> None:
    done = fxprune.compile(EntersAutocast(), X, keep_rate=0.5)
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    assert any("autocast" in note for note in done.report.notes)


class Broadcasts(CallsAScript):
    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.out(scripted(y + y.mean((2, 3), keepdim=True).broadcast_to(y.shape)))  # type: ignore[no-any-return]


def test_sizes_of_broadcasts_are_patched_in_exported_graphs() -> None:
    done = fxprune.compile(Broadcasts(), X, keep_rate=0.5)
    assert not done.report.refused and len(done.recipe.kept["conv.weight"][0]) == 4
