"""The table of widths: a row for each layer, or for each part of a deep network; and the dry run that shows it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_line import run
from rich.console import Console

import fxprune
from fxprune import zoo
from fxprune.cli_widths import MOST_ROWS, folded, widths
from fxprune.pipeline import dry_run
from fxprune.report import LayerLine


def lines(names: list[str], decision: str = "shrunk") -> list[LayerLine]:
    return [LayerLine(f"{name}.weight", 10, 4, 0.9, decision) for name in names]


def text(layers: list[LayerLine], every: bool = False) -> str:
    report = dry_run(zoo.build("resnet8"), torch.zeros(2, 3, 8, 8), sparsity=0.9)
    console = Console(width=80, highlight=False)
    with console.capture() as captured:
        console.print(widths(replace(report, layers=tuple(layers)), every))
    return captured.get()


def blocks(stages: int, blocks: int) -> list[str]:
    inside = [f"layer{s}.{b}.conv{c}" for s in range(stages) for b in range(blocks) for c in (1, 2)]
    return ["stem", *inside, "head"]


def test_few_layers_have_a_row_each() -> None:
    names = blocks(2, 2)
    assert list(folded(lines(names))) == names
    assert text(lines(names)).count(" 10       4   0.9000   shrunk") == len(names)
    assert "--widths" not in text(lines(names))


@pytest.mark.parametrize(
    ("stages", "inside", "rows"),
    [
        (2, 19, ["stem", *[f"layer{s}.{b}.*" for s in (0, 1) for b in range(19)], "head"]),
        (2, 20, ["stem", "layer0.*", "layer1.*", "head"]),
        (39, 1, ["*"]),
    ],
)
def test_many_layers_are_put_together_by_their_names(stages: int, inside: int, rows: list[str]) -> None:
    layers = lines(blocks(stages, inside))
    assert list(folded(layers)) == rows and len(rows) <= MOST_ROWS
    assert [one for part in folded(layers).values() for one in part] == layers


def test_a_row_of_many_layers_adds_up() -> None:
    names = blocks(2, 20)
    layers = [*lines(names[:1]), *lines(names[1:11], "masked"), *lines(names[11:])]
    assert "layer0.*       40      400     160   30 shrunk, 10 masked" in text(layers)
    assert "stem            1       10       4   shrunk" in text(layers)
    assert text(layers, every=True).count("  0.9000  ") == len(layers)
    assert "layer0.*" not in text(layers, every=True)


def test_no_layers_are_no_table_rows() -> None:
    assert folded([]) == {}


# --- the dry run that shows them --------------------------------------------------------------------------------------


def test_dry_run_is_what_compile_decides() -> None:
    model, example = zoo.build("resnet20"), torch.zeros(2, 3, 32, 32)
    done = fxprune.compile(model, example, sparsity=0.98, seed=2).report
    seen: list[str] = []
    dry = dry_run(model, example, sparsity=0.98, seed=2, observers=[lambda name, *_: seen.append(name)])
    assert "shrink" in seen and "reinit" not in seen
    assert (dry.before, dry.after, dry.layers, dry.groups) == (done.before, done.after, done.layers, done.groups)
    assert (dry.asked, dry.achieved_sparsity, dry.repaired_rows) == (
        done.asked,
        done.achieved_sparsity,
        done.repaired_rows,
    )
    assert dry.after.parameters < dry.before.parameters
    assert dry.proof_error is None and "proof" not in dry.seconds


def test_dry_run_writes_nothing(workplace: Path) -> None:
    (workplace / "taken").mkdir()
    result = run("compile", "zoo:resnet20", "--sparsity", "0.98", "--dry-run", "-o", "taken")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "dry run   nothing was written" in result.stdout and "layer3.2.conv2" in result.stdout
    assert [one.name for one in workplace.iterdir()] == ["taken"] and list((workplace / "taken").iterdir()) == []


def test_dry_run_as_json(workplace: Path) -> None:
    result = run("compile", "zoo:resnet20", "--sparsity", "0.98", "--dry-run", "--json")
    told = json.loads(result.stdout)
    report = dry_run(zoo.build("resnet20"), torch.zeros(2, 3, 32, 32), sparsity=0.98)
    assert told["dry_run"] and told["model"] == "zoo:resnet20" and told["input"] == {"0": [2, 3, 32, 32]}
    assert told["after"] == report.after.to_dict()
    assert {"load", "capture", "shrink"} <= set(told["seconds"])
    assert list(workplace.iterdir()) == []
