"""Numbers in the source that a width is hidden in: found by comparing dense and cut shapes, and patched.

Each patcher owns one family of calls. It sees what every argument was in the dense network, what it will be now, and
the shape that the labels demand of the result. A call that nobody owns keeps the dense value of every plain number
it is given (a scale computed from a width must not change); if its shape is then wrong, `verify` names it and it is
frozen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from fxprune.channels.cut import Cut
from fxprune.channels.engine import Seen
from fxprune.channels.layers import Labels
from fxprune.channels.records import Claim
from fxprune.errors import RewriteError, described

_ADAPTIVE = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)


@dataclass
class Patcher:
    """One graph on its way from dense to cut. `now` holds the value of each node that has been passed."""

    module: fx.GraphModule
    mode: str
    cut: Cut
    seen: Mapping[tuple[str, str], Seen]
    claims: Mapping[str, Sequence[Claim]]
    now: dict[str, Any] = field(default_factory=dict)
    patched: list[str] = field(default_factory=list)  # nodes of functions and methods whose numbers were changed
    consulted: set[fx.Node] = field(default_factory=set)  # arguments that the owner of the current call has looked at
    modules: dict[str, Any] = field(init=False)  # by every path they have

    def __post_init__(self) -> None:
        self.modules = dict(self.module.named_modules(remove_duplicate=False))

    def run(self, graph: fx.Graph) -> None:
        """Patch every node. Raises RewriteError naming the node whose arguments cannot be read."""
        for node in list(graph.nodes):
            before = (node.target, node.args, node.kwargs)
            try:
                self._patch(node)
            except Exception as error:
                fault = f"{node.name} cannot be rewritten: {described(error)}"
                raise RewriteError(fault, (self.mode, node.name)) from error
            if node.op != "call_module" and before != (node.target, node.args, node.kwargs):
                self.patched.append(node.name)
            self.now[node.name] = self._value_now(node)

    # -- what was and what is -----------------------------------------------------------------------------------------

    def before(self, value: Any) -> Any:
        """An argument's dense value: labels for tensors, the value itself for everything else."""
        return fx.map_arg(value, lambda node: self.seen[self.mode, node.name].value)

    def after(self, value: Any) -> Any:
        """An argument's value now: a meta tensor of the cut shape for tensors. Whoever asks takes care of it."""

        def now(node: fx.Node) -> Any:
            self.consulted.add(node)
            return self.now[node.name]

        return fx.map_arg(value, now)

    def wanted(self, node: fx.Node) -> Any:
        """The result the labels demand: cut shapes in place of tensors."""
        return _map_labels(self.cut.shape, self.seen[self.mode, node.name].value)

    def _value_now(self, node: fx.Node) -> Any:
        value = self.seen[self.mode, node.name].value
        if node.op in ("placeholder", "output") or any(isinstance(leaf, Labels) for leaf in leaves(value)):
            return _map_labels(lambda labels: torch.empty(self.cut.shape(labels), device="meta"), value)
        if node.op in ("call_function", "call_method") and not _constant(node):
            return self.evaluate(node)
        return value

    def evaluate(self, node: fx.Node) -> Any:
        """Sizes and arithmetic on them, computed anew."""
        args, kwargs = self.after(node.args), self.after(dict(node.kwargs))
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        assert callable(node.target)
        return node.target(*args, **kwargs)

    # -- patching -----------------------------------------------------------------------------------------------------

    def _patch(self, node: fx.Node) -> None:
        if node.op == "call_module":
            self._patch_module(node)
            return
        if node.op not in ("call_function", "call_method"):
            return
        if not any(isinstance(leaf, Labels) for leaf in leaves(self.seen[self.mode, node.name].value)):
            return
        self.consulted.clear()
        if node.target in OWNERS:
            _tensor_first(node)
            OWNERS[node.target](self, node)
        self._pin_numbers(node)

    def _pin_numbers(self, node: fx.Node) -> None:
        """A width that is used as a number (a divisor, a scale, a fill value) keeps its dense value."""

        def pin(argument: fx.Node) -> Any:
            if argument in self.consulted:
                return argument
            then, now = self.seen[self.mode, argument.name].value, self.now[argument.name]
            return then if isinstance(then, int | float) and then != now else argument

        node.args = fx.map_arg(node.args, pin)
        node.kwargs = fx.map_arg(dict(node.kwargs), pin)

    def _patch_module(self, node: fx.Node) -> None:
        leaf = self.modules[str(node.target)]
        for claim in self.claims.get(node.name, ()):
            if claim.kind == "groups":
                leaf.groups = self.rows_left(claim)
            elif claim.kind == "num_groups":
                leaf.num_groups = self.rows_left(claim)
            elif claim.kind == "pad" and hasattr(leaf, "padding"):  # LocalResponseNorm pads with numbers of its own
                leaf.padding = replaced(leaf.padding, claim.detail, self.alive(claim))
        if isinstance(leaf, nn.GroupNorm):
            leaf.num_channels = self.wanted(node)[1]
        elif isinstance(leaf, nn.LayerNorm | nn.RMSNorm):
            leaf.normalized_shape = tuple(self.wanted(node)[-len(leaf.normalized_shape) :])
        elif isinstance(leaf, _ADAPTIVE) and isinstance(leaf.output_size, list | tuple):
            there = self.wanted(node)[-len(leaf.output_size) :]
            pairs = zip(leaf.output_size, there, strict=True)
            leaf.output_size = tuple(None if size is None else want for size, want in pairs)  # type: ignore[assignment]
        elif isinstance(leaf, nn.Unflatten) and isinstance(leaf.dim, int):
            start = leaf.dim % len(self.wanted(node))
            wanted = self.wanted(node)[start : start + len(leaf.unflattened_size)]
            leaf.unflattened_size = tuple(sizes_like(self, leaf.unflattened_size, wanted))

    def rows_left(self, claim: Claim) -> int:
        return int(self.cut.mask(claim.layer).any(dim=1).sum())

    def alive(self, claim: Claim) -> int:
        return int(self.cut.mask(claim.layer).sum())

    def claimed(self, node: fx.Node, kind: str) -> Iterator[Claim]:
        return (claim for claim in self.claims.get(node.name, ()) if claim.kind == kind)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, Labels):
        return [value]
    found: list[Any] = pytree.tree_leaves(value, is_leaf=lambda one: isinstance(one, Labels))
    return found


