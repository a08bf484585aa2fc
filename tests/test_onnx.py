"""ONNX export: the file computes what torch computes at every batch size, betrays no machine, and repeats."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from onnxscript import opset18
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

import fxprune.emit.onnx as emit
from fxprune.capture.zoo_imports import import_torchvision
from fxprune.emit import onnx_file
from fxprune.emit.onnx import compare_with_torch, export_onnx
from fxprune.emit.onnx_direct import settle
from fxprune.errors import ExportError
from fxprune.program import Inputs

ROOT = Path(__file__).parents[1]
HERE = "|".join(re.escape(path) for path in (str(ROOT), sys.prefix)).encode()
LOCAL = re.compile(HERE + rb"|/(?:home|root|tmp|usr|opt|var|Users)/|[A-Z]:\\|\.py\b|Traceback|line \d+, in ")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8), nn.ReLU6(inplace=True))
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5, inplace=True), nn.Linear(8, 5))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        y = self.body(x)
        y += x
        return self.head(y)


class Block(nn.Module):
    """One function of parameters of its own, for networks that need no class."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.how = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.how(self, x)


class Joined(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 6), nn.Linear(3, 6)
        self.table = nn.Embedding(7, 6)

    def forward(self, left: Tensor, right: Tensor, *, scale: Tensor, index: Tensor) -> dict[str, Any]:
        both = self.left(left) + self.right(right)
        return {"both": both * scale, "pair": (both.relu(), self.table(index))}


