"""Capture: modules of every shape become graphs, and the user's module stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune.capture.module import capture
from fxprune.capture.trace import reads_training
from fxprune.capture.zoo_imports import import_torchvision
from fxprune.errors import CaptureError
from fxprune.program import Program, materialise

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def targets(program: Program, mode: str = "eval") -> list[str]:
    return [str(node.target) for node in dict(program.graphs())[mode].nodes]


def run(program: Program, *args: Any, mode: str = "eval", **kwargs: Any) -> Any:
    """The captured graph on real numbers."""
    module = materialise(program.module, program.tensors)
    module.train(mode == "train")
    names = [node.target for node in dict(program.graphs())[mode].nodes if node.op == "placeholder"]
    values = [*args, *(kwargs[str(name)] for name in names[len(args) :])]
    return fx.Interpreter(module, graph=dict(program.graphs())[mode]).run(*values)


def state_of(model: nn.Module) -> dict[str, Any]:
    """Everything that capture could change: numbers, modes, attributes."""
    return {
        path: {name: (id(value), value._version) if isinstance(value, Tensor) else repr(value)
               for registry in (vars(module), module._parameters, module._buffers)
               for name, value in registry.items() if name not in ("_parameters", "_buffers", "_modules")}
        for path, module in model.named_modules()
    }  # fmt: skip


# ---- leaves and modes


class DropPath(nn.Module):
    """A random regulariser as timm writes it."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(x.shape[0], 1, 1, 1) > self.rate)


class Wrapper(nn.Module):
    """Reads `training`, but has a child: traced into."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x)
        return out.relu() if self.training else out


class Gate(nn.Module):
    """No state and no mode: nothing keeps it whole."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid() * x


@pytest.mark.parametrize(
    ("module", "leaf"),
    [(DropPath(0.5), True), (nn.Dropout(0.5), True), (Gate(), False), (Wrapper(), False), (nn.BatchNorm2d(3), False)],
)
def test_leaf_rule(module: nn.Module, leaf: bool) -> None:
    assert reads_training(module) == leaf


def test_random_regularisers_stay_one_node_in_one_graph() -> None:
    program = capture(nn.Sequential(nn.Conv2d(3, 4, 3), DropPath(0.5), Gate(), nn.Dropout(0.2)), X)
    assert program.train_graph is None
    nodes = [(node.op, str(node.target)) for node in program.module.graph.nodes]
    assert ("call_module", "1") in nodes and ("call_module", "3") in nodes
    assert ("call_module", "2") not in nodes and ("call_method", "sigmoid") in nodes


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_networks_whose_modes_agree_keep_one_graph(name: str) -> None:
    program = capture(import_torchvision().models.get_model(name), torch.empty(2, 3, 64, 64))
    assert (program.train_graph, program.front_end) == (None, "fx")


def test_graphs_that_differ_are_both_kept() -> None:
    program = capture(Wrapper(), X)
    assert [mode for mode, _ in program.graphs()] == ["eval", "train"]
    assert "relu" in targets(program, "train") and "relu" not in targets(program)
    assert run(program, X).min() < 0 <= run(program, X, mode="train").min()


class FlagAsLiteral(nn.Module):
    """Has a layer of its own, so that tracing goes inside and writes the flag down."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(self.conv(x)), 0.5, self.training)


def test_graphs_that_differ_in_a_literal_only_are_both_kept() -> None:
    program = capture(FlagAsLiteral(), X)
    assert program.train_graph is not None
    assert targets(program, "train") == targets(program)


class AuxiliaryHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.main, self.extra = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        x = self.conv(x)
        out: Tensor = self.main(x)
        return (out, self.extra(x)) if self.training else out


def test_parameters_of_training_only_are_part_of_the_program() -> None:
    model = AuxiliaryHead()
    program = capture(model, X)
    assert set(program.tensors) == set(model.state_dict())
    assert not program.notes
    assert [one.shape[1] for one in run(program, X, mode="train")] == [2, 5]


# ---- the user's module


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


class KeepsTensors(nn.Module):
    """Leaves what it computed in its attributes, and holds tensors that are neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.plain = torch.full((4, 1, 1), 2.0)
        self.seen: Any = None
        self.history: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) * self.plain
        self.seen = out
        self.history.append(out)
        return out


@pytest.mark.parametrize("make", [KeepsTensors, AuxiliaryHead, AsksForTheBatch])
@pytest.mark.parametrize("training", [True, False])
def test_the_user_s_model_is_untouched(make: Callable[[], nn.Module], training: bool) -> None:
    model = make().train(training)
    next(model.children()).eval()
    before, numbers = state_of(model), copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    capture(model, X)
    assert state_of(model) == before
    assert all(torch.equal(numbers[name], one) for name, one in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)
    assert not any(isinstance(value, fx.Proxy) for module in model.modules() for value in vars(module).values())


def test_plain_tensor_attributes_become_part_of_the_program() -> None:
    model = KeepsTensors()
    program = capture(model, X)
    assert torch.equal(run(program, X), model(X))
    assert [name for name, one in program.tensors.items() if one.shape == (4, 1, 1)]


def test_plain_tensor_attributes_through_the_whole_compiler() -> None:
    done = fxprune.compile(nn.Sequential(KeepsTensors(), nn.Conv2d(4, 2, 1)), X, keep_rate=0.5)
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    assert done.module(X).shape == (2, 2, 8, 8)


def test_tensors_are_shared_not_copied() -> None:
    model = AuxiliaryHead()
    program = capture(model, X)
    assert all(program.tensors[name] is one for name, one in model.named_parameters())
    assert all(one.device.type == "meta" for one in program.module.parameters())


def test_tied_weights_stay_tied() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1))
    model[2].weight = model[0].weight
    program = capture(model, X)
    assert program.module.get_parameter("0.weight") is program.module.get_parameter("2.weight")
    assert program.tensors["0.weight"] is program.tensors["2.weight"]


def test_a_module_called_under_two_names() -> None:
    conv = nn.Conv2d(3, 3, 1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    program = capture(model, X)
    assert torch.equal(run(program, X), model(X))


def test_parameters_that_forward_never_reads_are_noted() -> None:
    class Unused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.spare = nn.Conv2d(3, 4, 1), nn.Linear(5, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x)
            return out

    program = capture(Unused(), X)
    assert program.notes == ("2 parameters left out, never read by forward: spare.weight, spare.bias",)
    assert set(program.tensors) == {"used.weight", "used.bias"}


def test_hostile_names_are_refused_before_anything_is_traced() -> None:
    traced: list[str] = []

    class Hostile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._modules['x");print("'] = nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            traced.append("forward")
            return x

    with pytest.raises(CaptureError, match="cannot be written into source code"):
        capture(Hostile(), X)
    assert not traced


def test_in_place_writes_are_no_dead_code() -> None:
    class Writes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            x.add_(1)
            x[:, 0].mul_(2)
            x.shape[1] + 1
            return x

    program = capture(Writes(), X)
    assert program.front_end == "fx"
    assert torch.equal(run(program, X), Writes()(X))
    assert not {"getattr", "<built-in function add>"} & {str(target) for target in targets(program)}


def test_source_lines_when_asked_for() -> None:
    program = capture(AuxiliaryHead(), X, record_sources=True)
    (node,) = [node for node in program.module.graph.nodes if node.target == "main"]
    assert "out: Tensor = self.main(x)" in (node.stack_trace or "")
    assert all(node.stack_trace is None for node in capture(AuxiliaryHead(), X).module.graph.nodes)
