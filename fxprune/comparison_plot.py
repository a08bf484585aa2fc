"""A picture of a comparison: what each method makes of each sparsity. Needs the extra `report`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from fxprune.comparison import Comparison, Row
from fxprune.pictures import quiet_matplotlib, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people with any kind of colour vision tell apart; markers tell the rest.
_COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#000000", "#8c8c8c")
_MARKERS = "osD^vP*XhX<>"
Value = Callable[[Row], float | None]


def write_plot(found: Comparison, title: str, path: Path) -> None:
    """Draw to a path that `check_picture` has found good; the same comparison and matplotlib give the same bytes."""
    import matplotlib

    with (
        quiet_matplotlib(),
        matplotlib.rc_context({"font.size": 9, "font.family": "DejaVu Sans", "svg.hashsalt": "fxprune"}),
    ):
        save_picture(figure(found, title), path)


def figure(found: Comparison, title: str) -> Figure:
    """A panel each for bytes, MACs and, where it was measured, latency: dense over small, higher is better."""
    from matplotlib.figure import Figure

    panels = _panels(found)
    drawn = Figure(figsize=(3.4 * len(panels) + 1.2, 3.4), layout="constrained")
    for axes, (label, value) in zip(drawn.subplots(1, len(panels)), panels.items(), strict=True):
        _panel(axes, found, label, value)
    handles, labels = drawn.axes[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside right center", frameon=False)
    drawn.suptitle(title, x=0.01, ha="left", size=10)
    return drawn


def _panels(found: Comparison) -> dict[str, Value]:
    dense, measured = found.dense, found.measured
    if dense is None:
        return {"smaller by (bytes)": lambda row: None, "fewer MACs by": lambda row: None}
    panels: dict[str, Value] = {
        "smaller by (bytes)": lambda row: dense.bytes / row.cost.bytes if row.cost else None,
        "fewer MACs by": lambda row: dense.macs / row.cost.macs if row.cost and row.cost.macs else None,
    }
    if measured is not None:
        faster = measured.faster
        panels["faster by (onnxruntime)"] = lambda row: faster[row.name].median if row.name in faster else None
    return panels


def _panel(axes: Axes, found: Comparison, label: str, value: Value) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    sparsities = list(dict.fromkeys(row.sparsity for row in found.rows))
    for number, method in enumerate(dict.fromkeys(row.method for row in found.rows)):
        known = [(sparsities.index(row.sparsity), value(row)) for row in found.rows if row.method == method]
        points = [(place, one) for place, one in known if one is not None]
        colour, marker = _COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)]
        axes.plot(*zip(*points, strict=True) if points else ([], []), color=colour, marker=marker, ms=5, label=method)
    axes.axhline(1, color="#c8c8c8", lw=1, zorder=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda one, _: f"{one:g}x"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(range(len(sparsities)), [f"{one:g}" for one in sparsities])
    axes.set_xlabel("sparsity")
    axes.set_title(label, loc="left", size=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.15)