class Clashing(nn.Module):
    """Names that an exporter would use inside the file, at its ends."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))
        self.fc = nn.Linear(4, 4)

    def forward(self, weight: Tensor, linear: Tensor) -> dict[str, Tensor]:
        hidden = self.fc(weight * self.weight)
        return {
            "relu": hidden.sigmoid(),
            "linear": hidden.relu() + linear,
            "same": hidden,
            "again": hidden,
            "in": weight,
        }


def shuffled(self: Any, x: Tensor) -> Tensor:
    x = self.conv(x)
    n, c, h, w = x.shape
    x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
    return F.pixel_shuffle(x, 2)


def fixed(self: Any, x: Tensor) -> Tensor:
    return self.fc(self.conv(x).view(2, 4 * 8 * 8))


def seen_by_others(self: Any, x: Tensor) -> Tensor:
    x = self.conv(x)
    view = x[:, :2]
    y = torch.relu_(x)
    return torch.cat([view.add_(1.0), y, x], 1)


def picture(*shape: int) -> Inputs:
    return Inputs((torch.randn(*(shape or (2, 3, 8, 8))),))


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "residual": lambda: (Residual(), picture()),
    "residual, batch of one": lambda: (Residual(), picture(1, 3, 8, 8)),
    "view": lambda: (
        Block(lambda s, x: s.fc(s.conv(x).view(-1, 4 * 64)), conv=nn.Conv2d(3, 4, 1), fc=nn.Linear(256, 3)),
        picture(),
    ),
    "shuffle": lambda: (Block(shuffled, conv=nn.Conv2d(3, 8, 1)), picture()),
    "layer norm": lambda: (
        Block(lambda s, x: s.norm(s.conv(x).permute(0, 2, 3, 1)), conv=nn.Conv2d(3, 8, 1), norm=nn.LayerNorm(8)),
        picture(),
    ),
    "1-D": lambda: (
        nn.Sequential(
            nn.Conv1d(3, 6, 3), nn.BatchNorm1d(6), nn.ELU(inplace=True), nn.AdaptiveAvgPool1d(1), nn.Flatten()
        ),
        picture(2, 3, 12),
    ),
    "transposed": lambda: (
        nn.Sequential(
            nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1), nn.BatchNorm2d(4, affine=False), nn.SiLU()
        ),
        picture(),
    ),
    "pad": lambda: (
        Block(lambda s, x: s.conv(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 2)), conv=nn.Conv2d(3, 6, 1, stride=2)),
        picture(),
    ),
    "pooling": lambda: (
        Block(
            lambda s, x: (F.adaptive_avg_pool2d(x, (4, 2)), F.adaptive_avg_pool2d(x, 8), F.adaptive_max_pool2d(x, 1)),
        ),
        picture(),
    ),
    "written view": lambda: (Block(seen_by_others, conv=nn.Conv2d(3, 4, 1)), picture()),
}


def build(name: str) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    module, inputs = NETWORKS[name]()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return module, inputs


def secrets(blob: bytes) -> list[bytes]:
    """What in the file betrays a machine or a source file. Weights are cut away: noise spells anything."""
    model = onnx.ModelProto.FromString(blob)
    for tensor in model.graph.initializer:
        tensor.ClearField("raw_data")
    return LOCAL.findall(model.SerializeToString())


def joined() -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    kwargs = {"index": torch.tensor([0, 6]), "scale": torch.randn(1)}  # not in the order of the signature
    return Joined(), Inputs((torch.randn(2, 4), torch.randn(2, 3)), kwargs)


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


def test_a_wrong_shortcut_is_caught_and_the_full_way_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emit, "translations", lambda: {torch.ops.aten.relu.default: lambda x: opset18.Sigmoid(x)})
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
    report = export_onnx(module, picture(), tmp_path / "net.onnx")
    assert [node.op_type for node in onnx.load(report.path).graph.node] == ["Conv", "Relu"]


# ---- planted faults and refusals


def test_changed_weight_in_the_file_is_caught(tmp_path: Path) -> None:
    module, inputs = build("residual")
    report = export_onnx(module, inputs, tmp_path / "net.onnx")
    model = onnx.load(report.path)
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "head.3.weight")
    values = numpy_helper.to_array(weight).copy()
    values[0, 0] += 0.01 * np.abs(values).max()
    weight.raw_data = values.tobytes()
    onnx.save(model, report.path)
    assert compare_with_torch(module, report.path, inputs) > 1e-4


def test_a_network_that_magnifies_rounding_is_told_not_refused(tmp_path: Path) -> None:
    """The logistic map doubles an error each time: after fourteen, 1e-7 is 1e-3, in torch itself as well."""

    def chaotic(s: Any, x: Tensor) -> Tensor:
        x = s.conv(x).sigmoid()
        for _ in range(14):
            x = 3.99 * x * (1 - x)
        return x

    report = export_onnx(Block(chaotic, conv=nn.Conv2d(3, 4, 3)), picture(), tmp_path / "net.onnx")
    assert 1e-4 < report.difference <= report.tolerance <= 0.1
    assert report.notes[0].endswith(f"this network magnifies rounding (allowed {report.tolerance:.0e})")


def test_a_network_that_does_not_magnify_rounding_may_not_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emit, "difference", lambda *_: 1e-3)
    with pytest.raises(ExportError, match=r"differs from torch by 1.0e-03, more than 1e-04"):
        export_onnx(*build("residual"), tmp_path / "net.onnx")


def test_nan_is_never_small(tmp_path: Path) -> None:
    module = Block(lambda s, x: (x, (s.conv(x) - 1e9).sqrt()), conv=nn.Conv2d(3, 4, 1))
    with pytest.raises(ExportError, match="differs from torch by nan"):
        export_onnx(module, picture(), tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def masked_scores(s: Any, x: Tensor) -> Tensor:
    """As of classes that are not to be chosen, or positions that are not to be seen."""
    return s.conv(x).mean((2, 3)).masked_fill(torch.arange(4) < 2, -torch.inf)


def test_infinities_in_the_same_places_are_equal(tmp_path: Path) -> None:
    module = Block(masked_scores, conv=nn.Conv2d(3, 4, 3)).eval()
    report = export_onnx(module, picture(), tmp_path / "net.onnx")
    assert report.difference < 1e-5
    other = Block(lambda s, x: masked_scores(s, x).roll(1, 1), conv=module.conv)
    assert compare_with_torch(other, report.path, picture()) > 1


@pytest.mark.parametrize(
    "planted", ['File "/home/me/train.py", line 3, in forward', "/root/data/weights", "C:\\Users\\me", "layers.py"]
)
def test_scanner_finds_a_local_path(planted: str, tmp_path: Path) -> None:
    module, inputs = build("view")
    report = export_onnx(module, inputs, tmp_path / "net.onnx", metadata={"note": planted})
    assert secrets(report.path.read_bytes())


def test_scanner_finds_what_the_exporter_would_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "_scrub", lambda message: None)
    module, inputs = build("view")
    assert secrets(export_onnx(module, inputs, tmp_path / "net.onnx").path.read_bytes())


def test_too_large_for_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "SIZE_LIMIT", 1000)
    with pytest.raises(ExportError, match="one ONNX file ends at 1,000"):
        export_onnx(*build("residual"), tmp_path / "net.onnx")


@pytest.mark.parametrize(("opset", "message"), [(0, "does not exist"), (99, "does not exist"), (7, "choose 18")])
def test_opset_out_of_reach(opset: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=message):
        export_onnx(*build("view"), tmp_path / "net.onnx", opset=opset)


@pytest.mark.parametrize("opset", [17, 18, 21])
def test_opset_is_the_one_asked_for(opset: int, tmp_path: Path) -> None:
    report = export_onnx(*build("view"), tmp_path / "net.onnx", opset=opset)
    assert report.opset == opset == onnx.load(report.path).opset_import[0].version


def test_inputs_that_do_not_fit(tmp_path: Path) -> None:
    module, inputs = build("residual")
    with pytest.raises(ExportError, match="the inputs do not fit forward"):
        export_onnx(module, Inputs(inputs.args, {"mask": torch.ones(2)}), tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="cannot be written as ONNX"):
        export_onnx(module, picture(2, 4, 8, 8), tmp_path / "net.onnx")


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    module, inputs = build("view")
    (tmp_path / "net.onnx").mkdir()  # cannot be replaced by a file
    with pytest.raises(ExportError, match="cannot write"):
        export_onnx(module, inputs, tmp_path / "net.onnx")
    with pytest.raises(ExportError, match="cannot write"):
        export_onnx(module, inputs, tmp_path / "nowhere" / "net.onnx")
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    (tmp_path / "net.onnx").write_bytes(b"old")
    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        onnx_file.write(b"new", tmp_path / "net.onnx")
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == [b"old"]


def test_comparing_with_no_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot compare"):
        compare_with_torch(*[build("view")[0], tmp_path / "none.onnx", build("view")[1]])


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
from test_onnx import build, joined
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
