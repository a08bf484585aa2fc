"""The modules of a network -> the lines of its __init__, and how forward reaches each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from fxprune.emit.source_functions import Needs, is_attribute
from fxprune.emit.source_layers import layer_text
from fxprune.emit.source_text import INDENT, WIDTH, SourceError, literal, wrapped

_GAPS = 8  # places in a numbered row that may be filled up with nn.Identity()


@dataclass(frozen=True)
class Members:
    """A module that only holds others: `opening`, its members as (name, label, text or Members), `closing`."""

    opening: str
    closing: str
    items: tuple[tuple[str, Members | str], ...]


class Tree:
    """The modules and tensors under `root` that a source file defines.

    root    a skeleton; modules of the plain type nn.Module in it hold others, every other one is a layer
    called  names of the layers that a graph calls; of the others only those with numbers are kept
    masked  names of masked weights
    """

    def __init__(self, root: nn.Module, called: set[str], masked: set[str], needs: Needs) -> None:
        self._root, self._masked, self._needs = root, masked, needs
        self._places = {"", *(above for name in called for above in _upwards(name))}
        self._members: dict[str, dict[str, nn.Module]] = {}  # of every module that only holds others
        self._collect("", root)
        self._rows = {path for path, members in self._members.items() if _is_row(root.get_submodule(path), members)}
        self._first: dict[int, str] = {}  # id of a module or tensor -> the first name it is met under
        self._ties: list[tuple[str, str]] = []

    def _collect(self, path: str, module: nn.Module) -> None:
        """Layers that are called, and whatever holds numbers or such layers."""
        self._members[path] = found = {}
        for name, child in module._modules.items():
            full = _joined(path, name)
            if child is None or not (full in self._places or _holds_numbers(child)):
                continue
            found[name] = child
            if _only_holds(child):
                self._collect(full, child)

    @property
    def base(self) -> str:
        """What the class of the network derives from: a network of numbered layers is indexed like a list."""
        return "nn.ModuleList" if "" in self._rows else "nn.Module"

    def lines(self) -> list[str]:
        """Statements of __init__, indented twice."""
        if "" in self._rows:
            found = self._rendered("super().__init__(", self._row("", opening="["), ")", 2)
        else:
            found = [f"{INDENT * 2}super().__init__()", *self._named_in_root()]
        for name, first in self._ties:
            found += wrapped(self._assignment(name, self.path(first)), 2)
        return found + [f"{INDENT * 2}{line}" for line in self._frozen("", self._root)]

    def path(self, name: str) -> str:
        """The expression for a module or tensor of this name: `self.layer1[0].conv1.weight`."""
        text, above = "self", ""
        for part in name.split(".") if name else ():
            if above in self._rows:
                text = f"{text}[{part}]"
            else:
                text = f"{text}.{part}" if is_attribute(part) else f"getattr({text}, {literal(part)})"
            above = _joined(above, part)
        return text

    def _assignment(self, name: str, value: str) -> str:
        above, _, leaf = name.rpartition(".")
        if above in self._rows or is_attribute(leaf):
            return f"{self.path(name)} = {value}"
        return f"setattr({self.path(above)}, {literal(leaf)}, {value})"

    def _named_in_root(self) -> list[str]:
        found = []
        for name, value in self._items(""):
            if name in self._root._modules and not is_attribute(name):
                found += self._rendered(f"self.add_module({literal(name)}, ", value, ")", 2)
            elif name in self._root._modules or name in self._root._parameters and is_attribute(name):
                found += self._rendered(f"self.{name} = ", value, "", 2)
            else:
                kind = "parameter" if name in self._root._parameters else "buffer"
                found += wrapped(f"self.register_{kind}({literal(name)}, {value})", 2)
        return found

    def _items(self, path: str) -> Iterator[tuple[str, Members | str]]:
        """(name, text) of what a module holds, except what has been met under another name."""
        for name, tensor in _own_tensors(self._root.get_submodule(path)).items():
            full = _joined(path, name)
            if self._is_first(full, tensor):
                yield name, _tensor_text(tensor)
            if full in self._masked:
                yield f"{name}_mask", f"torch.ones({_shape(tensor)}, dtype=torch.bool)"
        for name, child in self._members[path].items():
            full = _joined(path, name)
            if self._is_first(full, child):
                yield name, self._module(full, child)

    def _is_first(self, name: str, thing: nn.Module | Tensor) -> bool:
        first = self._first.setdefault(id(thing), name)
        if first != name:
            self._ties.append((name, first))
        return first == name

    def _module(self, path: str, module: nn.Module) -> Members | str:
        if path not in self._members:
            return self._layer(path, module)
        if path in self._rows:
            return self._row(path)
        self._needs.parts.add("Part")
        items = tuple(self._items(path))
        if all(is_attribute(name) for name, _ in items):
            return Members("Part(", ")", tuple((f"{name}=", value) for name, value in items))
        return Members("Part(**{", "})", tuple((f"{literal(name)}: ", value) for name, value in items))

    def _row(self, path: str, opening: str = "nn.ModuleList([") -> Members:
        given = dict(self._items(path))
        last = max(int(name) for name in self._members[path])
        row = tuple(("", given.get(str(number), "nn.Identity()")) for number in range(last + 1))
        return Members(opening, "])" if opening.endswith("([") else "]", row)

    def _layer(self, path: str, layer: nn.Module) -> str:
        weights = {f"{path}.{name}" for name, _ in layer.named_parameters(remove_duplicate=False)} & self._masked
        if weights - {f"{path}.weight"}:
            raise SourceError(f"{path} has a mask on another tensor than its weight")
        for name, tensor in (*layer.named_parameters(), *layer.named_buffers()):
            self._is_first(f"{path}.{name}", tensor)
        return layer_text(path, layer, bool(weights), self._needs)

    def _frozen(self, path: str, module: nn.Module) -> Iterator[str]:
        """Parameters that the user does not train stay out of training."""
        parameters = list(module.parameters())
        if not any(not one.requires_grad for one in parameters):
            return
        if not any(one.requires_grad for one in parameters):
            yield f"{self.path(path)}.requires_grad_(False)"
            return
        for name, tensor in module._parameters.items():
            if tensor is not None and not tensor.requires_grad:
                yield f"{self.path(f'{path}.{name}'.lstrip('.'))}.requires_grad_(False)"
        for name, child in module.named_children():
            yield from self._frozen(f"{path}.{name}".lstrip("."), child)

    def _rendered(self, head: str, value: Members | str, tail: str, depth: int) -> list[str]:
        if isinstance(value, str):
            return wrapped(f"{head}{value}{tail}", depth)
        flat = [text for label, one in value.items if isinstance(one, str) for text in [label + one]]
        line = f"{INDENT * depth}{head}{value.opening}{', '.join(flat)}{value.closing}{tail}"
        if len(flat) == len(value.items) and len(line) <= WIDTH:
            return [line]
        inner = self._rendered_members(value, depth + 1)
        return [f"{INDENT * depth}{head}{value.opening}", *inner, f"{INDENT * depth}{value.closing}{tail}"]

    def _rendered_members(self, value: Members, depth: int) -> list[str]:
        return [line for label, one in value.items for line in self._rendered(label, one, ",", depth)]


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _upwards(name: str) -> Iterator[str]:
    """The name and those of all modules it is in."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _only_holds(module: nn.Module) -> bool:
    """fx puts plain modules where it needs a place for others."""
    return type(module) is nn.Module or isinstance(module, fx.GraphModule)


def _holds_numbers(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _is_row(module: nn.Module, members: Mapping[str, nn.Module]) -> bool:
    """Whether the members are numbered in order, with few gaps, and there is nothing else."""
    names = list(members)
    if not names or _own_tensors(module) or not all(name.isdecimal() and name == str(int(name)) for name in names):
        return False
    numbers = [int(name) for name in names]
    return numbers == sorted(numbers) and numbers[-1] < len(numbers) + _GAPS


def _own_tensors(module: nn.Module) -> dict[str, Tensor]:
    own: Mapping[str, Tensor | None] = {**module._parameters, **module._buffers}
    return {name: tensor for name, tensor in own.items() if tensor is not None}


def _tensor_text(tensor: Tensor) -> str:
    dtype = "" if tensor.dtype == torch.float32 else f", dtype={tensor.dtype}"
    zeros = f"torch.zeros({_shape(tensor)}{dtype})"
    if not isinstance(tensor, nn.Parameter):
        return zeros
    return f"nn.Parameter({zeros})" if _takes_gradients(tensor) else f"nn.Parameter({zeros}, requires_grad=False)"


def _takes_gradients(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _shape(tensor: Tensor) -> str:
    return ", ".join(map(str, tensor.shape)) or "()"
