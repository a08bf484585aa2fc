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
from fxprune.capture.module import as_inputs, capture
from fxprune.capture.trace import reads_training, trace
from fxprune.capture.zoo_imports import import_torchvision
from fxprune.errors import CaptureError
from fxprune.program import Inputs, Program, materialise, skeleton_of

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
    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(F.relu(x), 0.5, self.training)


def test_graphs_that_differ_in_a_literal_only_are_both_kept() -> None:
    program = capture(nn.Sequential(nn.Conv2d(3, 4, 3), FlagAsLiteral(), nn.Conv2d(4, 2, 3)), X)
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


# ---- inputs and outputs


class Several(nn.Module):
    """Two inputs, a setting with a default, and an optional third."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(1, 4, 1)

    def forward(
        self, image: Tensor, depth: Tensor, scale: float = 2.0, bias: Tensor | None = None
    ) -> dict[str, Tensor | tuple[Tensor, ...]]:
        out = self.left(image) + scale * self.right(depth)
        if bias is not None:
            out = out + bias
        return {"sum": out, "parts": (out[:, :2], out[:, 2:])}


DEPTH = torch.ones(2, 1, 8, 8)


@pytest.mark.parametrize(
    ("inputs", "given"),
    [
        ((X, DEPTH), {}),
        ({"depth": DEPTH, "image": X}, {}),
        (Inputs((X,), {"depth": DEPTH}), {}),
        (Inputs((X, DEPTH), {"scale": 3.0}), {"scale": 3.0}),
        (Inputs((X, DEPTH), {"bias": torch.ones(4, 1, 1)}), {"bias": torch.ones(4, 1, 1)}),
    ],
    ids=["positional", "keywords in another order", "mixed", "a setting", "an optional tensor"],
)
def test_several_inputs(inputs: Any, given: dict[str, Any]) -> None:
    model = Several()
    program = capture(model, inputs)
    names = [node.target for node in program.module.graph.nodes if node.op == "placeholder"]
    assert names[:2] == ["image", "depth"] and all(
        len(node.users) for node in program.module.graph.nodes if node.op == "placeholder"
    )
    expected = model(X, DEPTH, **given)
    tensors = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    found = run(program, X, DEPTH, **tensors)
    assert list(found) == ["sum", "parts"]
    assert torch.equal(found["sum"], expected["sum"])
    assert all(torch.equal(a, b) for a, b in zip(found["parts"], expected["parts"], strict=True))


@pytest.mark.parametrize("inputs", [(X, DEPTH), {"depth": DEPTH, "image": X}], ids=["positional", "keywords"])
def test_several_inputs_through_the_whole_compiler(inputs: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.several, self.out = Several(), nn.Conv2d(4, 2, 1)

        def forward(self, image: Tensor, depth: Tensor, scale: float = 2.0) -> dict[str, Tensor]:
            return {"out": self.out(self.several(image, depth, scale)["sum"])}

    done = fxprune.compile(Net(), inputs, keep_rate=0.5)
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    assert done.module(X, DEPTH)["out"].shape == done.module(image=X, depth=DEPTH)["out"].shape == (2, 2, 8, 8)
    assert done.report.after.parameters < done.report.before.parameters


def test_a_list_of_inputs_as_one_argument() -> None:
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, images: list[Tensor]) -> list[Tensor]:
            return [self.conv(images[0]), self.conv(images[1])]

    model, images = Pyramid(), [X, X[:, :, ::2, ::2]]
    program = capture(model, (images,))
    assert all(torch.equal(a, b) for a, b in zip(run(program, images), model(images), strict=True))


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (X, Inputs((X,))),
        ((X, X), Inputs((X, X))),
        ([X], Inputs((X,))),
        ({"x": X}, Inputs((), {"x": X})),
        (Inputs((X,), {"k": 1}), Inputs((X,), {"k": 1})),
    ],
)
def test_forms_of_example_inputs(example: Any, expected: Inputs) -> None:
    found = as_inputs(example)
    assert len(found.args) == len(expected.args) and list(found.kwargs) == list(expected.kwargs)
    assert all(one is X for one in found.args)


@pytest.mark.parametrize("inputs", [(X, X), {"y": X}, ()], ids=["too many", "unknown name", "none"])
def test_inputs_that_do_not_fit_the_signature(inputs: Any) -> None:
    class Plain(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    with pytest.raises(CaptureError, match="the example inputs do not fit Plain.forward"):
        capture(Plain(), inputs)


def test_inputs_of_the_wrong_shape() -> None:
    with pytest.raises(CaptureError, match="Sequential cannot be captured.*Check the example inputs"):
        capture(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.empty(2, 5, 8, 8))


# ---- what fx cannot follow


class LoopsOverRows(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        rows = [x[:, :, row] * (row + 1) for row in range(x.shape[2])]
        out: Tensor = self.out(torch.stack(rows, dim=2))
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


@pytest.mark.parametrize("make", [LoopsOverRows, AsksForTheBatch])
def test_falls_back_to_export(make: Callable[[], nn.Module]) -> None:
    model = make().eval()
    with pytest.raises((TypeError, fx.proxy.TraceError)):
        fx.symbolic_trace(model)
    program = capture(model, X)
    assert program.front_end == "export"
    assert "torch.fx could not follow" in program.notes[0]
    assert set(program.tensors) == set(model.state_dict())
    assert all(program.tensors[name] is one for name, one in model.named_parameters())
    assert torch.equal(run(program, X), model(X))


@pytest.mark.parametrize("make", [LoopsOverRows, AsksForTheBatch])
def test_exported_networks_compile_and_follow_the_mode(make: Callable[[], nn.Module]) -> None:
    done = fxprune.compile(make(), X, keep_rate=0.5)
    assert done.report.front_end == "export"
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    assert done.module.get_submodule("conv").weight.shape[0] == 4
    module = done.module.train()
    first, second = module(X), module.eval()(X)
    assert not torch.equal(first, second)
    assert torch.equal(module(X), second)


def test_what_neither_can_follow() -> None:
    class OnValues(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(
        CaptureError, match=r"OnValues cannot be captured\. torch\.fx: .* torch\.export: .*control flow on values"
    ):
        capture(OnValues(), X)


# ---- the user's module


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


@pytest.mark.parametrize("make", [KeepsTensors, AuxiliaryHead, LoopsOverRows])
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
    assert program.notes == ("2 parameters are never read by forward and are left out: spare.weight, spare.bias",)
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
            x[:, 0] = 0
            x.dim()
            return x

    program = capture(Writes(), X)
    assert torch.equal(run(program, X), Writes()(X))
    assert "dim" not in targets(program)


def test_source_lines_when_asked_for() -> None:
    program = capture(AuxiliaryHead(), X, record_sources=True)
    (node,) = [node for node in program.module.graph.nodes if node.target == "main"]
    assert "out: Tensor = self.main(x)" in (node.stack_trace or "")
    assert all(node.stack_trace is None for node in capture(AuxiliaryHead(), X).module.graph.nodes)


def test_optional_arguments_leave_no_assertion() -> None:
    skeleton, _ = skeleton_of(Several())
    graph = trace(skeleton, {"image": X, "depth": DEPTH}, training=False)
    names = [getattr(node.target, "__name__", str(node.target)) for node in graph.nodes]
    assert not any("assert" in name for name in names) and "eq" not in names
