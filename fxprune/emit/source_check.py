"""Is this text nothing but a network as fxprune writes it? Asked of files from strangers before anything of them runs.

Python source is code, so that a model.py that somebody sent could do anything. What fxprune writes uses a small part of
the language: layers of torch.nn with plain arguments, and a forward that calls these layers, functions that make
tensors from tensors, and methods of tensors. Everything else is refused, by an allow-list of syntax and names. The
small classes that fxprune writes out count only word for word.

A network that passes can still be large or slow, as any model file can.
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterable

from fxprune.emit import source_allowed as allowed
from fxprune.emit.source_grammar import Checked, Making, RefusedError, Running, check_literal, checked_name
from fxprune.emit.source_parts import PARTS
from fxprune.errors import UntrustedError

LONGEST = 4 << 20  # characters; fxprune writes about two hundred for each layer
_METHODS = ("__init__", "forward", "_forward_eval", "_forward_train")


def check_source(text: str, file: str) -> Checked:
    """Raise UntrustedError with the first line that fxprune would not have written. Runs nothing.

    file  what to call the text in the message
    """
    if len(text) > LONGEST:
        raise UntrustedError(f"{file} is not the source of a network: it has {len(text):,} characters")
    found = Checked()
    try:
        _File(found).check(ast.parse(text))
    except RefusedError as refused:
        raise UntrustedError(
            f"{file} was not run: {refused}, which fxprune does not write. If you know where the file comes from, "
            "load it with trust=True (--trust)"
        ) from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UntrustedError(f"{file} was not run: it cannot be read as Python ({type(error).__name__})") from None
    return found


class _File:
    """The top of the file: a description, imports, the small classes, the network."""

    def __init__(self, found: Checked) -> None:
        self._found = found
        self._layers: set[str] = set()  # small classes that have been defined above
        self._records: set[str] = set()  # named tuples, likewise

    def check(self, tree: ast.Module) -> None:
        *above, network = tree.body or [ast.Pass()]
        for statement in above:
            self._statement(statement)
        if not isinstance(network, ast.ClassDef) or network.name in PARTS:
            raise RefusedError(network, "is not the class of a network")
        self._network(network)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.ClassDef) and ast.dump(node) == _parts().get(node.name):
            self._layers.add(node.name)
        elif isinstance(node, ast.Assign) and _is_record(node):
            self._records.add(checked_name(node, ast.unparse(node.targets[0])))
        elif not (_is_text(node) or ast.unparse(node) in allowed.IMPORTS or _lists_names(node)):
            raise RefusedError(node, "does something else than import torch or define a layer")

    def _network(self, node: ast.ClassDef) -> None:
        bases = [ast.unparse(one) for one in node.bases]
        if bases not in (["nn.Module"], ["nn.ModuleList"]) or node.keywords or node.decorator_list:
            raise RefusedError(node, "derives a class from something else than nn.Module")
        self._found.class_name = checked_name(node, node.name)
        for part in node.body:
            if not (isinstance(part, ast.FunctionDef) and part.name in _METHODS):
                raise RefusedError(part, "is no method of a network")
            arguments = _arguments(part)
            if part.name == "__init__":
                Making(self._layers).check(part)
            else:
                Running(self._records, arguments, self._found).check(part)


@functools.cache
def _parts() -> dict[str, str]:
    return {name: ast.dump(ast.parse(text).body[0]) for name, text in PARTS.items()}


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _lists_names(node: ast.stmt) -> bool:
    plain = isinstance(node, ast.Assign) and isinstance(node.value, ast.List)
    return plain and ast.unparse(node).startswith("__all__ = ") and _all_text(node.value.elts)  # type: ignore[attr-defined]


def _is_record(node: ast.Assign) -> bool:
    """`Outputs = namedtuple("Outputs", ["logits", "aux"])`."""
    call = node.value
    named = isinstance(call, ast.Call) and ast.unparse(call.func) == "namedtuple" and len(call.args) == 2
    if not named or call.keywords or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):  # type: ignore[attr-defined]
        return False
    name, fields = call.args  # type: ignore[attr-defined]
    same = isinstance(name, ast.Constant) and name.value == node.targets[0].id and not name.value.startswith("_")
    return same and isinstance(fields, ast.List) and _all_text(fields.elts)


def _all_text(nodes: Iterable[ast.expr]) -> bool:
    return all(isinstance(one, ast.Constant) and isinstance(one.value, str) for one in nodes)


def _arguments(function: ast.FunctionDef) -> set[str]:
    """Names of the arguments after self; there are no annotations, and defaults are plain."""
    given = function.args
    every = [*given.posonlyargs, *given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
    noted = [one for one in every if one.annotation is not None]
    if function.decorator_list or function.returns is not None or noted or not every or every[0].arg != "self":
        raise RefusedError(function, "has a decorator, an annotation or no self")
    for default in (*given.defaults, *filter(None, given.kw_defaults)):
        check_literal(default)
    return {checked_name(one, one.arg) for one in every[1:]}
