"""Values and long lines as Python source. Whatever has no exact text is refused, never guessed."""

from __future__ import annotations

import io
import math
import tokenize
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.errors import ExportError

WIDTH = 120
INDENT = "    "
_PLAIN = {type(None), bool, int, str, bytes, complex}
_NAMED = (torch.dtype, torch.memory_format, torch.layout)  # their repr is their name: torch.float32


class SourceError(ExportError):
    """The network cannot be written as source that stands alone; the message says what stands in the way."""


_OF_NUMPY = (np.int32, np.int64, np.float32, np.float64, np.bool_)


def literal(value: Any, text_of: Callable[[fx.Node], str] | None = None) -> str:
    """Source that evaluates to `value`; nodes of a graph in it become what `text_of` says. Raises SourceError.

    Types count exactly: a subclass of int or str may print itself in any way it likes.
    """
    if isinstance(value, fx.Node) and text_of is not None:
        return text_of(value)
    if type(value) in _PLAIN:
        text = repr(value)
        return f'"{text[1:-1]}"' if type(value) is str and not set("'\"") & set(text[1:-1]) else text
    if type(value) is float:
        return repr(value) if math.isfinite(value) else f'float("{value}")'
    if type(value) in _OF_NUMPY:  # widths that a script has worked out with it
        return literal(value.item())
    if value is Ellipsis:
        return "..."
    if isinstance(value, _NAMED):
        return str(value)
    if type(value) is torch.device:
        return f"torch.device({str(value)!r})"
    return _nest(value, lambda one: literal(one, text_of))


def _nest(value: Any, text: Callable[[Any], str]) -> str:
    if type(value) is slice:
        return f"slice({text(value.start)}, {text(value.stop)}, {text(value.step)})"
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return f"({', '.join(map(text, value))}{',' * (len(value) == 1)})"
    if isinstance(value, list):
        return f"[{', '.join(map(text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{text(key)}: {text(one)}' for key, one in value.items())}}}"
    raise SourceError(f"a value of type {type(value).__module__}.{type(value).__qualname__} has no text")


def subscript(index: Any, text: Callable[[Any], str]) -> str:
    """What stands between the brackets of `x[...]`."""
    if isinstance(index, tuple) and index and not hasattr(index, "_fields"):
        return ", ".join(_index(one, text) for one in index) + "," * (len(index) == 1)
    return _index(index, text)


def _index(one: Any, text: Callable[[Any], str]) -> str:
    if type(one) is not slice:
        return text(one)
    start, stop, step = ("" if part is None else text(part) for part in (one.start, one.stop, one.step))
    return f"{start}:{stop}" + (f":{step}" if step else "")


def wrapped(statement: str, depth: int = 0) -> list[str]:
    """One statement, indented `depth` times, as lines of at most WIDTH characters, broken inside brackets.

    A line without a bracket or comma where one is needed stays longer.
    """
    room = WIDTH - len(INDENT) * depth
    lines = [""]
    for piece in [statement] if len(statement) <= room else _pieces(statement):
        if lines[-1] and len(lines[-1]) + len(piece.rstrip()) > room:
            lines.append(INDENT)
        lines[-1] += piece
    return [INDENT * depth + line.rstrip() for line in lines]


def _pieces(statement: str) -> Iterator[str]:
    """The statement cut after each comma inside brackets, and after each bracket that opens."""
    start = inside = 0
    for token in tokenize.generate_tokens(io.StringIO(statement).readline):
        opens = token.string in ("(", "[", "{")
        inside += opens - (token.string in (")", "]", "}"))
        if opens or (token.string == "," and inside):
            end = token.end[1] + statement[token.end[1] :].startswith(" ")
            yield statement[start:end]
            start = end
    yield statement[start:]
