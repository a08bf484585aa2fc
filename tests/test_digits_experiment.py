"""The table of docs/structure-learning.md is what tools/digits_experiment.py measured, and its controls are fair."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import digits_experiment as tool
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "structure-learning.md"


@pytest.fixture
def found() -> dict[str, Any]:
    measured: dict[str, Any] = json.loads(PAGE.with_suffix(".json").read_text("utf-8"))
    return measured


def test_the_page_shows_what_was_measured(found: dict[str, Any], tmp_path: Path) -> None:
    page = PAGE.read_text("utf-8")
    assert tool.written(found) in page
    copied = tmp_path / PAGE.name
    copied.write_text(page, "utf-8")
    tool.put(copied, tool.written(found))
    assert copied.read_text("utf-8") == page
    other = copy.deepcopy(found)
    other["even"]["runs"][0]["learned"][0]["accuracy"] -= 0.1
    assert tool.written(other) not in page


def unfair(found: dict[str, Any], slack: float) -> list[str]:
    """What speaks against a comparison of one network."""
    problems = []
    for run in found["runs"]:
        [learned] = run["learned"]
        others = [*run["uniform"], *run["random"], *run["fresh"]]
        if any(one["steps"] != learned["steps"] for one in others):
            problems.append("unequal steps")
        if any(not learned["macs"] <= one["macs"] <= learned["macs"] * (1 + slack) for one in others):
            problems.append("unequal MACs")
        if len(run["random"]) < 5:
            problems.append("too few random networks")
    return problems


def test_the_comparison_is_fair(found: dict[str, Any]) -> None:
    for network in found.values():
        assert len({run["seed"] for run in network["runs"]}) >= 5
        assert unfair(network, tool.SLACK) == []
    even = found["even"]
    even["runs"][0]["uniform"][0]["macs"] //= 2
    even["runs"][1]["random"].pop()
    assert unfair(even, tool.SLACK) == ["unequal MACs", "too few random networks"]


def test_verdicts_say_who_is_ahead() -> None:
    def run(seed: int, learned: float, uniform: float, drawn: float) -> dict[str, Any]:
        kinds = {"learned": learned, "fresh": learned, "uniform": uniform, "random": drawn}
        return {"keep_rate": 0.5, "seed": seed, **{kind: [{"accuracy": one}] for kind, one in kinds.items()}}

    told = tool.verdict({"runs": [run(0, 0.9, 0.8, 0.95), run(1, 0.7, 0.7, 0.9)]})
    assert told == (
        "* At keep rate 0.5 learned widths beat one fraction for all layers (+5.00 points, ahead in 1 of 2 seeds) and "
        "do not beat random widths (-12.50 points, ahead in 0 of 2 seeds)."
    )


def test_controls_have_the_macs_of_the_learned_network() -> None:
    draw = random.Random(1)
    for plan in tool.PLANS.values():
        for least in (15_000, 35_000, 50_000, 120_000):
            drawn = plan.at_random(least, draw)
            for widths in (plan.uniform(least), *(next(drawn) for _ in range(5))):
                assert least <= plan.macs(widths) <= least * (1 + tool.SLACK)
                assert all(1 <= one <= limit for one, limit in zip(widths, plan.widths, strict=True))
        assert plan.network((3, 4, 5, 6))(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
