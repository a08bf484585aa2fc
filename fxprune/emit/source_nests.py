"""Arguments and results of a graph. Exported graphs take and give flat lists, and know the nests these stand for."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from fxprune.containers import field_names
from fxprune.emit.source_functions import Needs, is_free_name, is_record, record_text
from fxprune.emit.source_text import SourceError, literal

Text = Callable[[fx.Node], str]


class Arguments:
    """What forward takes. `names` holds every name that its first lines bind."""

    def __init__(self, graph: fx.Graph) -> None:
        self._placeholders = [node for node in graph.nodes if node.op == "placeholder"]
        info = getattr(graph._codegen, "pytree_info", None)
        self._nests = None if info is None else _nests(info)
        flat = [str(node.target) for node in self._placeholders]
        self._own = flat if self._nests is None else [name for name, _ in self._nests]
        self.names = {name.lstrip("*") for name in (*self._own, *flat)}
        wrong = [name for name in sorted(self.names) if not is_free_name(name)]
        if wrong:
            raise SourceError(f"the argument {wrong[0]!r} of forward means something else in the file")

    def definitions(self) -> Iterator[str]:
        defaults = {} if self._nests is not None else {str(node.target): node.args for node in self._placeholders}
        for name in self._own:
            default = defaults.get(name)
            yield f"{name}={literal(default[0])}" if default else name

    def handed_on(self) -> list[str]:
        return self._own

    def unpacking(self) -> Iterator[str]:
        """`left = pair[0]` for each tensor inside a nest."""
        if self._nests is None:
            return
        places = [place for name, spec in self._nests for place in _places(name, spec)]
        for node, place in zip(self._placeholders, places, strict=True):
            if place != node.target and node.users:
                yield f"{node.target} = {place}"


def _nests(info: Any) -> list[tuple[str, pytree.TreeSpec]]:
    """(argument, the nest it is)."""
    names = [name for name in info.orig_args if name != "self"]
    specs = info.in_spec.children()
    both = len(specs) == 2 and info.in_spec.type is tuple and specs[0].type is tuple and specs[1].type is dict
    if both:
        specs = [*specs[0].children(), *specs[1].children()]
    return list(zip(names, specs, strict=True))


def _places(name: str, spec: pytree.TreeSpec) -> Iterator[str]:
    if spec.is_leaf():
        yield name
        return
    if spec.type not in (list, tuple, dict):
        raise SourceError(f"the argument {name} holds a {spec.type}")
    keys = spec.context if spec.type is dict else range(spec.num_children)
    for key, child in zip(keys, spec.children(), strict=True):
        yield from _places(f"{name}[{literal(key)}]", child)


def nested(graph: fx.Graph, value: Any, text: Text, needs: Needs) -> str:
    """The source of what a graph returns."""
    info = getattr(graph._codegen, "pytree_info", None)
    if info is None or info.out_spec is None:
        return literal(value, text)
    flat = iter(value if isinstance(value, list | tuple) else [value])
    return _packed(info.out_spec, flat, text, needs)


def _packed(spec: pytree.TreeSpec, flat: Iterator[Any], text: Text, needs: Needs) -> str:
    if spec.is_leaf():
        return literal(next(flat), text)
    parts = [_packed(child, flat, text, needs) for child in spec.children()]
    if spec.type is tuple:
        return f"({', '.join(parts)}{',' * (len(parts) == 1)})"
    if spec.type is list:
        return f"[{', '.join(parts)}]"
    if spec.type is dict:
        return f"{{{', '.join(f'{literal(key)}: {part}' for key, part in zip(spec.context, parts, strict=True))}}}"
    if spec.type is namedtuple and is_record(spec.context):
        return f"{record_text(spec.context, needs)}({', '.join(parts)})"
    if is_record(spec.type):
        fields = (f"{name}={text}" for name, text in _by_name(spec, parts).items())
        return f"{record_text(spec.type, needs)}({', '.join(fields)})"
    raise SourceError(f"a result of type {spec.type} cannot be written")


@dataclass(frozen=True)
class _Part:
    """The source of one part of a result, which the class around it has no reason to look into."""

    text: str


def _by_name(spec: pytree.TreeSpec, parts: list[str]) -> dict[str, str]:
    """The parts of a dataclass by field; only making one tells which is which."""
    shallow = pytree.SUPPORTED_NODES[spec.type].unflatten_fn([_Part(text) for text in parts], spec.context)
    held = {name: getattr(shallow, name) for name in field_names(spec.type)}
    return {name: part.text if isinstance(part, _Part) else literal(part) for name, part in held.items()}
