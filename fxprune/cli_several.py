"""Options that take several values: one with commas, the option again, or, as people write, one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from typer.core import TyperCommand

from fxprune.cli_values import METHODS
from fxprune.errors import OptionError

_SEVERAL = {"--sparsity": lambda text: _number(text) is not None, "--methods": lambda text: text in METHODS}


class SeveralValues(TyperCommand):
    """Takes `--sparsity 0.9 0.95 net.pt` for `--sparsity 0.9 --sparsity 0.95 net.pt`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, list(spread(args)))


def spread(args: Sequence[str]) -> Iterator[str]:
    """The arguments with the option repeated before each further value of its kind."""
    current, given = "", False
    for one in args:
        if one in _SEVERAL:
            current, given = one, False
        elif current and given and all(map(_SEVERAL[current], values([one]))):
            yield current
        elif given:
            current = ""
        given = bool(current) and one != current
        yield one


def values(texts: Sequence[str]) -> list[str]:
    """What stands between commas in any of them."""
    return [one.strip() for text in texts for one in text.split(",")]


def fractions(texts: Sequence[str]) -> list[float]:
    """Numbers, each once, in order. Raises OptionError for what is none."""
    found = {one: _number(one) for one in values(texts)}
    for text, value in found.items():
        if value is None:
            raise OptionError(f"--sparsity {text!r} is no number: write fractions, as 0.9,0.95")
    return list(dict.fromkeys(value for value in found.values() if value is not None))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
