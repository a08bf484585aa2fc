"""Peaks of memory in processes of their own: what a pass takes shows, and faults of a process are one line."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save_file
from torch import nn

from fxprune.errors import MeasureError
from fxprune.example import described
from fxprune.program import Inputs
from fxprune.runtime.peak import PeakJob, peak_memory

MIB = 1 << 20
LONG = 600.0  # seconds: however busy the machine is, what has to happen within them happens


def filling(path: Path, numbers: int) -> Path:
    """An ONNX file that makes a tensor of so many float32 of its one input, and returns its largest number."""
    shape = helper.make_tensor("shape", TensorProto.INT64, [1], [numbers])
    nodes = [
        helper.make_node("Expand", ["x", "shape"], ["big"]),
        helper.make_node("Exp", ["big"], ["bigger"]),
        helper.make_node("ReduceMax", ["bigger"], ["y"], keepdims=0),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [])
    graph = helper.make_graph(nodes, "filling", [x], [y], [shape])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return path


def job(path: Path, name: str = "x") -> PeakJob:
    return PeakJob("onnxruntime", str(path), [(name, (1,), "float32")])


def test_memory_that_a_pass_takes_shows(tmp_path: Path) -> None:
    small = peak_memory(job(filling(tmp_path / "small.onnx", 10)), LONG)
    large = peak_memory(job(filling(tmp_path / "large.onnx", 50 * MIB)), LONG)
    assert large.bytes - small.bytes >= 2 * 200 * MIB, "what goes into Exp and what comes out"
    assert small.bytes < 60 * MIB


def test_memory_that_a_pass_takes_in_torch_shows(tmp_path: Path) -> None:
    source = """
import torch
from torch import nn

__all__ = ["Net"]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return self.layer(x) + torch.ones({numbers}).sum()
"""
    peaks = []
    for numbers in (10, 50 * MIB):
        folder = tmp_path / str(numbers)
        folder.mkdir()
        (folder / "model.py").write_text(source.replace("{numbers}", str(numbers)))
        save_file(nn.Linear(1, 1).state_dict(prefix="layer."), folder / "model.safetensors")
        inputs = described(Inputs((torch.zeros(1, 1),)))
        peaks.append(peak_memory(PeakJob("torch", str(folder), inputs, trust=True), LONG).bytes)
    assert peaks[0] < 20 * MIB and 190 * MIB <= peaks[1] - peaks[0] <= 220 * MIB
    (folder / "model.py").write_text(f"import os\n{source}")
    with pytest.raises(MeasureError, match="^torch cannot run it: UntrustedError: "):
        peak_memory(PeakJob("torch", str(folder), inputs), LONG)


def test_faults_of_the_process_are_one_line(tmp_path: Path) -> None:
    path = filling(tmp_path / "net.onnx", 10)
    with pytest.raises(MeasureError, match="^onnxruntime cannot run it: .*z"):
        peak_memory(job(path, "z"), LONG)
    for script, told in {
        "import os; os.abort()": "was ended while running it, by SIGABRT",
        "import os; os.kill(os.getpid(), 9)": r"by SIGKILL \(often: out of memory\)",
        "import sys; sys.exit(3)": "cannot run it: exit status 3",
        "print('nothing')": "gave no number",
    }.items():
        child = tmp_path / "child.py"
        child.write_text(script)
        with pytest.raises(MeasureError, match=told) as caught:
            peak_memory(job(path), LONG, child)
        assert "\n" not in str(caught.value)
    child.write_text("import time; time.sleep(1000)")
    with pytest.raises(MeasureError, match="took more than 2 s"):
        peak_memory(job(path), 2, child)


def test_the_process_imports_nothing_from_the_users_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = filling(tmp_path / "net.onnx", 10)
    (tmp_path / "onnxruntime.py").write_text("raise SystemExit('taken over')")
    monkeypatch.chdir(tmp_path)
    assert peak_memory(job(path), LONG).bytes > 0
