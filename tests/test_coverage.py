"""The coverage sweep: a right network passes, a wrong cut is called wrong, and the page counts both."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import coverage_checks
import coverage_exactness
import pytest
import torch
from coverage_networks import Network
from coverage_page import page
from torch import Tensor, nn

import fxprune


def sweep() -> ModuleType:
    """tools/coverage.py by its path: `import coverage` would find the package of that name, where it is installed."""
    spec = importlib.util.spec_from_file_location(
        "coverage_sweep", Path(coverage_checks.__file__).parent / "coverage.py"
    )
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Small(nn.Module):
    """A convolution, a norm over its channels, and a head: approximate where weights are drawn anew."""

    def __init__(self) -> None:
        super().__init__()
        self.image_size = 12
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3), nn.LayerNorm(8), nn.Conv2d(8, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        out: Tensor = self.fc(self.b(x).relu().mean((2, 3)))
        return out


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(coverage_checks, "built", lambda spec: coverage_checks.randomise(Small()))


def record(spec: str = "timm:small") -> dict[str, Any]:
    return coverage_checks.measure(spec, coverage_checks.steps([0.5], onnx=False)) | {"total": 1.0}


def test_a_right_network(small: None) -> None:
    found = record()
    assert found["status"] == "ok" and found["faults"] == [] and found["shape"] == (3, 12, 12)
    assert found["exact"]["by"] == "oracle, kept channels" and found["exact"]["error"] <= 1e-9
    assert found["kept_weights"]["share"] < found["share"] == 1.0


@pytest.fixture
def wrong(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The next compiled networks have one weight that they should not have, where the list says so."""
    right, wrong = fxprune.compile, [True] * 9

    def compiled(*args: Any, **options: Any) -> fxprune.Compiled:
        done = right(*args, **options)
        with torch.no_grad():
            done.module.get_parameter("b.weight")[0, 0] += 0.01 * (wrong.pop(0) if wrong else 0)
        return done

    monkeypatch.setattr(fxprune, "compile", compiled)
    return wrong


def test_a_wrong_cut_is_called_wrong(small: None, wrong: list[bool]) -> None:
    found = record()
    assert found["status"] == "wrong" and "exact: differs from the oracle" in found["faults"]
    assert "statistics" not in found["exact"]  # rounding is no excuse


def test_rounding_is_measured() -> None:
    class Subtracts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x - 3

    x = torch.tensor([[3.0 + 2**-20, 3.0 - 2**-20]], dtype=torch.float64)
    assert 1e-16 < coverage_exactness.rounding(nn.Identity(), x) < 1e-15
    assert 2e-10 < coverage_exactness.rounding(Subtracts(), x) < 2e-9


def test_a_network_that_magnifies_rounding_is_calibrated(
    small: None, wrong: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coverage_exactness, "rounding", lambda *_: 1e-6)
    assert record()["status"] == "wrong"  # calibrated, too
    wrong[:] = [True]
    found = record()
    assert found["status"] == "ok" and found["exact"]["rounding_before"] == 1e-6
    assert " calibrated |" in page([Network("timm:small", "small", 1000, True)], {"timm:small": found})


def test_calibrated_statistics_are_those_of_the_inputs() -> None:
    norm = nn.BatchNorm2d(3).double()
    x = 5 + 2 * torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = coverage_exactness.calibrated(norm, x)
    assert not found.training and torch.equal(norm.running_mean, torch.zeros(3))
    assert torch.allclose(found.running_mean, torch.cat([x, 1.5 * x, x]).mean((0, 2, 3)))


def test_whatever_a_network_raises_is_noted(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Small, "forward", lambda self, x: self.a(x).nonsense())
    with pytest.raises(RuntimeError, match="no picture fits"):
        record()


def test_page(small: None) -> None:
    networks = [Network(f"timm:{name}", "small", 1000, True) for name in ("good", "bad", "late")]
    known = {"timm:good": record("timm:good"), "timm:bad": record("timm:bad")}
    known["timm:bad"] |= {"status": "wrong", "faults": ["exact: differs | badly"]}
    known["timm:good"]["commit"] = "1234567"
    text = page(networks, known)
    assert "1 of 3 networks, from 0 to 0 million parameters, have not been run yet" in text
    assert "by sparsity: 2 at 50%. Run at commit: 1234567 (1), earlier ones (1)." in text
    assert "| timm | 2 of 3 | 1 | 1 | 2 | 100.00% of 2 |" in text
    assert "| timm:bad | wrong | exact: differs / badly |" in text and "late" not in text


def test_a_known_network_gets_the_steps_that_it_lacks(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    coverage, network = sweep(), Network("timm:small", "small", 1000, True)
    monkeypatch.setattr(sys, "argv", ["coverage.py", "--sparsity", "0.5", "--sparsity", "0.8"])
    options = coverage.parsed()
    known = record()
    assert coverage.wanted(network, [network], {}, options) == coverage_checks.steps([0.5, 0.8], onnx=False)
    lacking = coverage.wanted(network, [network], {network.spec: known}, options)
    assert lacking == ["training at 0.8"]
    found = coverage_checks.measure(network.spec, lacking, known)
    assert found["exact"] == known["exact"] and set(found["training"]) == {"0.5", "0.8"} != set(known["training"])
    assert coverage.wanted(network, [network], {network.spec: found}, options) == []
    killed = coverage.died(network.spec, found, "the process died")
    assert killed["status"] == "died" and killed["exact"] == known["exact"] and found["status"] == "ok"
