"""What `fxprune compile` prints at the end: costs before and after, widths, what stays and why. Plain ASCII."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from fxprune.cli_errors import printable
from fxprune.cli_measured import measured_facts, measured_rows

if TYPE_CHECKING:
    from fxprune.emit.folder import Written
    from fxprune.report import GroupLine, LayerLine, Report

_DECISIONS = {
    "shrunk": "channels removed, what remains is dense",
    "masked": "all channels stay, single weights are zero",
    "dense": "all channels stay, and all weights of theirs",
    "follows": "depthwise, as wide as what it reads",
}
_SHOWN = 3  # names in one line


def summary(title: str, report: Report, written: Written) -> RenderableType:
    """Everything there is to say about one compilation."""
    return Group(
        Text(printable(title), style="bold"),
        _costs(report, written),
        _widths(report.layers),
        facts([*_outcome(report, written), *_stays(report.groups), *_remarks(report, written)]),
    )


def plain_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """A table with a rule under its head; numbers stand to the right, long names are folded at any character."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name in columns:
        number = name in right
        table.add_column(name, justify="right" if number else "left", overflow="fold", no_wrap=number)
    return table


def facts(pairs: Sequence[tuple[str, str]]) -> Table:
    """Short labels, and sentences that wrap beside them."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for label, sentence in pairs:
        grid.add_row(label, Text(printable(sentence)))
    return grid


def some(names: Sequence[str], shown: int = _SHOWN) -> str:
    """The first names and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def module_of(weight: str) -> str:
    """Name of the layer for its weight; a parameter that is called otherwise keeps its name."""
    return weight.removesuffix(".weight")


def counted(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _costs(report: Report, written: Written) -> Table:
    table = plain_table("", "before", "after", "smaller by", right=("before", "after", "smaller by"))
    for column in table.columns[1:3]:
        column.min_width = 15  # whatever was measured, the columns stand where they stood
    before, after = report.before, report.after
    rows: Mapping[str, tuple[int, int]] = {
        "parameters": (before.parameters, after.parameters),
        "  of them not zero": (before.nonzeros, after.nonzeros),
        "MACs, one example": (before.macs, after.macs),
        "bytes, weights and buffers": (before.bytes, after.bytes),
    }
    for label, (old, new) in rows.items():
        table.add_row(label, *_smaller(old, new))
    dense = written.measured.files if written.measured else {}
    for name, size in written.sizes.items():
        was = dense[name].first if name in dense else None
        table.add_row(f"bytes, {name}", *(("", f"{size:,}", "") if was is None else _smaller(was, size)))
    table.add_row("bytes, all files", "", f"{sum(written.sizes.values()):,}", "")
    for row in measured_rows(written.measured) if written.measured else ():
        table.add_row(*row)
    return table


def _smaller(old: int, new: int) -> tuple[str, str, str]:
    return f"{old:,}", f"{new:,}", f"{old / new:.2f}x" if new else "-"


def _widths(layers: Sequence[LayerLine]) -> RenderableType:
    ranked = any(layer.sparsity is not None for layer in layers)
    names = ["layer", "before", "after", *["S_l"] * ranked, "decision"]
    table = plain_table(*names, right=("before", "after", "S_l"))
    for layer in layers:
        after = Text(f"{layer.after:,}", style="bold" if layer.after < layer.before else "")
        cells: list[str | Text] = [f"{layer.before:,}", after, *[_share(layer.sparsity)] * ranked, layer.decision]
        table.add_row(Text(module_of(layer.weight)), *cells)
    met = {layer.decision for layer in layers}
    legend = [(name, meaning) for name, meaning in _DECISIONS.items() if name in met]
    if ranked:
        legend.append(("S_l", "sparsity of the layer in the ranking of all weights, before channels were removed"))
    return Group(Text("\nWidths (output channels)", style="bold"), table, Text(""), facts(legend), Text(""))


def _share(sparsity: float | None) -> str:
    """Four digits, of which the last is never rounded up to 1: a layer that keeps a weight does not look empty."""
    return "" if sparsity is None else f"{min(sparsity, 0.9999) if sparsity < 1 else 1:.4f}"


def _outcome(report: Report, written: Written) -> Iterator[tuple[str, str]]:
    if report.achieved_sparsity is not None:
        asked, average = report.asked["sparsity"], report.average_sparsity
        yield "sparsity", f"{asked} asked, {report.achieved_sparsity:.4f} achieved (weights removed or zero)"
        yield "S_avg", f"{average:.4f}, the average that S_l is compared with"
    yield "proof", _proof(report)
    onnx = written.onnx
    batch = "any batch size" if onnx.dynamic_batch else "a fixed batch size"
    yield "ONNX", f"opset {onnx.opset}, {batch}, differs from torch by {onnx.difference:.1e} of the largest output"
    yield from measured_facts(written.measured) if written.measured else ()
    yield "written", f"{written.folder}/"


def _proof(report: Report) -> str:
    if report.proof_error is None:
        return "skipped, nothing was compared"
    return (
        f"largest relative difference {report.proof_error:.1e} in float64 between the cut network and the dense one "
        f"with the removed channels zeroed{_signal(report.proof_signal)}"
    )


def _signal(signal: float | None) -> str:
    """An agreement of outputs that do not depend on the input would mean little."""
    return "" if signal is None else f"; their outputs vary with the input by {signal:.1e} of their size"


def _stays(groups: Sequence[GroupLine]) -> Iterator[tuple[str, str]]:
    """What is frozen or approximate, by reason."""
    for label, reasons in (
        ("frozen", {one.index: one.frozen for one in groups}),
        ("approximate", {one.index: one.approximate for one in groups if one.after < one.before}),
    ):
        for reason, count in Counter(filter(None, reasons.values())).items():
            met = [one for one in groups if reasons.get(one.index) == reason]
            names = list(dict.fromkeys(member for one in met for member in one.members))
            yield label, f"{some(names)}: {reason}" + (f" ({count} groups)" if count > 1 else "")


def _remarks(report: Report, written: Written) -> Iterator[tuple[str, str]]:
    if report.repaired_rows:
        rows, layers = sum(report.repaired_rows.values()), len(report.repaired_rows)
        where = some([module_of(name) for name in report.repaired_rows])
        yield (
            "repairs",
            (
                f"{counted(rows, 'output')} in {counted(layers, 'layer')} had no weight left "
                f"and got the largest one back: {where}"
            ),
        )
    if report.densified:
        names = [module_of(name) for name in report.densified]
        yield "repairs", f"became dense, so that no output is left without inputs: {some(names)}"
    if report.lifted:
        names = [module_of(name) for name in report.lifted]
        yield "repairs", f"bias starts at 1, because only one channel is left: {some(names)}"
    for index, reason in report.refused.items():
        yield "refused", f"group {index} stays, the proof found fault with cutting it: {reason}"
    if report.front_end != "fx":
        yield "captured", f"with torch.{report.front_end}"
    for note in (*report.notes, *written.onnx.notes):
        yield "note", note


def show(content: RenderableType) -> None:
    """Print to stdout, as wide as the terminal."""
    Console(highlight=False).print(content)
