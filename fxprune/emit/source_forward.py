"""A graph -> the signature and the body of a forward method."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

from torch import fx, nn

from fxprune.emit.source_functions import AUGMENTED, INFIX, PREFIX, Needs, function_text, is_attribute
from fxprune.emit.source_names import Names
from fxprune.emit.source_nests import Arguments, nested
from fxprune.emit.source_text import INDENT, WIDTH, SourceError, literal, subscript, wrapped
from fxprune.emit.source_tree import Tree


class Forward:
    """One graph as the text of a method.

    root    the skeleton that the graph runs over
    masked  names of masked parameters: where a graph reads one itself, it is multiplied by its mask
    """

    def __init__(self, graph: fx.Graph, root: nn.Module, tree: Tree, masked: set[str], needs: Needs) -> None:
        self._graph, self._root, self._tree, self._masked, self._needs = graph, root, tree, masked, needs
        self._arguments = Arguments(graph)
        self._names = Names(graph.nodes, {*needs.parts, *_bare_names(graph), *self._arguments.names})

    def signature(self) -> str:
        """The arguments after self, as they stand in the definition."""
        return ", ".join(self._arguments.definitions())

    def call(self) -> str:
        """The same arguments handed on to a method with the same signature."""
        return ", ".join(self._arguments.handed_on())

    def lines(self) -> list[str]:
        """Statements, indented twice. Raises SourceError for what has no text."""
        found = [line for text in self._arguments.unpacking() for line in wrapped(text, 2)]
        nodes = [node for node in self._graph.nodes if node.op != "placeholder" and not self._names.inline(node)]
        for node in nodes:
            if found and self._names[node].begins:
                found.append("")
            found += wrapped(self._statement(node), 2)
            if nodes[-2:-1] != [node]:  # a function that returns lets go of everything
                found += _forgotten(self._names[node].dead)
        return found

    # ---- one node

    def _statement(self, node: fx.Node) -> str:
        if node.op == "output":
            return f"return {nested(self._graph, node.args[0], self._text, self._needs)}"
        if node.target is operator.setitem:
            place, index, value = node.args
            return f"{self._operand(place)}[{subscript(index, self._value)}] = {self._value(value)}"
        name = self._names[node].name
        sign = AUGMENTED.get(node.target)
        if sign and name is not None and self._value(node.args[0]) == name:
            return f"{name} {sign} {self._value(node.args[1])}"
        text = self._expression(node)
        return text if name is None else f"{name} = {text}"

    def _expression(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return f"{self._tree.path(str(node.target))}({self._call(node.args, node.kwargs)})"
        if node.op == "call_method":
            method = _attribute(node.target)
            return f"{self._operand(node.args[0])}.{method}({self._call(node.args[1:], node.kwargs)})"
        return self._special(node) or f"{function_text(node.target, self._needs)}({self._call(node.args, node.kwargs)})"

    def _special(self, node: fx.Node) -> str | None:
        """Functions that Python has a notation for."""
        if node.kwargs or not node.args:
            return None
        operands, count = [self._operand(one) for one in node.args[:2]], len(node.args)
        if node.target is getattr and count == 2:
            return f"{operands[0]}.{_attribute(node.args[1])}"
        if node.target is operator.getitem and count == 2:
            return f"{operands[0]}[{subscript(node.args[1], self._value)}]"
        if node.target in INFIX and count == 2:
            return f"{operands[0]} {INFIX[node.target]} {operands[1]}"
        return f"{PREFIX[node.target]}{operands[0]}" if node.target in PREFIX and count == 1 else None

    def _call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
        parts = [self._value(one) for one in args]
        return ", ".join([*parts, *(f"{_attribute(name)}={self._value(one)}" for name, one in kwargs.items())])

    # ---- values

    def _value(self, value: Any) -> str:
        return literal(value, self._text)

    def _operand(self, value: Any) -> str:
        """A value that a sign, a dot or a bracket stands beside."""
        text = self._value(value)
        if isinstance(value, fx.Node):
            signs = {*INFIX, *PREFIX}
            composed = value.target in self._masked if value.op == "get_attr" else value.target in signs
            return f"({text})" if composed and self._names.inline(value) else text
        return f"({text})" if text.startswith("-") else text

    def _text(self, node: fx.Node) -> str:
        if not self._names.inline(node):
            return str(self._names[node].name)
        if node.op != "get_attr":
            return self._expression(node)
        target = str(node.target)
        if target == "training":
            return "self.training"  # also where the network is a list of its parts
        path = self._tree.path(target)
        owner, _, leaf = target.rpartition(".")
        tensors = {**self._root.get_submodule(owner)._parameters, **self._root.get_submodule(owner)._buffers}
        if tensors.get(leaf) is None:
            raise SourceError(f"{target} is no tensor: graphs within graphs cannot be written")
        return f"{path} * {self._tree.path(f'{target}_mask')}" if target in self._masked else path


def _bare_names(graph: fx.Graph) -> set[str]:
    """Functions that are called without a dot before their names: imported ones, and named tuples."""
    targets = {node.target for node in graph.nodes if node.op == "call_function"}
    written = targets - {getattr, operator.getitem, operator.setitem, *INFIX, *PREFIX, *AUGMENTED}
    return {text for target in written for text in [function_text(target, Needs())] if text.isidentifier()}


def _forgotten(names: tuple[str, ...]) -> list[str]:
    """`del a, b`, in several lines where one is too short."""
    found = [f"{INDENT * 2}del"]
    for name in names:
        if len(found[-1]) + len(name) + 2 > WIDTH:
            found.append(f"{INDENT * 2}del")
        found[-1] += f"{',' * (not found[-1].endswith('del'))} {name}"
    return found if names else []


def _attribute(name: object) -> str:
    if not isinstance(name, str) or not is_attribute(name):
        raise SourceError(f"{name!r} cannot follow a dot")
    return name
