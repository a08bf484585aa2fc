"""Exported programs: read from .pt2 files without torch.export.load, and compiled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from exported_files import exported, resnet
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

import fxprune
from fxprune import zoo
from fxprune.capture.exported import ExportedNetwork, from_program
from fxprune.capture.exported_file import read_exported
from fxprune.capture.files import load_file
from fxprune.capture.module import capture
from fxprune.capture.options import LoadOptions
from fxprune.errors import CaptureError
from fxprune.program import Inputs

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Branching(nn.Module):
    """Nested arguments, a constant one, several results of one operator, sizes in arithmetic, a constant, an unread
    buffer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(4, 4, 1)
        self.again = self.out.weight
        self.register_buffer("factor", torch.rand(8), persistent=False)

    def forward(self, x: dict[str, Tensor], *, y: Tensor, wanted: bool = True) -> dict[str, Any]:
        left, right = torch.chunk(F.relu_(self.norm(self.conv(x["image"])) * self.factor.view(1, -1, 1, 1)), 2, 1)
        best, _ = torch.max(self.out(left), 1)
        right = F.conv2d(F.interpolate(right, scale_factor=2, mode="bilinear"), self.again)
        flat = right.reshape(right.shape[0], -1) * torch.tensor(2.0)
        return {"best-1": best, "rest": (flat, [y + 1]), "none": None}


