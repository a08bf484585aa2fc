"""`fxprune bench A B`: what is counted in ONNX files, what is fed to them, and what is refused."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import NodeProto, TensorProto, helper, numpy_helper
from torch import nn
from typer.testing import CliRunner, Result

import fxprune
from fxprune.cli import app
from fxprune.emit.folder import write_folder
from fxprune.emit.onnx import export_onnx
from fxprune.errors import MeasureError
from fxprune.program import Inputs
from fxprune.runtime import bench as benching
from fxprune.runtime.bench import BenchOptions, bench
from fxprune.runtime.feeds import Given, feeds_for
from fxprune.runtime.latency import Rounds
from fxprune.runtime.measured import Pair
from fxprune.runtime.onnx_files import Declared, count_parameters, declared_inputs, read_onnx
from fxprune.runtime.onnx_macs import count_macs
from fxprune.runtime.peak import Peak

QUICK = BenchOptions(rounds=Rounds(1, 5, 0.0))
Dims = Sequence[int | str]


def model(
    nodes: Sequence[NodeProto],
    inputs: dict[str, Dims],
    weights: dict[str, np.ndarray[Any, Any]] | None = None,
    opset: str = "",
) -> onnx.ModelProto:
    """A model with one float output y of any shape."""
    stored = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims)) for name, dims in inputs.items()]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "net", values, [y], stored)
    opsets = [helper.make_opsetid("", 18), *([helper.make_opsetid(opset, 1)] if opset else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def saved(path: Path, *args: Any) -> Path:
    onnx.save(model(*args), path)
    return path


def relu(path: Path, dims: Dims = ("batch", 3)) -> Path:
    return saved(path, [helper.make_node("Relu", ["x"], ["y"])], {"x": dims})


def ones(*shape: int) -> np.ndarray[Any, Any]:
    return np.ones(shape, np.float32)


def run(*args: str) -> Result:
    return CliRunner(env={"COLUMNS": "80"}).invoke(app, ["bench", *args])


# --- counts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "x", "weight", "attributes", "macs"),
    [
        ("Conv", (2, 3, 8, 8), (4, 3, 3, 3), {}, 2 * 4 * 6 * 6 * 27),
        ("Conv", (2, 4, 8, 8), (4, 1, 3, 3), {"group": 4, "strides": [2, 2]}, 2 * 4 * 3 * 3 * 9),
        ("ConvTranspose", (2, 3, 5, 5), (3, 4, 2, 2), {"strides": [2, 2]}, 2 * 3 * 5 * 5 * 4 * 4),
        ("MatMul", (2, 5, 3), (3, 4), {}, 2 * 5 * 3 * 4),
        ("MatMul", (3,), (3, 4), {}, 12),
        ("Gemm", (2, 3), (4, 3), {"transB": 1}, 2 * 3 * 4),
        ("Gemm", (3, 2), (3, 4), {"transA": 1}, 2 * 3 * 4),
    ],
)
def test_macs_by_hand(op: str, x: Dims, weight: Sequence[int], attributes: dict[str, Any], macs: int) -> None:
    built = model([helper.make_node(op, ["x", "w"], ["y"], **attributes)], {"x": x}, {"w": ones(*weight)})
    found = count_macs(built, {"x": tuple(int(size) for size in x)})
    assert (found.count, found.left_out) == (macs, ())


def test_macs_left_out_are_named() -> None:
    nodes = [
        helper.make_node("Einsum", ["x", "w"], ["h"], equation="ij,jk->ik"),
        helper.make_node("MatMul", ["h", "w"], ["i"]),
        helper.make_node("Unheard", ["i"], ["j"], domain="org.somebody"),
        helper.make_node("MatMul", ["j", "w"], ["y"]),
    ]
    found = count_macs(model(nodes, {"x": (2, 4)}, {"w": ones(4, 4)}, "org.somebody"), {"x": (2, 4)})
    assert found.count == 2 * 4 * 4
    assert found.left_out == ("Einsum", "MatMul", "Unheard")  # nobody knows the shape of what the latter returns


def test_counts_agree_with_those_of_the_compiler(tmp_path: Path) -> None:
    """Batch norms are folded in the file: only what they multiply stands in both."""
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(8, 10),
    )  # fmt: skip
    done = fxprune.compile(net, torch.zeros(2, 3, 16, 16), keep_rate=0.5)
    written = done.to_onnx(tmp_path / "model.onnx")
    file = read_onnx(written.path)
    after = done.report.after
    assert count_macs(file.model, {written.inputs[0]: (1, 3, 16, 16)}).count == after.macs
    assert count_parameters(file) == (after.parameters, after.nonzeros)


def test_shapes_and_indices_are_no_parameters(tmp_path: Path) -> None:
    weight = ones(2, 3)
    weight[0, :2] = 0
    nodes = [helper.make_node("Reshape", ["x", "shape"], ["h"]), helper.make_node("Add", ["h", "w"], ["y"])]
    path = saved(tmp_path / "net.onnx", nodes, {"x": (6,)}, {"w": weight, "shape": np.array([2, 3])})
    assert count_parameters(read_onnx(path)) == (6, 4)


# --- feeds ------------------------------------------------------------------------------------------------------------

X = Declared("x", ("batch", 3, "", "width"), "float32")
FLAT = Declared("ids", ("batch", 7), "int64")


def test_feeds() -> None:
    assert feeds_for("net", [FLAT], Given()) == (("ids", (1, 7), "int64"),)
    assert feeds_for("net", [FLAT], Given(batch=4)) == (("ids", (4, 7), "int64"),)
    both = feeds_for("net", [X, FLAT], Given([(2, 3, 8, 8)], {"ids": (5, 7)}))
    assert both == (("x", (2, 3, 8, 8), "float32"), ("ids", (5, 7), "int64"))
    assert feeds_for("net", [Declared("t", (), "float32")], Given()) == (("t", (), "float32"),)


@pytest.mark.parametrize(
    ("declared", "given", "told"),
    [
        (X, Given(), r"net takes x as batchx3x\?xwidth: say which, as in --input x=1x3x224x224"),
        (X, Given([(1, 4, 8, 8)]), r"net takes x as batchx3x\?xwidth, not 1x4x8x8"),
        (X, Given([(1, 3, 8)]), "not 1x3x8"),
        (X, Given([(1, 3, 8, 8), (1,)]), "net has 1 inputs, --input gives more"),
        (X, Given(named={"z": (1,)}), "net has no input z: it has x"),
        (Declared("x", (2, 3), "float32"), Given(batch=4), "net takes no other batch than its own: leave --batch out"),
        (FLAT, Given(batch=2**40), "is too large to make up"),
    ],
)
def test_feeds_that_cannot_be(declared: Declared, given: Given, told: str) -> None:
    with pytest.raises(MeasureError, match=told):
        feeds_for("net", [declared], given)


def test_inputs_without_a_shape_or_of_text_are_refused(tmp_path: Path) -> None:
    built = model([helper.make_node("Relu", ["x"], ["y"])], {"x": (1,)})
    built.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(built, tmp_path / "a.onnx")
    with pytest.raises(MeasureError, match="does not say how many dimensions its input x has"):
        declared_inputs(read_onnx(tmp_path / "a.onnx"))
    built.graph.input[0].type.tensor_type.elem_type = TensorProto.STRING
    onnx.save(built, tmp_path / "a.onnx")
    with pytest.raises(MeasureError, match="its input x is no tensor of numbers"):
        declared_inputs(read_onnx(tmp_path / "a.onnx"))


# --- files that are not what they should be ---------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"not a network", random.Random(0).randbytes(3000)])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(MeasureError, match="is no ONNX file"):
        read_onnx(tmp_path / "net.onnx")


@pytest.mark.parametrize(
    "place", ["/etc/hostname", "../secret", "sub/../../secret", "link", "C:\\secret", "", "*/_ORT_MEM_ADDR_/*", "gone"]
)
def test_numbers_from_elsewhere_are_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(40))
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path / "secret")
    built = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (10,)}, {"w": ones(10)})
    onnx.external_data_helper.set_external_data(built.graph.initializer[0], place)
    built.graph.initializer[0].ClearField("raw_data")
    (folder / "net.onnx").write_bytes(built.SerializeToString())
    with pytest.raises(MeasureError, match="refused: it asks for numbers in|which cannot be read"):
        read_onnx(folder / "net.onnx")


def test_numbers_beside_the_file_are_counted(tmp_path: Path) -> None:
    built = model([helper.make_node("Add", ["x", "w"], ["y"])], {"x": (1000,)}, {"w": ones(1000)})
    onnx.save(built, tmp_path / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)
    found = bench(tmp_path / "net.onnx", tmp_path / "net.onnx", QUICK)
    size = (tmp_path / "net.onnx").stat().st_size + 4000
    assert found.files == {"ONNX": Pair(size, size)}
    assert found.counts["parameters"] == Pair(1000, 1000)


def test_unknown_operators_and_endless_files_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = relu(tmp_path / "good.onnx")
    nodes = [helper.make_node("Steal", ["x"], ["y"], domain="evil")]
    path = saved(tmp_path / "evil.onnx", nodes, {"x": (1,)}, {}, "evil")
    result = run(str(good), str(path))
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert result.stderr.startswith("error: B: onnxruntime cannot run it: ") and "evil" in result.stderr
    monkeypatch.setattr(benching, "PATIENCE", 0.01)
    result = run(str(good), str(good))
    assert result.exit_code == 2 and "A: loading and running it in onnxruntime took more than" in result.stderr


# --- the command ------------------------------------------------------------------------------------------------------


def test_two_files(tmp_path: Path) -> None:
    first, second = tmp_path / "first.onnx", tmp_path / "folder" / "model.onnx"
    second.parent.mkdir()
    x = torch.zeros(2, 3, 16, 16)
    export_onnx(nn.Sequential(nn.Conv2d(3, 64, 3), nn.Conv2d(64, 4, 3)), Inputs((x,)), first)
    export_onnx(nn.Conv2d(3, 4, 5), Inputs((x,)), second)
    result = run(str(first), str(second.parent), "--batch", "2", "--repeat", "5")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    flat = " ".join(result.stdout.split())
    assert "parameters 4,100 304 13.49x" in flat
    assert f"MACs, one example {64 * 27 * 196 + 4 * 576 * 144:,} {4 * 75 * 144:,} 15.52x" in flat
    assert f"bytes, ONNX {first.stat().st_size:,} {second.stat().st_size:,}" in flat
    assert "1 thread, batch 2, onnxruntime" in flat and "of 5 passes for each side" in flat


def test_json(tmp_path: Path) -> None:
    first, second = relu(tmp_path / "a.onnx"), relu(tmp_path / "b.onnx", ("batch", 4))
    result = run(str(first), str(second), "--json", "--threads", "2", "--repeat", "6")
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert (told["A"], told["B"], told["sides"]) == (str(first), str(second), ["A", "B"])
    assert told["threads"] == 2 and told["batch"] == {"A": 1, "B": 1}
    assert told["counts"]["macs"] == {"A": 0, "B": 0}
    latency = told["latency"]["onnxruntime"]
    assert (latency["passes"], latency["warm_up"], latency["full"]) == (6, 10, True)
    assert latency["A"]["median"] > 0 and {"median", "p90", "mean", "deviation"} == set(latency["B"])
    assert told["peak_memory"]["onnxruntime"]["A"] > 0
    assert "the inputs differ: A takes 1x3 float32; B takes 1x4 float32" in told["notes"]


def test_a_side_with_more_memory_shows(tmp_path: Path) -> None:
    small = relu(tmp_path / "small.onnx", (1,))
    nodes = [helper.make_node("ReduceSum", ["w"], ["s"], keepdims=0), helper.make_node("Add", ["x", "s"], ["y"])]
    large = saved(tmp_path / "large.onnx", nodes, {"x": (1,)}, {"w": ones(12 << 20)})
    found = bench(large, small, QUICK)
    peaks = found.memory["onnxruntime"]
    assert isinstance(peaks.first, Peak) and peaks.first.bytes - peaks.second.bytes > 48 << 20


def test_folders_are_measured_in_torch_too(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 4))
    done = fxprune.compile(net, torch.zeros(2, 3, 8, 8), sparsity=0.7)
    first, second = tmp_path / "first", tmp_path / "second"
    write_folder(done, first)
    shutil.copytree(first, second)
    found = bench(first, second, BenchOptions(rounds=Rounds(1, 5, 0.0), given=Given(batch=3)))
    assert list(found.latency) == ["onnxruntime", "torch"] == list(found.memory)
    assert found.batch == Pair(3, 3) and set(found.machine.versions) == {"python", "onnxruntime", "torch"}
    assert found.files["model.safetensors"] == Pair(*[(first / "model.safetensors").stat().st_size] * 2)

    source = (second / "model.py").read_text()
    (second / "model.py").write_text(f"import os; os.mkdir('{tmp_path}/here')\n{source}")
    found = bench(first, second, QUICK)
    assert list(found.latency) == ["onnxruntime"]
    assert any(note.startswith("torch not measured: ") and "model.py" in note for note in found.notes)
    result = run(str(first), str(second), "--runtime", "torch")
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
    assert "model.py" in result.stderr and not (tmp_path / "here").exists()


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (("net.onnx", "net.onnx", "--runtime", "torch"), "net.onnx cannot be measured in torch: it is no folder"),
        (("net.onnx", "net.onnx", "--runtime", "tflite"), "unknown runtime 'tflite': choose onnxruntime, torch"),
        (("gone.onnx", "net.onnx"), "gone.onnx: No such file"),
        ((".", "net.onnx"), "holds no model.onnx"),
        (("net.onnx", "/dev/null"), "is no file that can be read whole"),
        (("net.onnx", "net.onnx", "--input", "axb"), "--input 'axb' is not of the form"),
        (("net.onnx", "net.onnx", "--input", "1x4"), "net.onnx takes x as batchx3, not 1x4"),
    ],
)
def test_refusals(args: Sequence[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relu(tmp_path / "net.onnx")
    result = run(*args)
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1), result.output
    assert result.stderr.startswith("error: ") and told in result.stderr
