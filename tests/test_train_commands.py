"""`fxprune train` and `fxprune learn`: from the command line to the folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import refused, run
from digit_networks import INPUT, network, save
from safetensors.torch import load_file
from torch import nn

from fxprune import load
from fxprune.artefact_checks import verify
from fxprune.training.checkpoints import CHECKPOINT, Checkpoints

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.usefixtures("workplace", "quick_onnx"), pytest.mark.filterwarnings("error::UserWarning")]

SHORT = ("--data", "digits", "--batch", "256", "--epochs", "2")
LEARN = ("learn", "net.pt", "--input", INPUT, *SHORT)


def answered(*line: str) -> dict[str, Any]:
    result = run(*line, "--json")
    assert (result.exit_code, result.stderr) == (0, ""), result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def compiled(*more: str) -> None:
    save(Path("net.pt"))
    result = run("compile", "net.pt", "--input", INPUT, *more, "-o", "small", "-q")
    assert result.exit_code == 0, result.stderr


def test_train_keeps_masks_and_files() -> None:
    compiled("--sparsity", "0.6")
    before = load_file("small/model.safetensors")
    told = answered("train", "small", *SHORT)
    assert told["folder"] == "small-trained"
    assert told["training"]["pictures"] == {"trained": 1617, "validated": 180}
    assert told["training"]["settings"]["weight_decay"] == 1e-4
    assert [line["epoch"] for line in told["history"]] == [1, 2]
    assert told["resumed_at"] is None
    names = {path.name for path in Path("small-trained").iterdir()}
    assert names == {path.name for path in Path("small").iterdir()} | {"history.json", "learning.png"}
    checks = {one.name: one for one in verify("small-trained") if one.name != "onnx"}
    assert all(one.ok for one in checks.values()), checks
    after = load_file("small-trained/model.safetensors")
    masks = [name for name in after if name.endswith("_mask")]
    assert masks and all(torch.equal(after[name], before[name]) for name in masks)
    assert all(not after[name.removesuffix("_mask")][after[name] == 0].any() for name in masks)
    assert any(not torch.equal(after[name], before[name]) for name in after)
    report = json.loads(Path("small-trained/report.json").read_text())
    assert report["asked"]["sparsity"] == 0.6 and report["files"]["model.safetensors"] > 0
    assert json.loads(Path("small-trained/history.json").read_text())["epochs"] == told["history"]


def test_a_trained_folder_is_trained_on() -> None:
    compiled("--keep-rate", "0.5")
    answered("train", "small", *SHORT, "-o", "once")
    told = answered("train", "once", *SHORT, "--seed", "3", "-o", "twice")
    first = json.loads(Path("once/history.json").read_text())["epochs"][0]["loss"]
    assert told["history"][0]["loss"] < first
    report = json.loads(Path("twice/report.json").read_text())
    assert report["training"]["last_epoch"] == told["history"][-1] != told["training"]
    assert report["training"]["settings"]["seed"] == 3 and "train" in report["seconds"]
    assert report["seconds"] != json.loads(Path("once/report.json").read_text())["seconds"]


def test_what_train_prints() -> None:
    compiled("--keep-rate", "0.5")
    result = run("train", "small", *SHORT, "-o", "out")
    assert result.stderr == ""
    for words in ("epoch 2/2: loss", "1,617 to train on, 180 to validate with", "out/"):
        assert words in result.stdout
    assert run("train", "small", *SHORT, "-o", "other", "-q").stdout == ""


def test_learn_writes_what_compile_writes_and_its_history() -> None:
    save(Path("net.pt"))
    told = answered(*LEARN, "--keep-rate", "0.4", "-o", "out")
    assert {path.name for path in Path("out").iterdir()} == {
        *("model.onnx", "model.py", "model.safetensors", "recipe.json", "report.json", "report.html"),
        *("history.json", "learning.png"),
    }
    assert told["proof_error"] <= 1e-9
    groups = told["training"]["groups"]
    assert sum(one["width"] for one in groups) == round(0.4 * sum(one["limit"] for one in groups))
    assert [line["phase"] for line in told["history"]] == ["structure", "weights"]
    assert sum(told["history"][0]["widths"]) == pytest.approx(0.4 * 20)
    assert told["training"]["learning"]["scope"] == "paper"
    small = load("out")
    assert [one.out_channels for one in small.modules() if isinstance(one, nn.Conv2d)] == [
        one["width"] for one in groups
    ]
    assert all(one.ok for one in verify("out") if one.name != "onnx")
    shown = run(*LEARN, "-o", "shown")
    for words in ("shrunk", "proof", "the widths still moved", "epoch 2/2"):
        assert words in shown.stdout


def test_a_run_is_taken_up_again_and_options_may_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    save(Path("net.pt"))
    answered(*LEARN, "-o", "whole")
    with monkeypatch.context() as patched:
        written = Checkpoints.write

        def write(self: Checkpoints, state: Any, name: str = CHECKPOINT) -> None:
            written(self, state, name)
            if name == CHECKPOINT and state["training"]["step"] == 3 and state["phase"] == "weights":
                raise KeyboardInterrupt

        patched.setattr(Checkpoints, "write", write)
        ended = run(*LEARN, "-o", "broken", "--checkpoint-steps", "1")
        assert ended.exit_code == 130 and "the same command goes on from there" in ended.stderr
    assert {path.name for path in Path("broken").iterdir()} == {"checkpoint.pt", "structure.pt"}
    shutil.copytree("broken", "again")
    refused(run(*LEARN, "-o", "broken", "--lr", "0.2"), "made with --lr 0.1, not 0.2", "--no-resume starts anew")
    refused(run(*LEARN, "-o", "broken", "--keep-rate", "0.4"), "made with --keep-rate 0.5, not 0.4")
    torch.save(network(6), "net.pt")
    refused(run(*LEARN, "-o", "broken"), "made with another network")
    save(Path("net.pt"))
    told = answered(*LEARN, "-o", "broken")
    assert told["resumed_at"] == 7 + 3
    for name in ("model.safetensors", "recipe.json", "model.py", "history.json", "learning.png"):
        assert (Path("broken") / name).read_bytes() == (Path("whole") / name).read_bytes()
    assert answered(*LEARN, "-o", "again", "--no-resume", "--lr", "0.2")["resumed_at"] is None


def test_finished_folders_are_not_written_over() -> None:
    compiled("--keep-rate", "0.5")
    refused(run("train", "small", *SHORT, "-o", "small"), "small exists already")
    Path("mine").mkdir()
    Path("mine/notes.txt").touch()
    refused(run("train", "small", *SHORT, "-o", "mine", "--force"), "mine is not replaced, because it holds notes.txt")
    answered("train", "small", *SHORT, "-o", "out")
    refused(run("train", "small", *SHORT, "-o", "out"), "out exists already")
    assert answered("train", "small", *SHORT, "-o", "out", "--force")["folder"] == "out"


def test_a_trained_network_for_other_classes() -> None:
    """From the cloud to the edge: weights of the full network, data of a customer with fewer classes."""
    torch.save(network().state_dict(), "weights.pt")
    Path("made.py").write_text("from digit_networks import network\n")
    draw = np.random.default_rng(0)
    np.savez("data.npz", x=draw.random((40, 1, 8, 8), dtype=np.float32), y=np.arange(40) % 4)
    line = ("learn", "made.py:network", "--weights", "weights.pt", "--data", "data.npz", "--input", INPUT)
    refused(run(*line), "the labels in data.npz speak of 4 classes", "give --classes 10 to keep", "--classes 4 for")
    told = answered(*line, "--classes", "4", "--epochs", "2", "--batch", "16", "--lr", "0.001", "-o", "out")
    assert any("10, which tells 10 classes apart, was replaced by one for 4" in note for note in told["notes"])
    assert load("out")(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    given, learned = network().state_dict()["0.weight"], load_file("out/model.safetensors")["0.weight"]
    kept = json.loads(Path("out/recipe.json").read_text())["kept"]["0.weight"]["0"]
    assert torch.allclose(given[kept], learned, atol=0.05), "surviving filters are those of the trained network"


def test_options_from_a_file() -> None:
    save(Path("net.pt"))
    Path("learn.yaml").write_text(
        "model: net.pt\ndata: digits\ninput: 2x1x8x8\nepochs: 1\nlr: 0.05\ndrop: [0.5]\nno_resume: true\n"
    )
    told = answered("learn", "--config", "learn.yaml", "--batch", "512")
    asked = told["training"]["settings"]
    assert (asked["epochs"], asked["rate"], asked["drops"], asked["batch"]) == (1, 0.05, [0.5], 512)


def test_picture_folders(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    for kind in ("cats", "dogs"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for number in range(6):
            pixels = draw.integers(0, 255, (10, 9, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / "pictures" / kind / f"{number}.png")
    save(Path("net.pt"))
    told = answered(
        "learn", "net.pt", "--data", "pictures", "--validation", "pictures", "--input", INPUT, "--epochs", "1"
    )
    assert told["folder"] == "net-learned"
    assert told["training"]["pictures"] == {"trained": 12, "validated": 12}
    line = ("learn", "net.pt", "--data", "pictures", "--input", INPUT, "--epochs", "1", "-o", "out")
    (tmp_path / "other" / "mice").mkdir(parents=True)
    image.fromarray(pixels).save(tmp_path / "other" / "mice" / "1.png")
    refused(run(*line, "--validation", "other"), "other has other classes than pictures")
    (tmp_path / "pictures" / "cats" / "broken.png").write_bytes(b"no picture")
    for workers in ("0", "1"):
        refused(run(*line, "--held-out", "0", "--workers", workers), "broken.png is not a picture that can be read")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ((*LEARN, "--epochs", "3", "--structure-epochs", "4"), "at most --epochs (3)"),
        ((*LEARN, "--lr", "0"), "--lr is above 0"),
        ((*LEARN, "--optimizer", "adamw", "--momentum", "0.5"), "--momentum has no effect with --optimizer adamw"),
        ((*LEARN, "--validation", "digits", "--held-out", "0.2"), "--held-out has no effect with --validation"),
        ((*LEARN, "--workers", "2"), "--workers has no effect on such data"),
        ((*LEARN, "--device", "nowhere"), "--device nowhere cannot be used here"),
        ((*LEARN, "--device", "meta"), "--device meta cannot be used here"),
        (("learn", "net.pt", "--input", INPUT, "--data", "nowhere"), "--data nowhere: give a folder"),
        (("learn", "net.pt", "--weights", "w.pt", "--arch", "zoo:vgg11", "--data", "digits"), "leave --arch out"),
        (("learn", "zoo:resnet8", "--weights", "net.pt", "--data", "digits"), "net.pt holds a whole network, and zoo:"),
        ((*LEARN, "--seed", "-1"), "seed"),
        (("train", "small", *SHORT, "--seed", "-1"), "--seed lies between 0 and 2**32 - 1"),
        (("learn", "net.pt", "--input", INPUT, "--data", "digits", "--classes", "4"), "labels from 0 to 9"),
        ((*LEARN, "--only", "none"), "no prunable layer matches 'none'"),
        (("train", "nowhere", *SHORT), "nowhere does not exist"),
        (("train", "small", "--data", "nowhere"), "nowhere does not exist"),
    ],
)
def test_what_cannot_be_done_is_told_in_one_line(line: tuple[str, ...], words: str) -> None:
    save(Path("net.pt"))
    if words.startswith("nowhere") and line[1] == "small":
        compiled("--keep-rate", "0.5")
        words = "--data nowhere: give a folder"
    refused(run(*line), words)
    assert not list(Path().glob("*-learned")) + list(Path().glob("*-trained")), "nothing is left"


def test_damaged_folders_are_refused() -> None:
    compiled("--keep-rate", "0.5")
    Path("small/report.json").write_text("{")
    refused(run("train", "small", *SHORT), "report.json is damaged or no JSON")
    for text in ("[]", '{"asked": {}}'):
        Path("small/report.json").write_text(text)
        refused(run("train", "small", *SHORT), "is not a report that fxprune wrote")
    with Path("small/model.py").open("a") as source:
        source.write("print('mine')\n")
    refused(run("train", "small", *SHORT), "model.py is damaged or was changed")
