"""What the command line refuses: one line on stderr, and nothing is loaded or left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import refused, run
from torch import nn

from fxprune.capture import load as loading
from fxprune.cli_errors import printable
from fxprune.errors import LoadError

pytestmark = pytest.mark.usefixtures("workplace")


WRONG_OPTIONS = [
    ("", ("give --sparsity or --keep-rate", "none was given")),
    ("--sparsity 0.5 --keep-rate 0.5", ("only one of them", "--sparsity and --keep-rate were given")),
    ("--sparsity 0.5 --target-size 1MiB", ("--sparsity and --target-size were given",)),
    ("--target-macs 0.5 --target-size 1MiB", ("--target-macs and --target-size were given",)),
    ("--target-size 1QB", ("--target-size '1QB' is no amount", "10MiB")),
    ("--target-params 10MiB", ("--target-params '10MiB' is no amount", "2.5M")),
    ("--target-macs 120%", ("'120%' is out of range",)),
    ("--target-macs 0", ("'0' is out of range",)),
    ("--channel-sparsity 1", ("channel_sparsity is the fraction of channels to remove",)),
    ("--ratios missing.yaml", ("missing.yaml: No such file",)),
    ("--ratios file", ("file names no layer",)),
    ("--method taste --sparsity 0.5", ("unknown method 'taste'", "reconvene, upai")),
    ("--method taste --target-macs 0.5", ("unknown method 'taste'",)),
    ("--method l1 --sparsity 0.5", ("method l1 takes keep_rate (or a target), not sparsity",)),
    ("--method l1 --target-macs 0.5 --ranking erk", ("--ranking has no effect with --target-macs", "give --sparsity")),
    ("--method slimming --keep-rate 0.5 --pool local", ("method slimming sets pool to 'global'", "--pool local out")),
    ("--method upai --sparsity 0.5 --policy reconvene", ("method upai sets policy to 'none'",)),
    ("--method reconvene --sparsity 0.5 --policy all", ("method reconvene sets policy to 'reconvene'",)),
    ("--method precrop-synflow --target-macs 0.5 --criterion magnitude", ("sets criterion to 'synflow'",)),
    ("--keep-rate 0.5 --select l1 --criterion synflow", ("--criterion has no effect where select is l1",)),
    ("--method l1 --target-macs 0.5 --criterion synflow", ("--criterion has no effect where select is l1",)),
    ("--method precrop --sparsity 0.5 --ranking erk", ("--ranking has no effect where policy is precrop",)),
    ("--keep-rate 0.5 --reduction max", ("--reduction has no effect where select is saliency",)),
    ("--sparsity 0.5 --policy none --average conv", ("--average has no effect where policy is none",)),
    ("--sparsity 0.5 --policy random --average conv", ("--average has no effect where policy is random",)),
    ("--sparsity 0.5 --pool global", ("--pool has no effect with --sparsity",)),
    ("--keep-rate 0.5 --ranking erk", ("--ranking has no effect with --keep-rate",)),
    ("--sparsity 0.5 --criterion snip", ("snip looks at gradients", "needs labelled data", "--data")),
    ("--target-params 0.5 --method taylor", ("taylor looks at gradients", "needs labelled data")),
    ("--keep-rate 0.5 --select gate", ("gate looks at gradients", "needs labelled data")),
    ("--sparsity 0.5 --data synthetic", ("data has no effect", "magnitude looks at the network alone")),
    ("--sparsity 0.5 --method precrop --data digits", ("precrop looks at the network alone",)),
    ("--sparsity 0.5 --data-batch 8", ("--data-batch has no effect without --data",)),
    ("--sparsity 98", ("below 1, not 98.0",)),
    ("--sparsity nan", ("not nan",)),
    ("--keep-rate 0", ("fraction of channels to keep", "not 0.0")),
    ("--sparsity 0.5 --select first", ("--select has no effect with --sparsity",)),
    ("--keep-rate 0.5 --policy all", ("--policy has no effect with --keep-rate",)),
    ("--keep-rate 0.5 --average conv", ("--average has no effect with --keep-rate",)),
    ("--sparsity 0.5 --seed -1", ("seed", "-1")),
    ("--sparsity 0.5 --keep-weights --init kaiming", ("keep_weights",)),
    ("--sparsity 0.5 --emit onxx", ("--emit 'onxx'", "onnx, source, weights")),
    ("--sparsity 0.5 --emit onnx,", ("--emit ''",)),
    ("--sparsity 0.5 --emit weights --opset 18", ("--opset has no effect without model.onnx",)),
    ("--sparsity 0.5 --threads 0", ("--threads",)),
    ("--sparsity 0.5 --threads 100000", ("--threads",)),
    ("--sparsity 0.5 --opset 7", ("--opset 7", "from 18 to")),
    ("--sparsity 0.5 --opset 1000", ("--opset 1000",)),
    ("--sparsity 0.5 --input 3x", ("--input '3x'",)),
    ("--sparsity 0.5 --input 1x3x8x8:complex64", ("complex64",)),
    ("--sparsity 0.5 -o taken", ("taken exists already", "--force", "-o")),
    ("--sparsity 0.5 -o file", ("file is a file", "-o")),
    ("--sparsity 0.5 -o file/below", ("file is a file", "-o")),
]


@pytest.mark.parametrize(("options", "words"), WRONG_OPTIONS)
def test_options_are_checked_before_the_model_is_loaded(
    options: str, words: tuple[str, ...], workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (workplace / "taken").mkdir()
    (workplace / "file").touch()
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("the model was loaded"))
    refused(run("compile", "zoo:resnet8", *options.split()), *words)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("compile zoo:resnet8 --policy some", ("--policy", "'some'", "'reconvene', 'all'")),
        ("compile zoo:resnet8 --sparsity much", ("--sparsity", "valid number")),
        ("compile zoo:resnet8 --zzzz", ("no such option: --zzzz; see fxprune compile --help",)),
        ("compile zoo:resnet8 --forc", ("--forc", "--force")),
        ("compile zoo:resnet8 --seed 0.5", ("--seed", "valid integer")),
        ("compile zoo:resnet8 --seed", ("--seed", "requires an argument")),
        ("compile --sparsity 0.9", ("missing argument 'MODEL'; see fxprune compile --help",)),
        ("explain", ("missing argument 'MODEL'; see fxprune explain --help",)),
        ("zoo more", ("unexpected", "more")),
        ("compil", ("no such command 'compil'. Did you mean 'compile', 'compare'? See fxprune --help",)),
        ("--what", ("no such option: --what; see fxprune --help",)),
    ],
)
def test_lines_that_cannot_be_read_get_one_line(line: str, words: tuple[str, ...]) -> None:
    refused(run(*line.split()), *words)


def test_without_a_command_help_is_printed() -> None:
    result = run()
    assert (result.exit_code, result.stderr) == (2, "")
    assert "compile" in result.stdout and "--help" in result.stdout


@pytest.mark.parametrize("command", ["compile", "explain"])
@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("missing.pt", ("missing.pt does not exist",)),
        (".", ("is a folder",)),
        ("zoo:vgg61", ("zoo has no network 'vgg61'; did you mean vgg1",)),
        ("hub:resnet50", ("no spec", "zoo:NAME")),
        ("nothing-like-it", ("nothing-like-it does not exist",)),
        ("resnet50", ("no file resnet50", "zoo:resnet50 or torchvision:resnet50 or timm:resnet50")),
        ("a\nb\x1b[31m.pt", ("a b\\x1b[31m.pt does not exist",)),
    ],
)
def test_models_that_are_none_get_one_line(command: str, model: str, words: tuple[str, ...], workplace: Path) -> None:
    refused(run(command, model, *["--keep-rate=0.5"] * (command == "compile")), *words)
    assert list(workplace.iterdir()) == []


def test_file_with_the_name_of_a_spec_is_given_with_its_folder(workplace: Path) -> None:
    (workplace / "zoo:resnet8").write_bytes(b"")
    (workplace / "resnet50").write_bytes(b"")
    assert loading.load("zoo:resnet8").fresh
    refused(run("explain", "./zoo:resnet8"), "is empty")
    refused(run("explain", "resnet50"), "resnet50 is empty")


def test_missing_packages_offer_no_names(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise LoadError("not installed")

    monkeypatch.setattr(loading, "import_timm", missing)
    monkeypatch.setattr(loading, "import_torchvision", missing)
    refused(run("explain", "vgg16"), "give zoo:vgg16\n")


def test_network_that_nothing_can_be_removed_from(workplace: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 8, 3)), workplace / "net.pt")
    refused(
        run("compile", "net.pt", "--keep-rate", "0.5"), "no channel of this network can be removed", "a network output"
    )
    assert not (workplace / "net-fxprune").exists()


def test_unforeseen_error_is_one_line_that_offers_the_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "load", lambda *_: 1 / 0)
    refused(run("explain", "zoo:resnet8"), "ZeroDivisionError: division by zero", "--traceback", status=1)
    shown = run("explain", "zoo:resnet8", "--traceback")
    assert shown.exit_code == 1
    assert "Traceback (most recent call last)" in shown.stderr and "1 / 0" in shown.stderr


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (PermissionError(13, "Permission denied", "x/y"), "error: x/y: Permission denied\n"),
        (OSError("the disk is gone"), "error: the disk is gone\n"),
    ],
)
def test_file_system_errors_are_one_line(raised: OSError, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise raised

    monkeypatch.setattr(loading, "load", fail)
    refused(run("explain", "zoo:resnet8"), words)


def test_messages_hold_no_control_characters() -> None:
    assert printable("a\n  b\tc\x1b[0m\udcff\u202e") == "a b c\\x1b[0m\\udcff\\u202e"
