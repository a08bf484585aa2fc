"""Names for the values of a graph: a stream of values keeps its name, a branch is called after the block it is in.

What a person would write: `x = self.conv1(x)` for as long as nobody needs the old x, and `layer1_0 = ...` where a
block begins something of its own. A tensor that nobody needs any more gives its memory back.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxprune.emit.source_functions import AUGMENTED, INFIX, PREFIX, is_free_name

_SIZES = {"size", "dim", "numel", "ndimension", "aten.sym_size.int", "aten.sym_numel.default"}
_SIZE_ATTRIBUTES = {"shape", "ndim", "dtype", "device"}
_SEVERAL = {"chunk", "split", "unbind", "tensor_split", "topk", "sort"}


@dataclass(frozen=True)
class Named:
    """The variable that a node's value gets, None where nobody reads it.

    dead    variables with tensors that are not needed after it
    begins  the variable is the first of a block
    """

    name: str | None
    dead: tuple[str, ...] = ()
    begins: bool = False


class Names:
    """A variable for each node of `nodes`, in the order of execution; `taken` names mean something else.

    Two kinds of nodes have none and are written where they are used: parameters and buffers, and what is computed from
    sizes alone.
    """

    def __init__(self, nodes: Iterable[fx.Node], taken: Iterable[str] = ()) -> None:
        self._found: dict[fx.Node, Named] = {}
        self._sizes: set[fx.Node] = set()
        self._inline: set[fx.Node] = set()
        self._live: dict[str, int] = {}  # variable -> when it first got a value
        self._taken = set(taken)
        ordered = list(nodes)
        for node in ordered:
            self._sort(node)
        last = {used: node for node in ordered for used in self._read(node)}
        for node in ordered:
            if node not in self._inline and node.op != "output":
                self._found[node] = self._named(node, [one for one in self._read(node) if last[one] is node])

    def __getitem__(self, node: fx.Node) -> Named:
        return self._found.get(node, Named(None))

    def inline(self, node: fx.Node) -> bool:
        """Written where it is used."""
        return node in self._inline

    def _sort(self, node: fx.Node) -> None:
        """Numbers about shapes are no activations; those that are computed from other numbers need no name."""
        if node.op == "get_attr":
            self._inline.add(node)
        elif _asks_size(node):
            self._sizes.add(node)
        elif _computes(node) and node.all_input_nodes and self._sizes.issuperset(node.all_input_nodes):
            self._sizes.add(node)
            self._inline.add(node)

    def _read(self, node: fx.Node) -> list[fx.Node]:
        """The variables that are read when a node is written out."""
        if node in self._inline:
            return []
        waiting, found = list(node.all_input_nodes), dict[fx.Node, None]()
        while waiting:
            one = waiting.pop(0)
            if one in self._inline:
                waiting += one.all_input_nodes
            else:
                found[one] = None
        return list(found)

    def _named(self, node: fx.Node, last_used: list[fx.Node]) -> Named:
        held = {str(self._found[one].name): one in self._sizes for one in last_used if self._found[one].name}
        dying = sorted((name for name, size in held.items() if not size), key=lambda name: self._live[name])
        read = bool(node.users) or node.op == "placeholder"
        name, begins = self._name(node, dying) if read else (None, False)
        since = self._live.get(name or "", len(self._found))
        for one in held:
            del self._live[one]
        if name is not None:
            self._live[name] = since
        return Named(name, tuple(one for one in dying if one != name), begins)

    def _name(self, node: fx.Node, dying: list[str]) -> tuple[str, bool]:
        if node.op == "placeholder":
            return str(node.target).lstrip("*"), False
        first = node.args[0] if node.args else None
        own = self._found[first].name if isinstance(first, fx.Node) and first in self._found else None
        if node.target in AUGMENTED and own in dying:
            return str(own), False
        if dying and node not in self._sizes and not _takes_apart(node):
            return dying[0], False
        return next((one, begins) for one, begins in _candidates(node, own) if self._is_free(one))

    def _is_free(self, name: str) -> bool:
        return is_free_name(name) and name not in self._live and name not in self._taken


def _target(node: fx.Node) -> str:
    if isinstance(node.target, str):
        return node.target
    return str(node.target) if hasattr(node.target, "_schema") else getattr(node.target, "__name__", "")


def _asks_size(node: fx.Node) -> bool:
    if node.target is getattr:
        return node.args[1] in _SIZE_ATTRIBUTES
    return node.op != "call_module" and _target(node) in _SIZES


def _computes(node: fx.Node) -> bool:
    return node.op == "call_function" and (node.target in (operator.getitem, *INFIX, *PREFIX)) and not node.kwargs


def _takes_apart(node: fx.Node) -> bool:
    """Several tensors, or one of several."""
    if node.target is operator.getitem:
        return isinstance(node.args[1], int)
    return node.op != "call_module" and _target(node) in _SEVERAL


def _candidates(node: fx.Node, source: str | None) -> Iterator[tuple[str, bool]]:
    """(name, whether it is that of a block), from the shortest to one that is certainly free."""
    stem = re.sub(r"\W", "_", node.name)
    following: Any = node if node.op == "call_module" else next(iter(node.users), node)
    if following.op == "call_module" and not _takes_apart(node):
        yield from ((name, True) for name in _of_block(str(following.target)))
    if node.target is operator.getitem and source is not None and isinstance(node.args[1], int):
        stem = f"{source}_{node.args[1]}".replace("-", "m")
    if node.target is getattr:
        stem = str(node.args[1])
    yield stem if not stem[:1].isdigit() else f"layer_{stem}", False
    number = 1
    while True:
        number += 1
        yield f"{'layer_' * stem[:1].isdigit()}{stem}_{number}", False


def _of_block(target: str) -> Iterator[str]:
    """`layer1_0` for a layer of block layer1.0, then longer ones; the layer's own name where it is in no block."""
    parts = [re.sub(r"\W", "_", part) for part in target.split(".")]
    block = parts[:-1] or parts
    for start in range(len(block) - 1, -1, -1):
        if not block[start][:1].isdigit():
            yield "_".join(block[start:])
