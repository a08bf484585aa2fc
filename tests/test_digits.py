"""The way of a user: compile, train through model.py alone in another process, export, run in onnxruntime."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fxprune.cli import app

pytest.importorskip("sklearn")
TRAINING = Path(__file__).with_name("train_digits.py")


def network() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    layers = [*block(1, 24), *block(24, 24), nn.MaxPool2d(2), *block(24, 48), *block(48, 48)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(48, 10))


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_compile_train_export_run(optimiser: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(2)
    torch.save(network(), "net.pt")
    run = CliRunner().invoke
    compiled = run(app, ["compile", "net.pt", "--sparsity", "0.6", "--input", "1x1x8x8", "--no-measure", "-q"])
    assert compiled.exit_code == 0, compiled.stderr
    trained = subprocess.run(
        [sys.executable, "-P", str(TRAINING), "net-fxprune", optimiser],
        capture_output=True, text=True, env={name: one for name, one in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    assert float(trained.stdout) > 0.8
    exported = run(app, ["export", "net-fxprune", "--weights", "trained.pt"])
    assert exported.exit_code == 0, exported.stderr

    outputs = torch.load("outputs.pt", weights_only=True)
    session = onnxruntime.InferenceSession("trained.onnx", providers=["CPUExecutionProvider"])
    logits = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: outputs["images"].numpy()})[0])
    assert torch.allclose(logits, outputs["logits"], atol=1e-4)
    state = torch.load("trained.pt", weights_only=True)
    masks = {name.removesuffix("_mask"): mask for name, mask in state.items() if name.endswith("_mask")}
    assert masks and not any(state[name][~mask].any() for name, mask in masks.items())
    assert all((~mask).any() for mask in masks.values())
