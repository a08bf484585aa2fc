"""ONNX export: the file computes what torch computes at every batch size, betrays no machine, and repeats."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_networks import NETWORKS, ROOT, Block, Clashing, build, fixed, joined, picture, secrets
from onnxscript import opset18
from torch import fx, nn
from torch.export import ExportedProgram

import fxprune.emit.onnx as emit
from fxprune.capture.zoo_imports import import_torchvision
from fxprune.emit.onnx import compare_with_torch, export_onnx
from fxprune.emit.onnx_direct import settle
from fxprune.program import Inputs


@pytest.mark.parametrize("name", NETWORKS)
def test_file_equals_torch_at_every_batch(name: str, tmp_path: Path) -> None:
    module, inputs = build(name)
    report = export_onnx(module, inputs, tmp_path / "net.onnx", metadata={"seed": "3"})
    assert report.dynamic_batch and not report.notes
    assert report.difference == compare_with_torch(module, report.path, inputs) <= 1e-5
    assert compare_with_torch(module, report.path, inputs, batches=(3, 9), seed=1) <= 1e-5
    blob = report.path.read_bytes()
    assert report.size == len(blob) and os.listdir(tmp_path) == ["net.onnx"]
    assert secrets(blob) == []
    model = onnx.load(report.path)
    assert [(prop.key, prop.value) for prop in model.metadata_props] == [("seed", "3")]
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert "Dropout" not in {node.op_type for node in model.graph.node} and not training(model)


def training(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in model.graph.node if any(a.name == "training_mode" and a.i for a in node.attribute)]


def test_traced_graph_keeps_names_and_folds_batch_norm(tmp_path: Path) -> None:
    module, inputs = build("residual")
    report = export_onnx(fx.symbolic_trace(module), inputs, tmp_path / "net.onnx")
    assert (report.inputs, report.outputs) == (("image",), ("output",))
    graph = onnx.load(report.path).graph
    assert {"stem.0.weight", "body.0.weight", "head.3.weight"} <= {tensor.name for tensor in graph.initializer}
    assert "BatchNormalization" not in {node.op_type for node in graph.node}
    assert set(report.seconds) == {"export", "translate", "serialise", "check", "compare", "write"}


def test_masked_weights_stay_zero_in_the_file(tmp_path: Path) -> None:
    module, inputs = build("residual")
    mask = torch.rand(module.stem[0].weight.shape) < 0.5
    module.stem[0].weight.data[mask] = 0
    report = export_onnx(module, inputs, tmp_path / "net.onnx")
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(report.path).graph.initializer}
    assert np.array_equal(stored["stem.0.weight"] == 0, mask.numpy())


def test_several_inputs_keywords_and_nested_outputs(tmp_path: Path) -> None:
    module, inputs = joined()
    report = export_onnx(module, inputs, tmp_path / "net.onnx")
    assert report.inputs == ("left", "right", "scale", "index")
    assert report.outputs == ("both", "pair_0", "pair_1")
    leading = [value.type.tensor_type.shape.dim[0] for value in onnx.load(report.path).graph.input]
    assert [dim.dim_param or dim.dim_value for dim in leading] == ["batch", "batch", 1, "batch"]
    assert report.dynamic_batch and compare_with_torch(module, report.path, inputs) <= 1e-6


def test_names_at_the_ends_win_over_names_inside(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, inputs = Clashing(), Inputs((torch.randn(2, 4), torch.randn(2, 4)))
    report = export_onnx(module, inputs, tmp_path / "net.onnx")
    assert report.inputs == ("weight", "linear")
    assert report.outputs == ("relu", "linear_1", "same", "again", "in")
    assert compare_with_torch(module, report.path, inputs) <= 1e-6


def test_fixed_batch_is_kept_and_said(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Block(fixed, conv=nn.Conv2d(3, 4, 1), fc=nn.Linear(256, 3))
    report = export_onnx(module, picture(), tmp_path / "net.onnx")
    assert not report.dynamic_batch
    assert len(report.notes) == 1 and report.notes[0].startswith("the batch is fixed at 2: ")
    assert onnx.load(report.path).graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert compare_with_torch(module, report.path, picture()) <= 1e-5


def test_batch_that_changes_what_is_computed_is_fixed(tmp_path: Path) -> None:
    module = Block(lambda s, x: s.conv(x) if x.shape[0] > 1 else s.conv(x).relu(), conv=nn.Conv2d(3, 4, 1))
    report = export_onnx(module, picture(), tmp_path / "net.onnx")
    assert not report.dynamic_batch
    assert report.notes[0].startswith("the batch is fixed at 2: onnxruntime differs from torch by")


# ---- without decomposition


def test_common_networks_are_not_decomposed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("decomposed")

    monkeypatch.setattr(ExportedProgram, "run_decompositions", refuse)
    module, inputs = build("residual")
    assert export_onnx(module, inputs, tmp_path / "net.onnx").difference <= 1e-6


def test_both_ways_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module, inputs = build("residual")
    direct = export_onnx(module, inputs, tmp_path / "direct.onnx")
    monkeypatch.setattr(emit, "settle", lambda graph: False)
    full = export_onnx(module, inputs, tmp_path / "full.onnx")
    direct_ops, full_ops = ([n.op_type for n in onnx.load(r.path).graph.node] for r in (direct, full))
    assert direct_ops == [{"ReduceMean": "GlobalAveragePool"}.get(op, op) for op in full_ops]


def test_a_write_that_others_see_is_left_to_the_decomposition() -> None:
    module, inputs = build("written view")
    assert not settle(torch.export.export(module.eval(), inputs.args, strict=False).graph)


def test_a_write_of_a_size_has_a_pure_twin(tmp_path: Path) -> None:
    module = Block(lambda s, x: s.conv(x).mul_(x.shape[0]).relu_(), conv=nn.Conv2d(3, 4, 1)).eval()
    args = (torch.randn(2, 3, 4, 4),)
    graph = torch.export.export(module, args, dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False).graph
    assert settle(graph)
    report = export_onnx(module, picture(), tmp_path / "net.onnx")
    assert report.dynamic_batch and report.difference <= 1e-6


def test_a_wrong_shortcut_is_caught_and_the_full_way_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "translations", lambda: {torch.ops.aten.relu.default: lambda x: opset18.Sigmoid(x)})
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
    report = export_onnx(module, picture(), tmp_path / "net.onnx")
    assert [node.op_type for node in onnx.load(report.path).graph.node] == ["Conv", "Relu"]


# ---- the module and the terminal are left as they were


def test_module_is_left_as_it_was(tmp_path: Path) -> None:
    module, inputs = build("residual")
    module.train()
    module.stem[1].eval()
    modes = [part.training for part in module.modules()]
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    export_onnx(module, inputs, tmp_path / "net.onnx")
    assert [part.training for part in module.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("name", ["residual", "written view"])
def test_nothing_is_printed(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    export_onnx(*build(name), tmp_path / "net.onnx", opset=17)
    assert capfd.readouterr() == ("", "") and not list(recwarn)


SCRIPT = """
import sys, torch
from pathlib import Path
sys.path.insert(0, "tests")
from onnx_networks import build, joined
from fxprune.emit.onnx import export_onnx
for number, (module, inputs) in enumerate([build("residual"), build("written view"), joined()]):
    export_onnx(module, inputs, Path(sys.argv[1]) / f"{number}.onnx", metadata={"b": "2", "a": "1"})
"""


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        folder.mkdir()
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT, env=env, capture_output=True, text=True
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        digests.append([hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())])
    assert digests[0] == digests[1] and len(set(digests[0])) == 3


def test_resnet18(tmp_path: Path) -> None:
    torch.manual_seed(0)
    models = import_torchvision().models
    module = fx.symbolic_trace(models.resnet18(weights=None).eval())
    report = export_onnx(module, picture(1, 3, 64, 64), tmp_path / "net.onnx")
    assert report.dynamic_batch and report.difference <= 1e-5
    assert report.inputs == ("x",) and secrets(report.path.read_bytes()) == []
