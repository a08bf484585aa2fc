"""Planted faults in ONNX files are caught, and what cannot be exported is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from onnx_networks import Block, build, picture, secrets
from torch import Tensor, nn

import fxprune.emit.onnx as emit
from fxprune.emit import onnx_file
from fxprune.emit.onnx import compare_with_torch, export_onnx
from fxprune.errors import ExportError
from fxprune.program import Inputs


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
