"""`fxprune plan`: widths to expect at given sparsities, without weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from fxprune.cli_errors import printable
from fxprune.cli_layout import facts, module_of, plain_table
from fxprune.errors import OptionError

if TYPE_CHECKING:
    from fxprune.planning import Forecast


def forecasts(spec: str, sparsities: Sequence[float], inputs: Sequence[str], options: dict[str, Any]) -> list[Forecast]:
    """What each sparsity would lead to. Raises OptionError for anything but a spec: a file holds weights already."""
    from fxprune.capture.inputs import choose_inputs, parse_inputs
    from fxprune.capture.specs import build_spec, is_spec
    from fxprune.planning import plan
    from fxprune.program import skeleton_of

    if not is_spec(spec):
        raise OptionError(
            f"{spec} is no spec: plan works from shapes and takes zoo:NAME, torchvision:NAME or timm:NAME"
        )
    loaded = build_spec(spec, shapes_only=True)
    skeleton, _ = skeleton_of(loaded.module)
    given = parse_inputs(inputs, device="meta") if inputs else choose_inputs(skeleton, loaded.input_hint)[0]
    return plan(loaded.module, given, sparsities, **options)


def forecast_view(title: str, found: Sequence[Forecast]) -> RenderableType:
    """One table of costs, one of widths with a column for each sparsity."""
    costs = plain_table("sparsity", "S_avg", "parameters", "MACs", "bytes", "smaller by", right=_COSTS)
    before = found[0].before
    costs.add_row("dense", "", f"{before.parameters:,}", f"{before.macs:,}", f"{before.bytes:,}", "")
    for one in found:
        after, ratio = one.after, f"{before.bytes / one.after.bytes:.2f}x"
        costs.add_row(
            f"{one.sparsity:g}", f"{one.average_sparsity:.4f}", f"{after.parameters:,}", f"{after.macs:,}",
            f"{after.bytes:,}", ratio,
        )  # fmt: skip
    labels = [f"{one.sparsity:g}" for one in found]
    widths = plain_table("layer", "dense", *labels, right=("dense", *labels))
    for number, line in enumerate(found[0].layers):
        cells = [_width(one.layers[number].after, line.before) for one in found]
        widths.add_row(Text(module_of(line.weight)), f"{line.before:,}", *cells)
    note = "expected over seeds, at Kaiming initialisation; no weight was drawn"
    return Group(
        Text(printable(title), style="bold"), costs, Text("\nWidths (output channels)", style="bold"), widths, Text(""),
        facts([("note", note)]),
    )  # fmt: skip


_COSTS = ("S_avg", "parameters", "MACs", "bytes", "smaller by")


def _width(after: int, before: int) -> Text:
    return Text(f"{after:,}", style="bold" if after < before else "")
