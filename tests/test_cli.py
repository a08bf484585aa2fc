"""The command line: what it prints, what it writes, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import onnxruntime
import pytest
import torch
from command_line import refused, run
from safetensors.torch import load_file as load_tensors
from torch import Tensor, nn

from fxprune import cli_methods, cli_options, cli_values, zoo
from fxprune.averages import AVERAGES
from fxprune.densities import RANKINGS
from fxprune.emit import onnx as onnx_writer
from fxprune.methods import METHODS
from fxprune.passes.choose import POOLS
from fxprune.passes.initialise import MODES
from fxprune.passes.plan import COUPLINGS
from fxprune.passes.sensitivity import POLICIES
from fxprune.saliency import CRITERIA, criterion
from fxprune.saliency.channels import REDUCTIONS
from fxprune.saliency.selections import SELECTIONS

FILES = ["model.onnx", "model.py", "model.safetensors", "recipe.json", "report.html", "report.json"]
pytestmark = pytest.mark.usefixtures("workplace")


# --- without torch ----------------------------------------------------------------------------------------------------


def test_help_and_version_do_not_import_torch() -> None:
    code = """
import sys
from typer.testing import CliRunner
from fxprune.cli import app
for line in ("--help", "compile --help", "explain --help", "zoo --help", "--version", "-h"):
    done = CliRunner().invoke(app, line.split())
    assert done.exit_code == 0 and done.stdout, (line, done.output)
    assert not {"torch", "numpy", "onnx"} & set(sys.modules), line
import fxprune.pipeline
assert "torch" in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_shows_every_option_of_compile() -> None:
    text = run("compile", "--help", columns=200).stdout
    wanted = (
        "--sparsity --keep-rate --channel-sparsity --ratios --target-params --target-macs --target-size "
        "--method --ranking --pool --reduction --data --data-batch "
        "--select --criterion --policy --coupling --average --init --seed --keep-weights "
        "--approximate --no-proof --only --ignore --input --arch --trust --allow-pickle --output -o --force "
        "--print-passes --json --quiet --opset --traceback --dry-run --widths --config --emit --threads --no-measure"
    )
    assert [name for name in wanted.split() if f"{name} " not in text] == []


@pytest.mark.parametrize(
    ("option", "known"),
    [
        (cli_methods.Policy, POLICIES),
        (cli_methods.Coupling, COUPLINGS),
        (cli_methods.Average, AVERAGES),
        (cli_methods.Select, SELECTIONS),
        (cli_methods.Ranking, RANKINGS),
        (cli_methods.Pool, POOLS),
        (cli_methods.Reduction, REDUCTIONS),
        (cli_options.Init, MODES),
    ],
)
def test_choices_are_those_of_the_passes(option: Any, known: Any) -> None:
    assert choices(option) == list(known)


def test_methods_are_those_of_the_library() -> None:
    assert tuple(METHODS) == cli_values.METHODS


def test_choices_of_criterion_exist() -> None:
    assert [criterion(name, 0).name for name in choices(cli_methods.Criterion)] == list(CRITERIA)


def choices(option: Any) -> list[str]:
    """Values of an Annotated[Literal[...]], optional or not."""
    found = []
    for part in get_args(option) or [option]:
        found += choices(part) if get_args(part) else [part] if isinstance(part, str) else []
    return found


# --- compile ----------------------------------------------------------------------------------------------------------


