"""The history of a run as a picture: accuracy and loss over the epochs, and the widths as they were learned."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fxprune.pictures import quiet_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAINED, _VALIDATED, _CUT = "#e69f00", "#0072b2", "#555555"  # Okabe and Ito's
_NAMED = 24  # layers; more names than that cannot be read


def picture(history: Mapping[str, Any]) -> bytes | None:
    """PNG of a history.json, None where matplotlib is not installed. The same history gives the same bytes."""
    with quiet_matplotlib():
        return _drawn(history)


def _drawn(history: Mapping[str, Any]) -> bytes | None:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        return None
    lines = history["epochs"]
    learned = [line for line in lines if "widths" in line]
    groups = history.get("groups", [])
    with matplotlib.rc_context({"font.size": 9, "font.family": "DejaVu Sans"}):
        height = max(3.2, 1.2 + 0.2 * min(len(groups), 40)) if learned else 3.2
        figure = Figure(figsize=(11.5 if learned else 7.0, height), dpi=110, layout="constrained")
        axes = list(figure.subplots(1, 3 if learned else 2, squeeze=False)[0])
        _curves(axes[0], lines, "accuracy", len(learned))
        _curves(axes[1], lines, "loss", len(learned))
        if learned:
            _widths(figure, axes[2], groups, learned)
        stream = io.BytesIO()
        figure.savefig(stream, format="png", metadata={"Software": None}, pil_kwargs={"optimize": True})
    return stream.getvalue()


def _curves(axes: Axes, lines: Sequence[Mapping[str, Any]], what: str, cut: int) -> None:
    from matplotlib.ticker import MaxNLocator

    for name, colour, label in ((what, _TRAINED, "training"), (f"validation_{what}", _VALIDATED, "validation")):
        found = [(line["epoch"], line[name]) for line in lines if line[name] is not None]
        if found:
            axes.plot(*zip(*found, strict=True), color=colour, marker=".", label=label)
    if 0 < cut < len(lines):
        axes.axvline(cut + 0.5, color=_CUT, linestyle=":", label="channels cut")
    axes.set_xlabel("epoch")
    axes.set_title(what, loc="left", size=10)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)


def _widths(figure: Figure, axes: Axes, groups: Sequence[Mapping[str, Any]], learned: Sequence[Any]) -> None:
    """A row for each group of channels, the first layer on top, a column for each epoch of structure learning."""
    from matplotlib.ticker import MaxNLocator

    shares = [[line["widths"][row] / group["limit"] for line in learned] for row, group in enumerate(groups)]
    count = len(learned)
    image = axes.imshow(
        shares, aspect="auto", cmap="cividis", vmin=0, vmax=1, extent=(0.5, count + 0.5, len(groups) - 0.5, -0.5)
    )
    if len(groups) <= _NAMED:
        axes.set_yticks(range(len(groups)), [_row(group) for group in groups], size=7)
    else:
        axes.set_ylabel("layers, the first on top")
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("part of the channels that stays", loc="left", size=10)
    figure.colorbar(image, ax=axes, shrink=0.8)


def _row(group: Mapping[str, Any]) -> str:
    final = f"{group['width']} of " if "width" in group else ""
    return f"{str(group['layer']).removesuffix('.weight')}  {final}{group['limit']}"
