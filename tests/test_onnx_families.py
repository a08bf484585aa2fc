"""Cut networks as ONNX: one file that computes what torch does at every batch size and tells only the network."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import pytest
import torch
from families import FAMILIES, build, pictures
from onnx_networks import secrets

import fxprune
from fxprune import Compiled

# One of each construct in little time; the rest takes minutes and waits for `-m wide`.
QUICK = {"squeezenet1_1", "mobilenet_v2", "mobilenet_v3_small", "shufflenet_v2_x1_0", "googlenet", "dla34"}
QUICK |= {"resnext50_32x4d", "ese_vovnet19b_dw"}
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.wide) for name in FAMILIES]


def halved(name: str) -> Compiled:
    """In float32, as users export; the proof is another test's business."""
    model, x = build(name, dtype=torch.float32), pictures(name, dtype=torch.float32)
    return fxprune.compile(model, x, keep_rate=0.5, select="random", keep_weights=True, seed=3, proof=False)


@pytest.mark.parametrize("name", NAMES)
def test_file_equals_torch(name: str, tmp_path: Path) -> None:
    done = halved(name)
    report = done.to_onnx(tmp_path / "net.onnx")
    assert report.difference <= 1e-4 and report.dynamic_batch and not report.notes  # at batch 1, 2 and 5
    assert os.listdir(tmp_path) == ["net.onnx"]
    blob = report.path.read_bytes()
    assert secrets(blob) == []
    graph = onnx.ModelProto.FromString(blob).graph
    assert not [tensor.name for tensor in graph.initializer if tensor.external_data]
    names = [value.name for value in graph.input]
    assert names == list(report.inputs) == [done.module.graph.find_nodes(op="placeholder")[0].name]
    assert [value.name for value in graph.output] == ["output"]
    assert stored(graph) <= 1.05 * sum(parameter.numel() for parameter in done.module.parameters())


def stored(graph: onnx.GraphProto) -> int:
    """Numbers in the file: those of the cut network, not of the dense one."""
    sizes = [torch.Size(tensor.dims).numel() for tensor in graph.initializer]
    return sum(sizes)
