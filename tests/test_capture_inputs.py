"""Inputs and outputs of a captured network: several, by keyword, nested, optional, and those that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.capture.module import as_inputs, capture
from fxprune.capture.trace import trace
from fxprune.errors import CaptureError
from fxprune.program import Inputs, Program, materialise, skeleton_of

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def run(program: Program, *args: Any, mode: str = "eval", **kwargs: Any) -> Any:
    """The captured graph on real numbers."""
    module = materialise(program.module, program.tensors)
    module.train(mode == "train")
    names = [node.target for node in dict(program.graphs())[mode].nodes if node.op == "placeholder"]
    values = [*args, *(kwargs[str(name)] for name in names[len(args) :])]
    return fx.Interpreter(module, graph=dict(program.graphs())[mode]).run(*values)


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
    assert names[:2] == ["image", "depth"]
    unread = [node.target for node in program.module.graph.find_nodes(op="placeholder") if not node.users]
    assert unread == [name for name, value in given.items() if not isinstance(value, Tensor)]
    expected = model(X, DEPTH, **given)
    found = run(program, X, DEPTH, **given)
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
    with pytest.raises(CaptureError, match="does not run on the example input 2x5x8x8.*takes 3 channels"):
        capture(nn.Sequential(nn.Conv2d(3, 4, 1)), torch.empty(2, 5, 8, 8))


def test_optional_arguments_leave_no_assertion() -> None:
    skeleton, _ = skeleton_of(Several())
    graph = trace(skeleton, {"image": X, "depth": DEPTH}, training=False)
    names = [getattr(node.target, "__name__", str(node.target)) for node in graph.nodes]
    assert not any("assert" in name for name in names) and "eq" not in names


class Nested(nn.Module):
    """A dictionary of dictionaries and lists, an optional tensor, a flag that has to be named."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(2, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, batch: Any, scale: Tensor | None = None, *, flag: bool = True) -> Any:
        x = self.a(batch["left"]["image"]) + self.b(batch["right"][0])
        x = x if scale is None else x * scale
        return {"out": (self.c(x.relu() if flag else x),)}


@pytest.mark.parametrize("more", [{}, {"scale": torch.tensor(2.0)}, {"flag": False}])
def test_nested_inputs_with_any_batch(more: dict[str, Any]) -> None:
    """A flag that is given goes through torch.export, whose graph has a placeholder for every leaf."""

    def batch(count: int) -> dict[str, Any]:
        return {"left": {"image": torch.rand(count, 3, 8, 6)}, "right": [torch.rand(count, 2, 8, 6)]}

    done = fxprune.compile(Nested(), {"batch": batch(2), **more}, keep_rate=0.5)
    assert done.report.proof_error is not None and done.module.get_parameter("c.weight").shape == (4, 4, 1, 1)
    for count in (1, 2, 5):
        assert done.module(batch=batch(count), **more)["out"][0].shape == (count, 4, 8, 6)
