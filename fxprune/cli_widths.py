"""The table of widths: a row for each layer, or, in a deep network, for each part of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxprune.cli_layout import facts, module_of, plain_table
from fxprune.wording import share_text

if TYPE_CHECKING:
    from fxprune.report import LayerLine, Report

Legend = list[tuple[str, str]]
MOST_ROWS = 40  # about what fits on a screen
_DECISIONS = {
    "shrunk": "channels removed, what remains is dense",
    "masked": "all channels stay, single weights are zero",
    "dense": "all channels stay, and all weights of theirs",
    "follows": "depthwise, as wide as what it reads",
}


def widths(report: Report, every: bool) -> RenderableType:
    """All layers if there are few or `every` is set, else the parts that the names of the layers form."""
    layers = report.layers
    parts = {} if every else folded(layers)
    fold = any(len(part) > 1 for part in parts.values())
    table, legend = _parts_table(parts) if fold else _layers_table(layers, report.average_sparsity)
    met = {layer.decision for layer in layers}
    meanings = [(name, meaning) for name, meaning in _DECISIONS.items() if name in met]
    title = (
        "\nWidths (output channels, added up over the layers of each part)" if fold else "\nWidths (output channels)"
    )
    return Group(Text(title, style="bold"), table, Text(""), facts([*meanings, *legend]), Text(""))


def folded(layers: Sequence[LayerLine], most: int = MOST_ROWS) -> dict[str, list[LayerLine]]:
    """Layers by the longest part of their names that leaves at most so many parts, in the order of the network."""
    deepest = max((layer.weight.count(".") for layer in layers), default=0)
    for depth in range(deepest + 1, -1, -1):
        parts: dict[str, list[LayerLine]] = {}
        for layer in layers:
            names = module_of(layer.weight).split(".")
            parts.setdefault(".".join(names[:depth]), []).append(layer)
        if len(parts) <= most:
            break
    return {module_of(one[0].weight) if len(one) == 1 else f"{name}.*".lstrip("."): one for name, one in parts.items()}


def _parts_table(parts: dict[str, list[LayerLine]]) -> tuple[Table, Legend]:
    table = plain_table("part", "layers", "before", "after", "decisions", right=("layers", "before", "after"))
    for name, layers in parts.items():
        counts = Counter(layer.decision for layer in layers)
        decisions = ", ".join(f"{counts[one]} {one}" for one in _DECISIONS if one in counts)
        decisions = decisions if len(layers) > 1 else layers[0].decision
        before, after = sum(layer.before for layer in layers), sum(layer.after for layer in layers)
        table.add_row(Text(name), f"{len(layers)}", f"{before:,}", _after(before, after), decisions)
    return table, [("--widths", "lists each layer")]


def _layers_table(layers: Sequence[LayerLine], average: float | None) -> tuple[Table, Legend]:
    ranked = average is not None
    names = ["layer", "before", "after", *["S_l"] * ranked, "decision"]
    table = plain_table(*names, right=("before", "after", "S_l"))
    for layer in layers:
        share = [share_text(layer.sparsity)] * ranked
        after = _after(layer.before, layer.after)
        table.add_row(Text(module_of(layer.weight)), f"{layer.before:,}", after, *share, layer.decision)
    meaning = "sparsity of the layer in the ranking of all weights, before channels were removed"
    return table, [("S_l", f"{meaning}; {share_text(average)} on average")] * ranked


def _after(before: int, after: int) -> Text:
    return Text(f"{after:,}", style="bold" if after < before else "")
