"""Sizes while a network is being traced: what its graph so far computes, on the meta device, when its code asks.

Python code may branch on shapes, loop over the pieces of a split or turn a size into a plain number. A symbolic trace
cannot answer such questions; running the nodes traced so far on shapes can. An answer that another batch size (one
image, or one more) would change is refused, so that the graph still serves every batch size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from fxprune.metarun import OnPaper
from fxprune.program import NO_TENSORS, named_tensors


class NotASizeError(Exception):
    """The value is no size, or it depends on the batch size."""


class SizeReader:
    """Values of the nodes of a growing graph, for the example inputs and for other batch sizes."""

    def __init__(self, root: nn.Module, given: Mapping[str, Any]) -> None:
        self.root = root
        batch = next((one.shape[0] for one in _tensors(given) if one.ndim), 0)
        plain = {**named_tensors(root), **_plain_tensors(root)}
        sizes = dict.fromkeys((batch, 1, batch + 1, 2 * batch, max(1, batch // 2)))
        self.runs = [_Run(root, plain, given, batch, size) for size in sizes]
        self.alone = len(self.runs) == 1
        self.reading = False  # modules and parameters are themselves meanwhile, not recorded
        self.fault: Exception | None = None  # why the last run ended

    def read(self, node: fx.Node) -> Any:
        """The value of a node that is made of sizes alone. Raises NotASizeError."""
        values = self._values(node)
        if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(values)):
            raise NotASizeError(f"{node.name} is no size")
        return self._agreed(node, values)

    def value(self, node: fx.Node) -> Any:
        """The value of any node, tensors as meta tensors. Raises NotASizeError."""
        return self._values(node)[0]

    def count(self, node: fx.Node) -> int:
        """How many items a tuple or list of sizes or tensors has. Raises NotASizeError."""
        return int(self._agreed(node, [_length(value) for value in self._values(node)]))

    def _agreed(self, node: fx.Node, values: list[Any]) -> Any:
        if any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves(values)):
            raise NotASizeError(f"{node.name} is made of what forward has put in place of a tensor of the network")
        if any(value != values[0] for value in values):
            raise NotASizeError(f"{node.name} depends on the batch size")
        return values[0]

    def _values(self, node: fx.Node) -> list[Any]:
        """One value a run; a run with a batch size that the network does not accept has none and ends."""
        self.reading = True
        values = []
        for run in list(self.runs):
            try:
                values.append(run.value(node))
            except Exception as error:
                self.fault = error
                self.runs.remove(run)
        self.reading = False
        if not values:
            raise NotASizeError(f"{node.name} cannot be worked out from shapes: {self.fault}") from self.fault
        if len(values) == 1 and not self.alone:
            raise NotASizeError(f"{node.name} may depend on the batch size, of which only one fits") from self.fault
        return values


class _Run:
    """One run of the graph on meta tensors, always as far as somebody has asked."""

    def __init__(
        self, root: nn.Module, plain: Mapping[str, Tensor], given: Mapping[str, Any], batch: int, size: int
    ) -> None:
        def resized(one: Tensor) -> Tensor:
            own = one.ndim > 0 and one.shape[0] == batch
            return torch.empty((size, *one.shape[1:]) if own else one.shape, dtype=one.dtype, device="meta")

        self.root, self.plain = root, plain
        self.given = pytree.tree_map_only(Tensor, resized, dict(given))
        self.values: dict[fx.Node, Any] = {}
        self.last: fx.Node | None = None

    def value(self, node: fx.Node) -> Any:
        """Nodes are run in their order, each once: writes in place come before what reads them."""
        following = next(iter(node.graph.nodes)) if self.last is None else self.last.next
        with torch.no_grad(), torch.device("meta"), OnPaper():  # type: ignore[no-untyped-call]
            while node not in self.values:
                self.values[following] = self._run(following)
                self.last, following = following, following.next
        return self.values[node]

    def _run(self, node: fx.Node) -> Any:
        args, kwargs = fx.map_arg((node.args, dict(node.kwargs)), self.values.__getitem__)
        if node.op == "placeholder":
            return self._argument(str(node.target), args)
        if node.op == "get_attr":
            held = self.plain.get(str(node.target))
            return _attribute(self.root, str(node.target)) if held is None else held
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        target: Any = _attribute(self.root, str(node.target)) if node.op == "call_module" else node.target
        return target(*args, **kwargs)

    def _argument(self, name: str, default: tuple[Any, ...]) -> Any:
        if name in self.given:
            return self.given[name]
        stem = name.rpartition("_")[0]  # fx numbers the parts of a container
        return self.given[stem] if stem in self.given else default[0]


def _plain_tensors(root: nn.Module) -> dict[str, Tensor]:
    """Tensors that are neither parameters nor buffers, as they are before forward may put others in their place."""
    return {
        f"{path}.{name}" if path else name: value
        for path, module in root.named_modules()
        for name, value in vars(module).items()
        if type(value) not in NO_TENSORS and isinstance(value, Tensor)
    }


def _attribute(root: nn.Module, path: str) -> Any:
    found: Any = root
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _length(value: Any) -> int:
    if isinstance(value, list | tuple) or (isinstance(value, Tensor) and value.ndim):
        return len(value)
    raise NotASizeError("no tuple or list")


def _tensors(given: Mapping[str, Any]) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(dict(given)) if isinstance(leaf, Tensor)]
