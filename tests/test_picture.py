"""tools/picture_widths.py: the picture of widths before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")
from picture_widths import AFTER, BEFORE, picture, save


def report(*widths: tuple[int, int, str]) -> dict[str, Any]:
    layers = [
        {"weight": f"conv{n}.weight", "before": before, "after": after, "decision": decision}
        for n, (before, after, decision) in enumerate(widths)
    ]
    cost = {"parameters": 3_000_000, "nonzeros": 100_000}
    return {
        "model": "net.pt",
        "asked": {"sparsity": 0.9, "keep_rate": None},
        "before": cost,
        "after": {**cost, "parameters": 250_000},
        "layers": layers,
    }


def test_every_layer_has_its_two_bars() -> None:
    from matplotlib.colors import to_hex

    axes = picture(report((64, 64, "masked"), (128, 3, "shrunk"), (10, 10, "dense"))).axes[0]
    found = {
        (round(one.get_x() + one.get_width() / 2, 1), int(one.get_height()), to_hex(one.get_facecolor()))
        for one in axes.patches
    }
    assert {(-0.2, 64, BEFORE), (0.8, 128, BEFORE), (1.8, 10, BEFORE)} <= found
    assert {(0.2, 64, AFTER["masked"][0]), (1.2, 3, AFTER["shrunk"][0]), (2.2, 10, AFTER["dense"][0])} <= found
    assert len(found) == 6
    assert sorted(text.get_text() for text in axes.texts) == ["10", "10", "128", "3", "64", "64"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["conv0", "conv1", "conv2"]
    assert len(axes.get_legend().get_texts()) == 4
    assert axes.get_title("left") == (
        "net.pt, sparsity 0.9: parameters from 3.00 M to 0.25 M, of which 0.10 M are not zero"
    )


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        save(report((64, 64, "masked"), (128, 3, "shrunk")), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
