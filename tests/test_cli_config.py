"""--config: options from a YAML file, under the names of the command line, which wins over it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from command_line import refused, run

PLAN = ("--dry-run", "--json")
pytestmark = pytest.mark.usefixtures("workplace")


def asked(text: str, *line: str) -> dict[str, Any]:
    """What `fxprune compile` was asked by a file and the rest of the command line."""
    Path("fxprune.yaml").write_text(text)
    result = run("compile", *line, "--config", "fxprune.yaml", *PLAN)
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    return {**told["asked"], "model": told["model"], "input": told["input"]}


def test_every_kind_of_option() -> None:
    told = asked(
        """
        model: zoo:resnet8
        sparsity: 0.9
        no-proof: true
        policy: all
        seed: 7
        ignore: layer1*
        only: [layer1*, layer2*, fc]
        input:
          - 1x3x16x16
        opset:
        """
    )
    assert (told["model"], told["input"]) == ("zoo:resnet8", {"0": [1, 3, 16, 16]})
    assert (told["sparsity"], told["proof"], told["policy"], told["seed"]) == (0.9, False, "all", 7)
    assert (told["ignore"], told["only"]) == (["layer1*"], ["layer1*", "layer2*", "fc"])


def test_command_line_wins() -> None:
    text = "model: zoo:vgg16\nsparsity: 0.5\nseed: 1\nignore: [layer1*]\ncriterion: random"
    told = asked(text, "zoo:resnet8", "--sparsity", "0.9", "--seed", "2", "--ignore", "layer2*")
    assert (told["model"], told["sparsity"], told["seed"]) == ("zoo:resnet8", 0.9, 2)
    assert (told["ignore"], told["criterion"]) == (["layer2*"], "random")


def test_command_line_may_take_the_other_way() -> None:
    told = asked("sparsity: 0.5\npolicy: all", "zoo:resnet8", "--keep-rate", "0.5")
    assert (told["sparsity"], told["keep_rate"], told["policy"]) == (None, 0.5, "reconvene")


def test_methods_data_and_targets() -> None:
    told = asked("model: zoo:resnet8\nmethod: 3sp\ndata: synthetic\ndata_batch: 4\ntarget-macs: 50%")
    assert (told["method"], told["select"], told["target_macs"]) == ("3sp", "gate", 0.5)
    assert told["data"] == "synthetic, 4 batches of 4 at most"
    assert asked("target_params: 50000", "zoo:resnet8")["target_params"] == 50000
    assert asked("target_size: 0.5\npolicy: all", "zoo:resnet8")["target_size"] == 0.5
    again = asked("target_params: 0.5", "zoo:resnet8", "--sparsity", "0.9")
    assert again["sparsity"] == 0.9 and "target_params" not in again
    refused(run("compile", "zoo:resnet8", "--config", "fxprune.yaml", "--target-macs", "1e"), "'1e' is no amount")


def test_what_belongs_to_the_other_way_is_refused_within_the_file_and_on_the_command_line() -> None:
    Path("fxprune.yaml").write_text("keep_rate: 0.5\npolicy: all")
    refused(run("compile", "zoo:resnet8", "--config", "fxprune.yaml"), "--policy has no effect with --keep-rate")
    Path("fxprune.yaml").write_text("keep_rate: 0.5")
    line = ("compile", "zoo:resnet8", "--config", "fxprune.yaml", "--policy", "all")
    refused(run(*line), "--policy has no effect with --keep-rate")


def test_flags_and_output(workplace: Path, quick_onnx: None) -> None:
    Path("fxprune.yaml").write_text("model: zoo:resnet8\nsparsity: 0.9\noutput: there\nforce: true\nquiet: true")
    for _ in range(2):
        result = run("compile", "--config", "fxprune.yaml")
        assert (result.exit_code, result.output) == (0, "")
    assert (workplace / "there" / "report.json").exists()


WRONG = [
    ("spasity: 0.9", ("there is no option 'spasity'", "did you mean sparsity?")),
    ("zzz: 1", ("there is no option 'zzz'", "model, sparsity, keep_rate")),
    ("config: other.yaml", ("no option 'config'",)),
    ("context: 1", ("no option 'context'",)),
    ("help: true", ("no option 'help'",)),
    ("as_json: true", ("no option 'as_json'",)),
    ("keep-rate: 0.5\nkeep_rate: 0.5", ("keep_rate is given twice",)),
    ("sparsity: much", ("sparsity should be a valid number", "'much'")),
    ('sparsity: "0.9"', ("sparsity should be a valid number", "'0.9'")),
    ("sparsity: true", ("sparsity should be a valid number", "True")),
    ("sparsity: .nan", ("not nan",)),
    ("seed: 1.5", ("seed should be a valid integer",)),
    ("force: 1", ("force should be a valid boolean",)),
    ("policy: some", ("policy should be 'reconvene'", "'some'")),
    ("only: [1]", ("only should be a valid string",)),
    ("only: {a: b}", ("only should be a valid string",)),
    ("output: [a]", ("output should be a valid string",)),
    ("json: 3", ("json should be a valid boolean",)),
    ("1: 2", ("no option '1'",)),
    ("sparsity: 0.9\nseed: [1", ("line 2: expected",)),
    ("\tseed: 1", ("line 1: found character",)),
    ('seed: !!python/object/apply:os.mkdir ["run"]', ("line 1: could not determine a constructor",)),
    ("- a\n- b", ("holds no options", "name: value")),
    ("just text", ("holds no options",)),
    ("\x00", ("cannot be read as YAML",)),
    ("[" * 5000, ("cannot be read as YAML",)),
]


@pytest.mark.parametrize(("text", "words"), WRONG)
def test_what_is_wrong_in_a_file_is_one_line_that_names_it(text: str, words: tuple[str, ...], workplace: Path) -> None:
    Path("fxprune.yaml").write_text(text)
    named = () if ".nan" in text else ("fxprune.yaml",)
    refused(run("compile", "zoo:resnet8", "--config", "fxprune.yaml"), *named, *words)
    assert [one.name for one in workplace.iterdir()] == ["fxprune.yaml"]


def test_files_that_are_none(workplace: Path) -> None:
    Path("binary").write_bytes(b"\xff\xfe\xff")
    refused(run("compile", "--config", "missing.yaml"), "missing.yaml: No such file or directory")
    refused(run("compile", "--config", "."), ".: Is a directory")
    refused(run("compile", "--config", "binary"), "binary is not a text file")


def test_an_empty_file_sets_nothing() -> None:
    assert asked("", "zoo:resnet8", "--sparsity", "0.9")["sparsity"] == 0.9
    refused(run("compile", "--config", "fxprune.yaml", "--sparsity", "0.9"), "missing argument 'MODEL'")
