"""A picture of which layers share channels: a line for each layer, from input to output, and a rail for each group.

A full dot stands where a layer makes channels of the group, an open one where it reads them. Rails run from the first
to the last layer that they touch, and share a track when they do not overlap, as on the map of a railway. Needs
matplotlib, the extra `report`. The same network gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxprune.channels.graph import coupling_graph
from fxprune.channels.groups import ChannelGroup
from fxprune.explanation import Explanation
from fxprune.pictures import quiet_matplotlib, save_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which people with any kind of colour vision tell apart; grey is for what stays.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#56b4e9", "#cc79a7")
GREY = "#9a9a9a"
_ROW, _TRACK = 0.19, 0.36  # inches


@dataclass(frozen=True)
class Rail:
    """One group: rows at which a layer makes its channels, and rows at which one reads them."""

    group: ChannelGroup
    makes: tuple[int, ...]
    reads: tuple[int, ...]

    @property
    def ends(self) -> tuple[int, int]:
        rows = (*self.makes, *self.reads)
        return min(rows), max(rows)


def write_picture(found: Explanation, title: str, path: Path) -> None:
    """Write the picture to a path that `check_picture` has found good. Raises OSError."""
    import matplotlib

    with (
        quiet_matplotlib(),
        matplotlib.rc_context({"svg.hashsalt": "fxprune", "svg.fonttype": "none", "font.family": "DejaVu Sans"}),
    ):
        save_picture(picture(found, title), path)


def layout(found: Explanation) -> tuple[list[str], list[Rail], dict[int, int]]:
    """(layers in the order of the graph, rails in the order of their first layer, group index -> track)."""
    rows = {weight: row for row, weight in enumerate(_weights(found))}
    rails = [rail for group in found.groups if (rail := _rail(found, group, rows)) is not None]
    rails.sort(key=lambda rail: (*rail.ends, rail.group.index))
    return list(rows), rails, tracks(rails)


def tracks(rails: list[Rail]) -> dict[int, int]:
    """The first track that is free, for one rail after the other, with a row between two on the same track."""
    ends: list[int] = []
    found = {}
    for rail in rails:
        first, last = rail.ends
        track = next((number for number, end in enumerate(ends) if end + 1 < first), len(ends))
        ends[track : track + 1] = [last]
        found[rail.group.index] = track
    return found


def picture(found: Explanation, title: str) -> Figure:
    """The whole figure: names to the left, rails beside them, group numbers and widths at the heads of the rails."""
    from matplotlib.figure import Figure

    weights, rails, track = layout(found)
    names = [weight.removesuffix(".weight") for weight in weights]
    margin = 0.4 + 0.075 * max(map(len, names), default=0)
    wide, high = margin + _TRACK * (max(track.values(), default=0) + 2), _ROW * (len(names) + 3) + 0.8
    figure = Figure(figsize=(max(wide, 5.6), high))
    axes = figure.add_axes((margin / max(wide, 5.6), 0.75 / high, 1 - margin / max(wide, 5.6), 1 - 1.2 / high))
    axes.set_xlim(-0.5, (max(wide, 5.6) - margin) / _TRACK - 0.5)
    axes.set_ylim(len(names) - 0.4, -1.4)
    axes.axis("off")
    _rows(axes, names, rails, track)
    colours = {rail.group.index: _colour(rail, number) for number, rail in enumerate(rails)}
    for rail in rails:
        _draw(axes, rail, track[rail.group.index], colours[rail.group.index])
    figure.text(0.1 / max(wide, 5.6), 1 - 0.12 / high, title, size=10, va="top", weight="bold")
    figure.text(0.1 / max(wide, 5.6), 0.08 / high, _LEGEND, size=7, va="bottom", linespacing=1.4)
    return figure


_LEGEND = (
    "full dot: makes these channels; open dot: reads them; above a rail: group, and its width below\n"
    "grey: cannot be removed; dashed: removing one changes the others (a statistic over channels)\n"
    "cut one channel of a rail, and every layer on it loses one"
)


def _weights(found: Explanation) -> list[str]:
    """Weights of convolutions and linear layers in the order in which the graph calls them."""
    graph = coupling_graph(found.couplings)
    return [name for name in dict.fromkeys(one.weight for one in found.couplings.analysis.producers) if name in graph]


def _rail(found: Explanation, group: ChannelGroup, rows: Mapping[str, int]) -> Rail | None:
    outputs = {(one.weight, dim) for one in found.couplings.analysis.producers for dim in _made(found, one.weight)}
    touched = [(member.parameter, member.dim) for member in group.members if member.parameter in rows]
    makes = tuple(sorted({rows[name] for name, dim in touched if (name, dim) in outputs}))
    reads = tuple(sorted({rows[name] for name, dim in touched if (name, dim) not in outputs}))
    if not touched or (not group.prunable and group.width == 1):
        return None  # what nobody makes, and single channels such as a depthwise layer's own
    return Rail(group, makes, reads)


def _made(found: Explanation, weight: str) -> tuple[int, ...]:
    """The dimension of a weight that its outputs are along."""
    module: Any = found.program.module
    for part in weight.split(".")[:-1]:
        module = getattr(module, part, None)
    return (1,) if getattr(module, "transposed", False) else (0,)


def _colour(rail: Rail, number: int) -> str:
    return GREY if not rail.group.prunable else COLOURS[number % len(COLOURS)]


def _rows(axes: Axes, names: list[str], rails: list[Rail], track: Mapping[int, int]) -> None:
    """The layers' names, each with a thin line to its last dot."""
    reach = dict.fromkeys(range(len(names)), -0.5)
    for rail in rails:
        for row in (*rail.makes, *rail.reads):
            reach[row] = max(reach[row], track[rail.group.index])
    for row, name in enumerate(names):
        axes.text(-0.6, row, name, size=7.5, ha="right", va="center", family="DejaVu Sans Mono")
        axes.plot([-0.5, reach[row]], [row, row], color="#d8d8d8", linewidth=0.6, zorder=1)


def _draw(axes: Axes, rail: Rail, place: int, colour: str) -> None:
    first, last = rail.ends
    style = "--" if rail.group.approximate and rail.group.prunable else "-"
    axes.plot([place, place], [first, last], color=colour, linewidth=2.2, linestyle=style, zorder=2)
    for rows, fill in ((rail.makes, colour), (rail.reads, "white")):
        axes.plot([place] * len(rows), rows, "o", markersize=5, markerfacecolor=fill, markeredgecolor=colour, zorder=3)
    text = f"{rail.group.index}\n{rail.group.width}"
    axes.text(place + 0.14, first - 0.2, text, size=6.2, ha="left", va="bottom", color=colour, linespacing=0.9)
