"""plan(): widths from shapes alone, against the plan that sampled weights lead to."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner

import fxprune
from fxprune import zoo
from fxprune.capture.specs import build_spec
from fxprune.cli import app
from fxprune.errors import OptionError
from fxprune.passes.expect import expected_shares
from fxprune.planning import plan
from fxprune.program import named_tensors

SPARSITIES = (0.5, 0.8, 0.9, 0.95, 0.98)


@pytest.mark.parametrize("name", ["vgg16", "resnet20", "mobilenet10"])
def test_agrees_with_the_sampled_plan(name: str) -> None:
    model, image = zoo.build(name), torch.zeros(2, 3, 32, 32)
    groups = near = 0
    for found in plan(model, image, SPARSITIES):
        done = fxprune.compile(model, image, sparsity=found.sparsity, proof=False)
        for line in done.report.groups:
            if line.frozen is None and line.producers:
                expected = found.widths.get(line.index, (line.before, line.before))[1]
                groups += 1
                near += abs(expected - line.after) <= 1
        assert found.average_sparsity == pytest.approx(found.sparsity, abs=1e-5)
    assert near >= 0.99 * groups


def test_costs_are_those_of_the_compiled_network() -> None:
    model, image = zoo.build("vgg11"), torch.zeros(2, 3, 32, 32)
    [found] = plan(model, image, 0.98)
    report = fxprune.compile(model, image, sparsity=0.98, proof=False).report
    assert (found.before.parameters, found.before.macs) == (report.before.parameters, report.before.macs)
    assert found.after.parameters == pytest.approx(report.after.parameters, rel=0.01)
    decided = {line.weight: line.decision for line in report.layers if "classifier" not in line.weight}
    assert {line.weight: line.decision for line in found.layers if line.weight in decided} == decided


def test_the_threshold_meets_the_sparsity() -> None:
    layers = {"a": (27, 1728), "b": (576, 36864), "c": (4608, 2359296)}
    for sparsity in SPARSITIES:
        shares = expected_shares(layers, sparsity)
        zeros = sum(shares[name] * size for name, (_, size) in layers.items())
        assert zeros == pytest.approx(sparsity * sum(size for _, size in layers.values()), rel=1e-9)
        assert shares["a"] < shares["b"] < shares["c"]
    assert expected_shares(layers, 0.0) == pytest.approx({"a": 0, "b": 0, "c": 0})


def test_a_network_without_numbers_will_do() -> None:
    with torch.device("meta"):
        model = torch.nn.Sequential(
            torch.nn.Conv2d(3, 64, 3), torch.nn.ReLU(), torch.nn.Conv2d(64, 256, 3), torch.nn.Flatten(),
            torch.nn.Linear(4096, 10),
        )  # fmt: skip
    low, high = plan(model, torch.zeros(1, 3, 8, 8), [0.5, 0.98])
    assert low.after.parameters > high.after.parameters
    with pytest.raises(OptionError, match="sparsity is the fraction"):
        plan(model, torch.zeros(1, 3, 8, 8), [0.5, 1.5])


@pytest.mark.parametrize("spec", ["torchvision:regnet_y_400mf", "zoo:resnet8", "timm:convnext_atto"])
def test_networks_are_built_without_numbers_whatever_their_constructors_compute(spec: str) -> None:
    bare, whole = build_spec(spec, shapes_only=True).module, build_spec(spec).module
    assert all(one.is_meta for one in named_tensors(bare).values())
    shapes = {name: (one.shape, one.requires_grad) for name, one in named_tensors(bare).items()}
    assert shapes == {name: (one.shape, one.requires_grad) for name, one in named_tensors(whole).items()}
    assert not any(one.is_meta for one in named_tensors(whole).values())


BILLION = r"""
import re, torch
from pathlib import Path
from torch import nn
from fxprune.planning import plan
with torch.device("meta"):
    wide = [nn.Sequential(nn.Conv2d(5400, 5400, 3, padding=1), nn.BatchNorm2d(5400), nn.ReLU()) for _ in range(4)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5400, 1000)]
    model = nn.Sequential(nn.Conv2d(3, 5400, 3, padding=1), *wide, *head)
print(sum(one.numel() for one in model.parameters()) > 1e9)
print([one.after.parameters for one in plan(model, torch.zeros(1, 3, 64, 64), [0.5, 0.9])])
peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())  # ru_maxrss would begin at the parent's
print(int(peak[1]) < 2**20)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_billion_parameters_are_planned_within_a_gibibyte() -> None:
    done = subprocess.run([sys.executable, "-c", BILLION], capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0, done.stderr
    big, counts, small = done.stdout.split("\n")[:3]
    assert (big, small) == ("True", "True")
    assert json.loads(counts)[0] > json.loads(counts)[1]


def test_on_the_command_line() -> None:
    done = CliRunner().invoke(app, ["plan", "zoo:resnet8", "--sparsity", "0.9", "--sparsity", "0.98", "--json"])
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)["forecasts"]
    assert [one["sparsity"] for one in found] == [0.9, 0.98]
    table = CliRunner().invoke(app, ["plan", "zoo:resnet8", "--sparsity", "0.9"])
    assert "Widths (output channels)" in table.stdout
    refused = CliRunner().invoke(app, ["plan", "model.pt", "--sparsity", "0.9"])
    assert refused.exit_code == 2
    assert refused.stderr.count("\n") == 1
    assert "is no spec" in refused.stderr