def _map_labels(function: Callable[[Labels], Any], value: Any) -> Any:
    if isinstance(value, Labels):
        return function(value)
    return pytree.tree_map_only(Labels, function, value, is_leaf=lambda one: isinstance(one, Labels))


def _tensor_first(node: fx.Node) -> None:
    """torch.reshape(input=x, shape=...) -> torch.reshape(x, shape=...)"""
    name = next((name for name in ("input", "tensor", "query") if name in node.kwargs), None)
    if node.op == "call_function" and not node.args and name is not None:
        node.args = (node.kwargs[name],)
        node.kwargs = {key: value for key, value in node.kwargs.items() if key != name}


def _constant(node: fx.Node) -> bool:
    return not node.all_input_nodes


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, wherever the user wrote it."""
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def replace_argument(node: fx.Node, position: int, name: str, value: Any) -> None:
    if len(node.args) > position:
        node.update_arg(position, value)
    else:
        node.update_kwarg(name, value)


def replaced(values: Sequence[Any], position: int, value: Any) -> tuple[Any, ...]:
    return (*values[:position], value, *values[position + 1 :])


def sizes_like(patcher: Patcher, sizes: Sequence[Any], wanted: Sequence[int]) -> list[Any]:
    """Each size as it was written, unless it is a number that has become wrong."""
    return [size if patcher.after(size) in (-1, want) else want for size, want in zip(sizes, wanted, strict=True)]


OWNERS: dict[Any, Callable[[Patcher, fx.Node], None]] = {}


def owns(*targets: Any) -> Callable[[Callable[[Patcher, fx.Node], None]], Callable[[Patcher, fx.Node], None]]:
    def register(function: Callable[[Patcher, fx.Node], None]) -> Callable[[Patcher, fx.Node], None]:
        OWNERS.update(dict.fromkeys(targets, function))
        return function

    return register
