"""How everything on stdout looks: tables without a frame, labels with sentences beside them, plain ASCII words."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from fxprune.cli_errors import printable

_SHOWN = 3  # names in one line


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


def show(content: RenderableType) -> None:
    """Print to stdout, as wide as the terminal, without the spaces that fill lines up."""
    console = Console(highlight=False)
    with console.capture() as captured:
        console.print(content)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))
