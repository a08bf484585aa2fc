"""Methods, data, ratios and targets on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import refused, run
from torch import nn

from fxprune.amounts import amount
from fxprune.cli_several import fractions, spread
from fxprune.errors import OptionError

pytestmark = pytest.mark.usefixtures("workplace")


def told(*line: str) -> dict[str, Any]:
    """What a dry run says."""
    result = run("compile", "zoo:resnet8", *line, "--dry-run", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(
    ("text", "in_bytes", "value"),
    [
        ("2.5M", False, 2.5e6), ("300k", False, 3e5), ("1e6", False, 1e6), ("0.25", False, 0.25), ("25%", False, 0.25),
        ("100 %", False, 1.0), ("10MiB", True, 10 * 2**20), ("4 MB", True, 4e6), ("1.5kb", True, 1500), ("7", True, 7),
    ],
)  # fmt: skip
def test_amounts(text: str, in_bytes: bool, value: float) -> None:
    assert amount(text, in_bytes=in_bytes) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "much", "-1", "0", "1.2.3", "5MiB", "101%", "0%", "nan", "inf", "0.0001k"])
def test_what_is_no_amount(text: str) -> None:
    with pytest.raises(OptionError, match="is no amount|is out of range"):
        amount(text)


def test_several_values_follow_their_option() -> None:
    line = "net --sparsity 0.9 0.95,0.98 -q --methods spai uniform net.pt 0.5 --sparsity 1 --seed 2 3"
    again = "net --sparsity 0.9 --sparsity 0.95,0.98 -q --methods spai --methods uniform net.pt 0.5 --sparsity 1 "
    assert " ".join(spread(line.split())) == again + "--seed 2 3"
    assert fractions(["0.9,0.95", "0.9", " .98 "]) == [0.9, 0.95, 0.98]
    with pytest.raises(OptionError, match="'much' is no number"):
        fractions(["0.9,much"])


def test_plan_refuses_what_has_no_effect() -> None:
    line = ("plan", "zoo:resnet8", "--sparsity", "0.5", "--policy", "none", "--average", "conv")
    refused(run(*line), "average='conv' has no effect where policy is 'none': leave it out")


def test_plan_takes_several_sparsities() -> None:
    result = run("plan", "zoo:resnet8", "--sparsity", "0.9", "0.95,0.98", "--json")
    assert [one["sparsity"] for one in json.loads(result.stdout)["forecasts"]] == [0.9, 0.95, 0.98]


@pytest.mark.parametrize("option", ["--target-params", "--target-macs", "--target-size"])
def test_targets_are_met_and_told(option: str) -> None:
    found = told(option, "60%", "--method", "uniform")
    kind = {"--target-params": "parameters", "--target-macs": "macs", "--target-size": "bytes"}[option]
    assert found["after"][kind] <= 0.6 * found["before"][kind]
    assert found["notes"][1].startswith("target of ") and "is met" in found["notes"][1]
    assert found["asked"][option[2:].replace("-", "_")] == 0.6


def test_an_impossible_target_is_one_line_with_the_nearest() -> None:
    line = ("compile", "zoo:resnet8", "--target-size", "1kB", "--dry-run")
    refused(run(*line), "the target of 1,000 bytes cannot be met: the smallest found here is")


def test_ratios_for_each_layer() -> None:
    for name, text in (("rates.yaml", "layer2.0.conv1: 0.25\nlayer3.*: 0.5"), ("rates.json", '{"layer3.*": 0.5}')):
        Path(name).write_text(text)
    found = told("--ratios", "rates.yaml", "--select", "l1", "--pool", "global", "--reduction", "max")
    widths = {line["weight"]: line["after"] for line in found["layers"]}
    assert (widths["layer2.0.conv1.weight"], widths["layer1.0.conv1.weight"]) == (8, 16)
    assert told("--ratios", "rates.json")["asked"]["keep_rate"] == {"layer3.*": 0.5}
    assert (found["asked"]["pool"], found["asked"]["reduction"]) == ("global", "max")
    Path("rates.yaml").write_text("layer9.*: 0.25")
    refused(run("compile", "zoo:resnet8", "--ratios", "rates.yaml"), "no layer that can lose channels matches")
    Path("rates.yaml").write_text("layer3.*: half")
    refused(run("compile", "zoo:resnet8", "--ratios", "rates.yaml"), "rates.yaml: a pattern of layers", "'half'")


@pytest.mark.parametrize("source", ["synthetic", "arrays.npz", "pictures", "digits"])
def test_each_source_of_data(source: str) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 64, 10))
    torch.save(net, "net.pt")
    labels = np.arange(12) % 10
    np.savez("arrays.npz", x=np.random.default_rng(0).integers(0, 255, (12, 8, 8), dtype=np.uint8), y=labels)
    if source == "pictures":
        image = pytest.importorskip("PIL.Image")
        for kind in ("a", "b"):
            (Path(source) / kind).mkdir(parents=True)
            image.new("L", (8, 8), 100).save(Path(source) / kind / "1.png")
    line = ("compile", "net.pt", "--input", "1x1x8x8", "--sparsity", "0.5", "--criterion", "snip", "--data", source)
    first, again = (run(*line, "--data-batch", "8", "--dry-run", "--json") for _ in range(2))
    assert (first.exit_code, first.stderr) == (0, "")
    asked, same = (json.loads(one.stdout)["asked"] for one in (first, again))
    assert asked == same and asked["data"] == f"{source}, 4 batches of 8 at most"


def test_too_few_pictures_are_said() -> None:
    torch.save(nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 3)), "net.pt")
    np.savez("arrays.npz", x=np.zeros((4, 8, 8), dtype=np.uint8), y=np.zeros(4, dtype=int))
    line = ("compile", "net.pt", "--input", "1x1x8x8", "--sparsity", "0.5", "--criterion", "prospr", "--dry-run")
    refused(run(*line, "--data", "arrays.npz"), "prospr needs 4 batches of data, 1 were given")
    refused(run(*line, "--data", "nowhere"), "--data nowhere: give a folder")


@pytest.mark.parametrize("options", ["--criterion grasp --sparsity 0.8", "--method 3sp --keep-rate 0.5"])
def test_the_same_bytes_each_time(options: str, workplace: Path, quick_onnx: None) -> None:
    for name in ("first", "again"):
        line = ("compile", "zoo:resnet8", *options.split(), "--data", "synthetic", "--data-batch", "4", "-o", name)
        assert run(*line, "--emit", "weights").exit_code == 0
    for file in ("recipe.json", "model.safetensors"):
        assert (workplace / "first" / file).read_bytes() == (workplace / "again" / file).read_bytes()
