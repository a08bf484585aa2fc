"""`fxprune explain` and `fxprune zoo`: what they print."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import refused, run

from fxprune import zoo

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.second = nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.second(self.first(x).relu()).mean((2, 3))
"""


pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def saved(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A network of a package of the user's own, saved whole."""
    (workplace / "their_package.py").write_text(NET)
    monkeypatch.syspath_prepend(workplace)
    import their_package  # type: ignore[import-not-found]

    torch.save(their_package.Net(), workplace / "net.pt")
    yield workplace / "net.pt"
    del sys.modules["their_package"]


def test_explain_tells_groups_reasons_and_source_lines(saved: Path) -> None:
    refused(run("explain", str(saved)), "their_package", "--trust")
    result = run("explain", "net.pt", "--trust", "their_package", columns=200)
    assert (result.exit_code, result.stderr) == (0, "")
    flat = " ".join(result.stdout.split())
    assert "3 groups of channels that go together, 1 of them prunable" in flat
    assert "0 8 512 24,584,544 exact first, second[1]" in flat
    assert "2 4 292 13,939,200 frozen second" in flat
    assert "group 1: meets a tensor none of whose channels can go" in flat
    assert "their_package.py:12: return self.second(self.first(x).relu()).mean((2, 3))" in flat
    assert "input 2x3x224x224 chosen" in flat


def test_explain_as_json(saved: Path) -> None:
    result = run("explain", "net.pt", "--trust", "their_package", "--input", "1x3x9x9", "--json")
    told = json.loads(result.stdout)
    assert told["model"] == "net.pt" and told["notes"] == []
    assert [(group["width"], group["prunable"]) for group in told["groups"]] == [(8, True), (1, False), (4, False)]
    assert "their_package.py:12" in told["groups"][1]["frozen_at"]


def test_explain_one_layer() -> None:
    result = run("explain", "zoo:resnet8", "--layer", "layer1.0.conv1")
    flat = " ".join(result.stdout.split())
    assert "layer1.0.conv1 makes the 16 channels of group 2 (exact)" in flat
    assert "with each goes its part of layer1.0.bn1, layer1.0.conv2[1] layer1.0.conv1[1] shares the 16" in flat
    told = json.loads(run("explain", "zoo:resnet8", "--layer", "fc", "--json").stdout)
    assert [(one["makes"], one["state"], one["width"]) for one in told["groups"]] == [
        (True, "frozen", 10),
        (False, "exact", 64),
    ]
    refused(run("explain", "zoo:resnet8", "--layer", "layer1.0.con1"), "did you mean layer1.0.conv1")


def test_zoo_lists_every_network() -> None:
    table = run("zoo")
    assert [line.split()[0] for line in table.stdout.splitlines() if line.startswith("zoo:")] == [
        f"zoo:{name}" for name in zoo.names()
    ]
    listed = json.loads(run("zoo", "--json").stdout)
    assert listed[0] == {
        "name": "vgg11",
        "input_shape": [1, 3, 32, 32],
        "num_classes": 10,
        "description": "VGG-11, conv biases on",
    }
    assert [one["name"] for one in listed] == zoo.names()
