"""The two kinds of methods in a model.py, statement by statement: one that makes layers, and those that run them."""

from __future__ import annotations

import ast
from dataclasses import dataclass, field

from fxprune.emit import source_allowed as allowed
from fxprune.emit.source_functions import BUILTINS, is_free_name

Path = tuple[str, ...]
_LITERALS = (type(None), type(Ellipsis), bool, int, float, str)
_OWN_METHODS = ("_forward_eval", "_forward_train")
_MOST_LAYERS = 1024  # of one recurrent layer


@dataclass
class Checked:
    """What has been found out about a text that may run: the network's class, and the paths below self that forward
    calls (layers, or methods of tensors) and reads (tensors, or attributes of tensors).
    """

    class_name: str = ""
    called: set[Path] = field(default_factory=set)
    read: set[Path] = field(default_factory=set)


class RefusedError(Exception):
    """Something that fxprune does not write, and the line it is in."""

    def __init__(self, node: ast.AST, what: str) -> None:
        super().__init__(f"line {getattr(node, 'lineno', '?')} {what}")


def checked_name(node: ast.AST, name: str) -> str:
    """A name that means nothing else in the file."""
    if name.startswith("__") or not is_free_name(name):
        raise RefusedError(node, f"gives a meaning to {name}")
    return name


def check_literal(node: ast.expr) -> None:
    """A plain value: numbers, texts, types of numbers, and nests of them."""
    if isinstance(node, ast.Constant) and isinstance(node.value, _LITERALS):
        return
    if isinstance(node, ast.Tuple | ast.List):
        for one in node.elts:
            check_literal(one)
        return
    negative = isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub)
    if negative and isinstance(node.operand, ast.Constant) and isinstance(node.operand.value, int | float):  # type: ignore[attr-defined]
        return
    if not (ast.unparse(node) in ("float('inf')", "float('-inf')", "float('nan')") or _is_constant(node)):
        raise RefusedError(node, "has something else than a plain value")


def _is_constant(node: ast.expr) -> bool:
    return isinstance(node, ast.Attribute) and _home(node.value) == "torch" and allowed.is_constant(node.attr)


def _home(node: ast.expr) -> str:
    """`torch.special` for the expression of that text; empty for what is no chain of names."""
    if isinstance(node, ast.Attribute):
        above = _home(node.value)
        return f"{above}.{node.attr}" if above else ""
    return node.id if isinstance(node, ast.Name) else ""


def path_of(node: ast.expr) -> Path | None:
    """Names below self: `self.layer1[0].conv1`, `getattr(self.trunk, "block1-0")`. None for anything else."""
    if isinstance(node, ast.Name):
        return () if node.id == "self" else None
    if isinstance(node, ast.Attribute):
        above, name = path_of(node.value), node.attr
    elif isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and type(node.slice.value) is int:
        above, name = path_of(node.value), str(node.slice.value)
    elif _is_getattr(node):
        above, name = path_of(node.args[0]), node.args[1].value  # type: ignore[attr-defined]
    else:
        return None
    return None if above is None else (*above, name)


def _is_getattr(node: ast.expr) -> bool:
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"):
        return False
    name = node.args[1] if len(node.args) == 2 and not node.keywords else None
    return isinstance(name, ast.Constant) and isinstance(name.value, str)


def _path_or_self(node: ast.expr) -> None:
    if path_of(node) != ():
        _path(node)


def _check_text(node: ast.expr | None) -> None:
    if not isinstance(node, ast.Constant) or not isinstance(node.value, str) or node.value.startswith("__"):
        raise RefusedError(node or ast.Pass(), "gives a part of the network a name in a way")


def _path(node: ast.expr) -> Path:
    found = path_of(node)
    if not found:
        raise RefusedError(node, "names something that is not a part of the network")
    for name in found:
        if name.startswith("__"):
            raise RefusedError(node, f"names {name}")
    return found


class Making:
    """__init__: layers and tensors under their names, ties between them."""

    def __init__(self, layers: set[str]) -> None:
        self._layers = layers  # the small classes that the file defines

    def check(self, function: ast.FunctionDef) -> None:
        for statement in function.body:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            _path(node.targets[0])
            self._made(node.value)
            return
        call = node.value if isinstance(node, ast.Expr) else None
        if not isinstance(call, ast.Call) or call.keywords:
            raise RefusedError(node, "does something else than make layers")
        self._call(node, call)

    def _call(self, node: ast.stmt, call: ast.Call) -> None:
        text, args = ast.unparse(call.func), call.args
        if text == "super().__init__" and len(args) < 2:
            for one in args:
                self._made(one)
        elif text in ("self.register_buffer", "self.register_parameter", "self.add_module") and len(args) == 2:
            _check_text(args[0])
            self._made(args[1])
        elif text == "setattr" and len(args) == 3:
            _path_or_self(args[0])
            _check_text(args[1])
            self._made(args[2])
        elif isinstance(call.func, ast.Attribute) and call.func.attr == "requires_grad_" and len(args) == 1:
            check_literal(args[0])
            _path_or_self(call.func.value)
        else:
            raise RefusedError(node, "does something else than make layers")

    def _made(self, node: ast.expr) -> None:
        """A layer, a tensor, or one that has been made before."""
        if isinstance(node, ast.List):
            for one in node.elts:
                self._made(one)
        elif not isinstance(node, ast.Call) or _is_getattr(node):
            _path(node)
        else:
            self._constructor(node)

    def _constructor(self, node: ast.Call) -> None:
        home, _, name = _home(node.func).rpartition(".")
        if (home, name) in (("", "Part"), ("nn", "ModuleList"), ("nn", "Parameter")):
            self._container(node)
            return
        layer = allowed.is_layer(name) if home == "nn" else name in self._layers and not home
        if not layer and (home, name) not in (("torch", "zeros"), ("torch", "ones")):
            raise RefusedError(node, "makes something else than a layer or a tensor")
        for value in (*node.args, *(one.value for one in node.keywords)):
            check_literal(value)
        if any(one.arg is None for one in node.keywords) or (name in allowed.LOOPING and _is_long(node)):
            raise RefusedError(node, "makes a layer in a way")

    def _container(self, node: ast.Call) -> None:
        for one in node.args:
            self._made(one)
        for keyword in node.keywords:
            if keyword.arg == "requires_grad":
                check_literal(keyword.value)
                continue
            many = isinstance(keyword.value, ast.Dict) and keyword.arg is None
            pairs = (
                keyword.value
                if many
                else ast.Dict([ast.copy_location(ast.Constant(keyword.arg), node)], [keyword.value])
            )
            for name, value in zip(pairs.keys, pairs.values, strict=True):  # type: ignore[attr-defined]
                _check_text(name)
                self._made(value)


