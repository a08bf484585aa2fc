"""Methods side by side: rows, errors of one of them, measuring in turns, the picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import refused, run
from torch import nn

import fxprune
from fxprune import zoo
from fxprune.capture import load as loading
from fxprune.cli_comparison import folded_widths
from fxprune.comparison import Comparison, Contest, Row, compare
from fxprune.comparison_plot import figure
from fxprune.cost import Cost
from fxprune.errors import ExportError, OptionError
from fxprune.report import LayerLine
from fxprune.runtime import together
from fxprune.runtime.latency import Rounds, in_turns

IMAGE = torch.zeros(2, 3, 32, 32)
pytestmark = pytest.mark.usefixtures("workplace")


def compared(*line: str) -> dict[str, Any]:
    result = run("compare", "zoo:resnet8", *line, "--no-measure", "--no-proof", "--json")
    assert (result.exit_code, result.stderr) == (0, "")
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_rows_are_what_compile_says() -> None:
    line = "--sparsity 0.5 0.9 --methods reconvene,spai,precrop,uniform --seed 3"
    found = compared(*line.split())
    named = [(row["sparsity"], row["method"]) for row in found["rows"]]
    assert named == [(at, name) for at in (0.5, 0.9) for name in ("reconvene", "spai", "precrop", "uniform")]
    alone = fxprune.compile(zoo.build("resnet8"), IMAGE, sparsity=0.9, method="spai", seed=3, proof=False).report
    assert found["rows"][5]["cost"] == alone.after.to_dict()
    assert found["dense"] == alone.before.to_dict()
    for row in found["rows"]:
        assert row["error"] is None
        if row["method"] == "uniform":
            assert 0 < row["keep_rate"] <= 1
            first = next(one for one in found["rows"] if one["sparsity"] == row["sparsity"])["cost"]["parameters"]
            assert 0.8 * first <= row["cost"]["parameters"] <= first
            assert row["target"] == f"{first:,} parameters, those of reconvene"


@pytest.mark.parametrize(("equal", "kind"), [("macs", "macs"), ("params", "parameters")])
def test_a_method_with_a_keep_rate_may_be_cut_to_what_the_first_one_costs(equal: str, kind: str) -> None:
    first, second = compared("--sparsity", "0.9", "--methods", "spai,uniform", "--equal", equal)["rows"]
    assert 0.8 * first["cost"][kind] <= second["cost"][kind] <= first["cost"][kind]
    swapped = compared("--sparsity", "0.9", "--methods", "uniform,spai", "--equal", equal)["rows"]
    assert swapped == [second, first]


@pytest.mark.parametrize("line", ["--methods uniform,spai --equal sparsity", "--methods uniform"])
def test_without_a_measure_the_sparsity_says_how_many_parameters_stay(line: str) -> None:
    found = compared("--sparsity", "0.9", *line.split())
    allowed = 0.1 * found["dense"]["parameters"]
    assert 0.8 * allowed <= found["rows"][0]["cost"]["parameters"] <= allowed
    assert found["rows"][0]["target"] == f"{allowed:,.0f} parameters, 0.1 of the dense network's"


def test_a_measure_that_did_not_work_measures_nothing() -> None:
    rows = compare(small(), torch.zeros(2, 3, 8, 8), Contest(["spai", "l1"], [0.5], options={"only": ["9"]})).rows
    assert rows[1].error == "spai, whose parameters are the measure, did not work"


def test_an_error_loses_no_other_row() -> None:
    line = ("--sparsity", "0.5,0.9999", "--methods", "reconvene,3sp,uniform", "--equal", "sparsity")
    result = run("compare", "zoo:resnet8", *line, "--no-measure", "--no-proof", columns=100)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "3sp 0.5: 3sp looks at gradients and needs labelled data" in " ".join(result.stdout.split())
    assert "uniform 0.9999: the target of 8 parameters cannot be met" in " ".join(result.stdout.split())
    rows = compared(*line, "--data", "synthetic", "--data-batch", "4")["rows"]
    assert [row["error"] is None for row in rows] == [True, True, True, True, False, False]
    assert run("compare", "zoo:resnet8", "--sparsity", "0.9", "--methods", "3sp", "--no-measure").exit_code == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--methods spai", ("missing option '--sparsity'",)),
        ("--sparsity much", ("'much' is no number",)),
        ("--sparsity 0.9,1", ("below 1, not 1.0",)),
        ("--sparsity 0.9 --methods spai,taste", ("unknown method 'taste'",)),
        ("--sparsity 0.9 --methods uniform,l1 --equal macs", ("takes a method with a sparsity for its measure",)),
        ("--sparsity 0.9 --plot picture.gif", ("--plot 'picture.gif'", ".svg, .png")),
        ("--sparsity 0.9 --plot none/picture.svg", ("--plot", "there is no folder none")),
        ("--sparsity 0.9 --data synthetic", ("--data has no effect", "uniform, which look at")),
        ("--sparsity 0.9 --data-batch 8", ("--data-batch has no effect without --data",)),
        ("--sparsity 0.9 --methods upai,spai --equal macs", ("--equal has no effect", "upai, spai, which take")),
        ("--sparsity 0.9 --no-measure --threads 2", ("--threads has no effect with --no-measure",)),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(
    line: str, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "load", lambda *_: pytest.fail("the model was loaded"))
    refused(run("compare", "zoo:resnet8", *line.split()), *words)


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 16, 4)
    )


def test_all_are_measured_in_turns() -> None:
    found = compare(small(), torch.zeros(2, 3, 8, 8), Contest(["spai", "uniform"], [0.5, 0.9]))
    assert found.measured is not None
    assert list(found.measured.latency) == ["dense", "spai 0.5", "uniform 0.5", "spai 0.9", "uniform 0.9"]
    assert found.measured.faster["dense"].median == 1
    assert found.measured.batch == 1
    assert all(one.median > 0 for one in found.measured.latency.values())


def test_one_that_cannot_be_exported_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    real = together.export_onnx

    def failing(module: nn.Module, inputs: Any, path: Path, **settings: Any) -> Any:
        if path.name == failing_file:
            raise ExportError("no")
        return real(module, inputs, path, **settings)

    monkeypatch.setattr(together, "export_onnx", failing)
    failing_file = "1.onnx"
    found = compare(small(), torch.zeros(2, 3, 8, 8), Contest(["spai"], [0.5]))
    assert found.measured is not None and list(found.measured.latency) == ["dense"]
    assert "not measured: no" in found.rows[0].notes
    failing_file = "0.onnx"
    found = compare(small(), torch.zeros(2, 3, 8, 8), Contest(["spai"], [0.5]))
    assert (found.measured, found.notes) == (None, ("nothing was measured: no",))
    assert found.rows[0].error is None


def test_each_turn_runs_every_side_once() -> None:
    order: list[str] = []

    def side(name: str, seconds: float) -> Any:
        def once() -> float:
            order.append(name)
            return seconds

        return once

    sides = [side("a", 0.1), side("b", 0.2), side("c", 0.3)]
    times, warm_up = in_turns(sides, Rounds(warm_up=2, passes=3, lasting=0.0), lambda: 100.0) or ([], 0)
    assert (times, warm_up) == ([(0.1, 0.2, 0.3)] * 3, 2)
    assert order == ["a", "b", "c"] * 5
    assert in_turns([side("d", 30.0)], Rounds(), lambda: 1.0) is None


def test_the_table_and_the_picture(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(small(), "net.pt")
    line = ("compare", "net.pt", "--input", "2x3x8x8", "--sparsity", "0.5", "0.9", "--methods", "spai,3sp,uniform")
    result = run(*line, "--plot", "one.png")
    assert (result.exit_code, result.stderr) == (0, "")
    assert max(map(len, result.stdout.splitlines())) <= 80
    text = " ".join(result.stdout.split())
    for words in ("0.5 spai ", "0.9 uniform ", "1.00x", "dense 16 32 4", "failed 3sp 0.5: 3sp looks at", "in turns"):
        assert words in text
    assert (workplace / "one.png").read_bytes().startswith(b"\x89PNG")
    for name in ("one.svg", "two.svg"):
        assert run(*line, "--no-measure", "--plot", name).exit_code == 0
    assert (workplace / "one.svg").read_bytes() == (workplace / "two.svg").read_bytes()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    refused(run(*line, "--plot", "three.svg"), "--plot needs matplotlib", "fxprune[report]")


def test_panels_hold_what_was_found() -> None:
    dense, half = Cost(100, 100, 1000, 400), Cost(50, 50, 250, 200)
    rows = (Row("spai", 0.5, half), Row("spai", 0.9, error="no"), Row("uniform", 0.5, dense))
    size, macs = figure(Comparison(dense, rows), "net").axes
    assert [line.get_ydata().tolist() for line in size.lines[:2]] == [[2.0], [1.0]]  # type: ignore[union-attr]
    assert macs.lines[0].get_ydata().tolist() == [4.0]  # type: ignore[union-attr]
    assert all(not axes.lines[0].get_xdata().size for axes in figure(Comparison(None, rows[1:2]), "net").axes)  # type: ignore[union-attr]


def test_widths_are_folded() -> None:
    layers = [LayerLine(f"a.{number}.weight", 8, 4 if number < 3 else 8, None, "dense") for number in range(5)]
    assert folded_widths(layers) == "4x3 8x2"
    assert folded_widths(layers, dense=True) == "8x5"
    deep = [LayerLine(f"part{number % 3}.{number}.weight", 9, number, None, "dense") for number in range(40)]
    assert folded_widths(deep) == "part0.* 273  part1.* 247  part2.* 260"


def test_what_is_named_twice_is_compared_once() -> None:
    contest = Contest(["spai", "uniform", "spai"], [0.5, 0.5])
    assert [row.name for row in compare(small(), torch.zeros(2, 3, 8, 8), contest, measure=False).rows] == [
        "spai 0.5",
        "uniform 0.5",
    ]


def test_a_contest_without_methods_is_none() -> None:
    with pytest.raises(OptionError, match="nothing to compare"):
        Contest([], [0.5])
    with pytest.raises(OptionError, match="unknown equal"):
        Contest(["spai"], [0.5], "bytes")