class Counting(nn.Module):
    """Writes into a buffer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.register_buffer("runs", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.runs = self.runs + 1  # type: ignore[has-type]
        out: Tensor = self.conv(x).mean((2, 3)) * self.runs
        return out


def branching(dynamic: bool) -> ExportedProgram:
    batch = {0: Dim("b")}
    shapes = {"x": {"image": batch}, "y": batch, "wanted": None} if dynamic else None
    return exported(Branching().eval(), {"image": X}, y=torch.ones(2), wanted=False, dynamic=shapes)


PROGRAMS: dict[str, Callable[[], ExportedProgram]] = {
    "static": resnet,
    "dynamic": lambda: resnet(True),
    "nested": lambda: branching(False),
    "nested and dynamic": lambda: branching(True),
    "decomposed": lambda: resnet().run_decompositions(),
    "decomposed and nested": lambda: branching(True).run_decompositions(),
    "writes": lambda: exported(Counting(), X),
    "writes, decomposed": lambda: exported(Counting(), X).run_decompositions(),
    "half": lambda: exported(nn.Conv2d(3, 4, 3).bfloat16(), X.bfloat16()),
    "channels last": lambda: exported(nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last), X),  # type: ignore[call-overload]
}


@pytest.mark.parametrize("kind", PROGRAMS)
def test_reads_what_torch_reads(kind: str, workplace: Path) -> None:
    torch.export.save(PROGRAMS[kind](), "net.pt2")
    network = read_exported(Path("net.pt2"))
    theirs = torch.export.load("net.pt2")
    assert theirs.example_inputs is not None
    args, kwargs = theirs.example_inputs
    wanted, found = theirs.module()(*args, **kwargs), network(*args, **kwargs)
    assert pytree.tree_structure(wanted) == pytree.tree_structure(found)
    for one, other in zip(pytree.tree_leaves(wanted), pytree.tree_leaves(found), strict=True):
        assert one is other is None or torch.equal(one, other)
    shapes = pytree.tree_map(lambda one: one.shape if isinstance(one, Tensor) else one, (args, kwargs))
    ours = pytree.tree_map(
        lambda one: one.shape if isinstance(one, Tensor) else one, (network.inputs.args, dict(network.inputs.kwargs))
    )
    assert shapes == ours and network.dynamic_batch == ("dynamic" in kind or kind == "decomposed and nested")
    state = theirs.module(check_guards=False).state_dict()
    assert {name: one.dtype for name, one in network.state_dict().items()}.items() >= {
        name: one.dtype for name, one in state.items()
    }.items()
    assert all(one.stride() == network.state_dict()[name].stride() for name, one in state.items())


def test_tied_weights_stay_tied(workplace: Path) -> None:
    torch.export.save(branching(False), "net.pt2")
    network = read_exported(Path("net.pt2"))
    assert network.get_parameter("out.weight") is network.get_parameter("again")


# --- compiled ---------------------------------------------------------------------------------------------------------


def test_compiles_like_the_network_itself(workplace: Path) -> None:
    torch.export.save(resnet(True), "net.pt2")
    loaded = load_file("net.pt2")
    assert (loaded.origin, loaded.name, loaded.notes) == ("net.pt2", "net", ())
    done = fxprune.compile(loaded.module, sparsity=0.9)
    own = fxprune.compile(zoo.build("resnet8", seed=5), torch.zeros(2, 3, 32, 32), sparsity=0.9)
    assert {one.weight: one.after for one in done.report.layers} == {one.weight: one.after for one in own.report.layers}
    assert done.state_dict().keys() == own.state_dict().keys()
    assert done.report.front_end == "export"
    assert "exported program" in " ".join(done.report.notes) and "fixed" not in " ".join(done.report.notes)
    done.module.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    assert done.module.get_buffer("bn1.running_mean").abs().sum() > 0
    assert done.to_onnx("net.onnx").dynamic_batch


@pytest.mark.parametrize("batch", [1, 2])
def test_static_batch_stays_static_and_is_named(batch: int, workplace: Path) -> None:
    program = exported(zoo.build("resnet8").eval(), torch.zeros(batch, 3, 32, 32))
    torch.export.save(program, "net.pt2")
    done = fxprune.compile(load_file("net.pt2").module, keep_rate=0.5)
    assert f"the batch size is fixed at {batch}, as it was exported" in done.report.notes
    report = done.to_onnx("net.onnx")
    assert not report.dynamic_batch and report.notes == ()  # it has been said


def test_exported_program_in_memory(workplace: Path) -> None:
    model: Any = resnet()
    done = fxprune.compile(model, keep_rate=0.5)
    torch.export.save(model, "net.pt2")
    again = fxprune.compile(read_exported(Path("net.pt2")), keep_rate=0.5)
    assert all(torch.equal(one, again.state_dict()[name]) for name, one in done.state_dict().items())
    assert groups_of(model) == groups_of(zoo.build("resnet8"))
    model.example_inputs = None
    with pytest.raises(CaptureError, match="holds no example inputs"):
        from_program(model)


def groups_of(model: Any) -> set[tuple[int, bool, frozenset[str]]]:
    found = fxprune.explain(model, X).groups
    return {(group.width, group.prunable, frozenset(map(str, group.members))) for group in found}


def test_grouped_convolutions_couple_as_they_do_in_modules() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Conv2d(12, 4, 1)).eval()
    assert groups_of(exported(model, X)) == groups_of(model)


def test_training_mode_is_switched_over() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 4, 3)).train()
    network = from_program(exported(model, X))
    program = capture(network, network.inputs)
    assert "exported in training mode" in program.notes[-1]
    flags = {
        mode: [node.args[5] for node in graph.nodes if "batch_norm" in node.name] for mode, graph in program.graphs()
    }
    assert flags == {"eval": [False], "train": [True]}
    done = fxprune.compile(network, keep_rate=0.5)
    counter = done.module.get_buffer("1.num_batches_tracked")
    done.module.eval()(X)
    assert counter == 0
    done.module.train()(X)
    assert counter == 1


def test_inputs_that_do_not_fit() -> None:
    network = from_program(resnet())
    with pytest.raises(CaptureError, match="the exported program does not run on the example inputs"):
        fxprune.compile(network, torch.zeros(2, 1, 32, 32), keep_rate=0.5)


def test_allow_pickle_leaves_it_to_torch(workplace: Path) -> None:
    torch.export.save(resnet(True), "net.pt2")
    loaded = load_file("net.pt2", LoadOptions(allow_pickle=True))
    assert isinstance(loaded.module, ExportedNetwork) and loaded.module.dynamic_batch
    assert isinstance(loaded.module.inputs, Inputs)
    assert "torch.export.load read the file" in loaded.notes[0]