def _is_long(node: ast.Call) -> bool:
    """A recurrent layer that would take its time to make."""
    count = next((one.value for one in node.keywords if one.arg == "num_layers"), ast.Constant(1))
    number = count.value if isinstance(count, ast.Constant) else None
    return len(node.args) > 2 or not (isinstance(number, int) and 0 < number <= _MOST_LAYERS)


class Running:
    """A forward: variables, calls of layers, of torch's functions and of tensors' methods."""

    def __init__(self, records: set[str], arguments: set[str], found: Checked) -> None:
        self._records, self._variables, self._found = records, set(arguments), found

    def check(self, function: ast.FunctionDef) -> None:
        for statement in function.body:
            self._statement(statement)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            self._value(node.value)
            self._target(node.targets[0])
        elif isinstance(node, ast.AugAssign):
            self._value(node.value)
            self._target(node.target)
        elif isinstance(node, ast.Delete):
            for one in node.targets:
                self._target(one)
        elif isinstance(node, ast.Return | ast.Expr) and node.value is not None:
            self._value(node.value)
        else:
            raise RefusedError(node, "is no step of a network")

    def _target(self, node: ast.expr) -> None:
        """A variable, or a part of a tensor."""
        if isinstance(node, ast.Name):
            self._variables.add(checked_name(node, node.id))
        elif isinstance(node, ast.Subscript):
            self._value(node.value)
            self._value(node.slice)
        else:
            raise RefusedError(node, "gives a value to something else than a variable")

    def _value(self, node: ast.expr) -> None:
        if path_of(node) is not None:
            self._own(node)
        elif isinstance(node, ast.Call):
            self._call(node)
        elif isinstance(node, ast.Name):
            if node.id not in self._variables:
                raise RefusedError(node, f"reads {node.id}")
        elif isinstance(node, ast.Attribute):
            self._attribute(node)
        elif isinstance(node, ast.Constant):
            check_literal(node)
        elif isinstance(node, _NESTS):
            for child in ast.iter_child_nodes(node):
                if isinstance(child, ast.expr):
                    self._value(child)
        else:
            raise RefusedError(node, f"has a {type(node).__name__}")

    def _own(self, node: ast.expr) -> None:
        path = _path(node)
        if path != ("training",):
            self._found.read.add(path)

    def _attribute(self, node: ast.Attribute) -> None:
        if _is_constant(node):
            return
        if node.attr not in allowed.ATTRIBUTES:
            raise RefusedError(node, f"reads .{node.attr}")
        self._value(node.value)

    def _call(self, node: ast.Call) -> None:
        self._called(node.func)
        for keyword in node.keywords:
            if keyword.arg is None:
                raise RefusedError(node, "hands arguments on that it does not name")
        for value in (*node.args, *(one.value for one in node.keywords)):
            self._value(value)

    def _called(self, node: ast.expr) -> None:
        """What stands before the brackets."""
        path = path_of(node)
        if path is not None:
            if path[:1] not in [(one,) for one in _OWN_METHODS] or len(path) != 1:
                self._found.called.add(_path(node))
            return
        if isinstance(node, ast.Name):
            if node.id not in (*BUILTINS, "slice") and node.id not in self._records:
                raise RefusedError(node, f"calls {node.id}")
            return
        if not isinstance(node, ast.Attribute):
            raise RefusedError(node, "calls something else than a function")
        home = _home(node.value)
        if home.partition(".")[0] in _MODULES:
            if not allowed.is_function(home, node.attr):
                raise RefusedError(node, f"calls {home}.{node.attr}")
            return
        if not allowed.is_method(node.attr):
            raise RefusedError(node, f"calls .{node.attr}")
        self._value(node.value)


_MODULES = ("torch", "F", "nn", "math", "operator")
_NESTS = (
    ast.Tuple, ast.List, ast.Dict, ast.Slice, ast.Subscript, ast.BinOp, ast.UnaryOp, ast.Compare, ast.IfExp,
)  # fmt: skip
