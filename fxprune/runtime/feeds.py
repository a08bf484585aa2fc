"""Shapes for the inputs of an ONNX file: what it declares, the batch that was asked for, and what the user gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

from fxprune.errors import MeasureError
from fxprune.runtime.onnx_files import Declared
from fxprune.runtime.peak import Feed

_LIMIT = 2**31  # bytes of one input; a declared shape may be any number


@dataclass(frozen=True)
class Given:
    """Shapes from the command line: by position and by name; `batch` None where nobody asked for one."""

    positional: Sequence[tuple[int, ...]] = ()
    named: Mapping[str, tuple[int, ...]] | None = None
    batch: int | None = None


def feeds_for(label: str, inputs: Sequence[Declared], given: Given) -> tuple[Feed, ...]:
    """A name, shape and dtype for each input; `label` says in errors whose inputs they are.

    A first dimension that may vary is the batch, 1 unless given. Raises MeasureError when another one may vary and no
    shape was given, and when a given shape or batch does not fit.
    """
    shapes = _named(label, inputs, given)
    unknown = set(shapes).difference(one.name for one in inputs)
    if unknown:
        known = ", ".join(one.name for one in inputs)
        raise MeasureError(f"{label} has no input {sorted(unknown)[0]}: it has {known}")
    if given.batch is not None and not any(_batched(one) and one.name not in shapes for one in inputs):
        raise MeasureError(f"{label} takes no other batch than its own: leave --batch out")
    return tuple(_feed(label, one, shapes.get(one.name), given.batch or 1) for one in inputs)


def _named(label: str, inputs: Sequence[Declared], given: Given) -> dict[str, tuple[int, ...]]:
    named = dict(given.named or {})
    rest = [one.name for one in inputs if one.name not in named]
    if len(given.positional) > len(rest):
        raise MeasureError(f"{label} has {len(inputs)} inputs, --input gives more")
    return named | dict(zip(rest, given.positional, strict=False))


def _batched(declared: Declared) -> bool:
    return isinstance(next(iter(declared.shape), None), str)


def _feed(label: str, declared: Declared, given: tuple[int, ...] | None, batch: int) -> Feed:
    shape = _filled(label, declared, batch) if given is None else given
    fits = len(shape) == len(declared.shape) and all(
        isinstance(size, str) or size == got for size, got in zip(declared.shape, shape, strict=True)
    )
    if not fits:
        raise MeasureError(f"{label} takes {declared.name} as {_text(declared.shape)}, not {_text(shape)}")
    if prod(shape) * 8 > _LIMIT:
        raise MeasureError(f"{label}: an input {declared.name} of {_text(shape)} is too large to make up")
    return declared.name, shape, declared.dtype


def _filled(label: str, declared: Declared, batch: int) -> tuple[int, ...]:
    """The declared shape with the batch in it."""
    sizes = [batch, *declared.shape[1:]] if _batched(declared) else list(declared.shape)
    known = tuple(size for size in sizes if isinstance(size, int))
    if len(known) < len(sizes):
        raise MeasureError(
            f"{label} takes {declared.name} as {_text(declared.shape)}: say which, "
            f"as in --input {declared.name}=1x3x224x224"
        )
    return known


def _text(shape: Sequence[int | str]) -> str:
    return "x".join(str(size) or "?" for size in shape) or "a single number"