def test_the_literal_command(workplace: Path) -> None:
    line = [sys.executable, "-m", "fxprune", "compile", "zoo:resnet20", "--sparsity", "0.98"]
    env = {**os.environ, "COLUMNS": "80", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert [one.name for one in workplace.iterdir()] == ["resnet20-fxprune"]
    report = check_folder(workplace / "resnet20-fxprune")
    check_table(done.stdout, report)
    assert "input 2x3x32x32 chosen" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    out = scores(workplace / "resnet20-fxprune" / "model.onnx", torch.randn(4, 3, 32, 32))
    assert (out.std(0) > 0).all(), "every class score depends on the input"


def check_folder(folder: Path) -> dict[str, Any]:
    """All artefacts are there and agree with each other; the report."""
    assert sorted(one.name for one in folder.iterdir()) == FILES
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    recipe = json.loads((folder / "recipe.json").read_text())
    tensors = load_tensors(folder / "model.safetensors")
    for name, dims in recipe["kept"].items():
        assert all(tensors[name].shape[int(dim)] == len(kept) for dim, kept in dims.items())
    masks = {name.removesuffix("_mask"): mask for name, mask in tensors.items() if name.endswith("_mask")}
    assert all((tensors[name][mask == 0] == 0).all() for name, mask in masks.items())
    assert report["files"] == {name: (folder / name).stat().st_size for name in FILES[:4]}
    return report


def check_table(text: str, report: dict[str, Any]) -> None:
    """Costs and widths are printed as the report has them."""
    flat = " ".join(text.split())
    for label, key in (("parameters", "parameters"), ("of them not zero", "nonzeros"), ("MACs, one example", "macs")):
        assert f"{label} {report['before'][key]:,} {report['after'][key]:,}" in flat
    assert f"weights and buffers {report['before']['bytes']:,} {report['after']['bytes']:,}" in flat
    dense = report["measured"]["files"]["model.onnx"]["dense"] if "measured" in report else None
    assert f"model.onnx {f'{dense:,} ' if dense else ''}{report['files']['model.onnx']:,}" in flat
    for layer in report["layers"]:
        name = layer["weight"].removesuffix(".weight")
        assert re.search(rf"{re.escape(name)} {layer['before']} {layer['after']} ([\d.]+ )?{layer['decision']}", flat)


def scores(path: Path, x: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def test_saved_network_with_options_and_json(workplace: Path) -> None:
    torch.save(zoo.build("resnet8"), workplace / "net.pt")
    options = (
        "--keep-rate 0.5 --select first --keep-weights --ignore layer1* --ignore layer2* --seed 3 --opset 18 --json"
    )
    result = run("compile", "net.pt", "--input", "1x3x16x16", *options.split())
    assert (result.exit_code, result.stderr) == (0, "")
    printed = json.loads(result.stdout)
    assert printed == {**check_folder(workplace / "net-fxprune"), "folder": "net-fxprune"}
    assert printed["model"] == "net.pt" and printed["input"] == {"0": [1, 3, 16, 16]}
    assert printed["onnx"]["opset"] == 18 and "path" not in printed["onnx"]
    assert printed["asked"]["ignore"] == ["layer1*", "layer2*"]
    widths = {layer["weight"]: layer["after"] for layer in printed["layers"]}
    assert (widths["layer2.0.conv1.weight"], widths["layer3.0.conv1.weight"]) == (32, 32)
    assert str(workplace) not in result.stdout
    kept = load_tensors(workplace / "net-fxprune" / "model.safetensors")["layer3.0.conv1.weight"]
    assert torch.equal(kept, zoo.build("resnet8").get_parameter("layer3.0.conv1.weight")[:32])


def test_passes_are_printed_to_stdout(workplace: Path, quick_onnx: None) -> None:
    result = run("compile", "zoo:resnet8", "--sparsity", "0.9", "--print-passes")
    assert (result.exit_code, result.stderr) == (0, "")
    heads = [line for line in result.stdout.splitlines() if line.startswith("== after")]
    assert heads[0] == "== after analyse" and heads[-1] == "== after reinit"
    assert "conv1 = conv1(" in result.stdout


def test_passes_are_printed_to_stderr_beside_json(workplace: Path, quick_onnx: None) -> None:
    result = run("compile", "zoo:resnet8", "--sparsity", "0.9", "--print-passes", "--json")
    assert json.loads(result.stdout)["model"] == "zoo:resnet8"
    assert result.stderr.startswith("== after analyse\n")


@pytest.mark.parametrize("columns", [80, 200])
def test_tables_fit_the_terminal(columns: int, workplace: Path, quick_onnx: None) -> None:
    net = nn.Sequential()
    name = "a_layer_with_a_name_that_goes_on_and_on_" * 3
    net.add_module(name, nn.Conv2d(3, 8, 3))
    net.add_module("last", nn.Conv2d(8, 4, 3))
    torch.save(net, workplace / "net.pt")
    result = run("compile", "net.pt", "--keep-rate", "0.5", columns=columns)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= columns
    assert re.search(r"^a_layer_\w+ +8 +4 +shrunk", result.stdout, re.MULTILINE)
    assert bool(re.search(rf"^{name} +8 +4 +shrunk", result.stdout, re.MULTILINE)) == (columns == 200)


@pytest.mark.parametrize(
    ("emit", "files"),
    [
        ("", ["model.onnx", "model.py", "model.safetensors"]),
        ("--emit onnx", ["model.onnx"]),
        ("--emit weights,source", ["model.py", "model.safetensors"]),
        ("--emit weights --emit onnx", ["model.onnx", "model.safetensors"]),
    ],
)
def test_emit_names_what_is_written(emit: str, files: list[str], workplace: Path, quick_onnx: None) -> None:
    result = run("compile", "zoo:resnet8", "--sparsity", "0.9", *emit.split())
    assert (result.exit_code, result.stderr) == (0, "")
    written = sorted(one.name for one in (workplace / "resnet8-fxprune").iterdir())
    assert written == [*files, "recipe.json", "report.html", "report.json"]
    assert ("ONNX      opset" in result.stdout) == ("model.onnx" in files)
    refused(run("compile", "zoo:resnet8", "--sparsity", "0.9", *emit.split()), "exists already")


TALKATIVE = """
import torch
from torch import nn

print("hello")


class Net(nn.Sequential):
    def forward(self, x):
        print("again")
        return super().forward(x)


if __name__ == "__main__":
    torch.save(Net(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), "net.pt")
"""


def test_json_stands_alone_on_stdout(workplace: Path) -> None:
    (workplace / "train.py").write_text(TALKATIVE)
    subprocess.run([sys.executable, "train.py"], check=True, capture_output=True)
    line = ("compile", "net.pt", "--trust", "train.py", "--sparsity", "0.5", "--dry-run", "--json")
    result = run(*line)
    assert json.loads(result.stdout)["model"] == "net.pt", result.stderr
    assert "hello" in result.stderr and "again" in result.stderr
    refused(run("compile", "missing.pt", "--sparsity", "0.5", "--json"), "missing.pt does not exist")


def test_threads_are_those_of_torch(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert run("compile", "zoo:resnet8", "--sparsity", "0.9", "--dry-run", "--threads", "3").exit_code == 0
    assert run("compile", "zoo:resnet8", "--sparsity", "0.9", "--dry-run").exit_code == 0
    assert asked == [3]


def test_interrupt_leaves_nothing_behind(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_module: object, _inputs: object, path: Path, **_: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(onnx_writer, "export_onnx", interrupted)
    result = run("compile", "zoo:resnet8", "--keep-rate", "0.5")
    assert (result.exit_code, result.stdout, result.stderr) == (130, "", "interrupted\n")
    assert list(workplace.iterdir()) == []
