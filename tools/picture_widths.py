"""Draw the widths of a compiled network, before and after, from its report.json.

    fxprune compile zoo:vgg16 --sparsity 0.98 -o build/vgg16
    python tools/picture_widths.py build/vgg16/report.json docs/widths.png

Needs the extra `report`. The same report and matplotlib give the same bytes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Grey, blue and orange of Okabe and Ito's palette, which people with any kind of colour vision tell apart.
BEFORE = "#c8c8c8"
AFTER = {
    "shrunk": ("#0072b2", "after, shrunk: fewer channels, dense"),
    "masked": ("#e69f00", "after, masked: all channels, single weights zero"),
    "dense": ("#555555", "after, dense: as before"),
    "follows": ("#56b4e9", "after, depthwise: as wide as what it reads"),
}


def picture(report: dict[str, Any]) -> Figure:
    """A pair of bars for each layer, the numbers of channels above them."""
    layers = report["layers"]
    with matplotlib.rc_context({"font.size": 9, "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(max(6.0, 0.64 * len(layers)), 3.4), dpi=110, layout="constrained")
        axes = figure.subplots()
        bars(axes, [(number - 0.2, layer["before"]) for number, layer in enumerate(layers)], BEFORE, "before")
        for decision, (colour, meaning) in AFTER.items():
            found = [(number + 0.2, one["after"]) for number, one in enumerate(layers) if one["decision"] == decision]
            bars(axes, found, colour, meaning)
        names = [layer["weight"].removesuffix(".weight") for layer in layers]
        axes.set_xticks(range(len(layers)), names, rotation=35, ha="right")
        axes.set_ylabel("output channels")
        axes.set_title(title(report), loc="left", size=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.margins(x=0.01)
        axes.legend(frameon=False, loc="upper left", fontsize=8)
    return figure


def bars(axes: Axes, sides: list[tuple[float, int]], colour: str, meaning: str) -> None:
    """Bars at these places, each with its number; nothing, not even in the legend, without any."""
    if sides:
        drawn = axes.bar(
            [place for place, _ in sides], [width for _, width in sides], 0.38, color=colour, label=meaning
        )
        axes.bar_label(drawn, fontsize=7, padding=1)


def title(report: dict[str, Any]) -> str:
    """The network, what was asked, and parameters before and after."""
    before, after, asked = report["before"], report["after"], report["asked"]
    how = f"sparsity {asked['sparsity']}" if asked["sparsity"] is not None else f"keep rate {asked['keep_rate']}"
    counts = " to ".join(f"{side['parameters'] / 1e6:.2f} M" for side in (before, after))
    return f"{report['model']}, {how}: parameters from {counts}, of which {after['nonzeros'] / 1e6:.2f} M are not zero"


def save(report: dict[str, Any], path: Path) -> None:
    """As PNG, without the version of matplotlib in it."""
    picture(report).savefig(path, metadata={"Software": None}, pil_kwargs={"optimize": True})


def main() -> None:
    """`picture_widths.py report.json picture.png`."""
    if len(sys.argv) != 3:
        raise SystemExit("usage: python tools/picture_widths.py report.json picture.png")
    save(json.loads(Path(sys.argv[1]).read_text("utf-8")), Path(sys.argv[2]))


if __name__ == "__main__":
    main()
