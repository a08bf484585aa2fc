"""torch.autograd.Function in a forward: what it computes is traced, and its gradient is that of what was traced.

A graph has no place for a backward of the user's own. Mostly it is the derivative of forward, made by hand to be quick
or to save memory; where it is another one (a straight-through estimator), the compiled network trains differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.autograd import Function
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction

from fxprune.compare import difference
from fxprune.program import Inputs

_SAME = 1e-2  # of the largest gradient; another derivative is another one by far


class _Context:
    """What forward is given to note things for backward; nobody looks at them."""

    def __init__(self, count: int) -> None:
        self.needs_input_grad = (True,) * count

    def save_for_backward(self, *_: Any) -> None: ...
    def save_for_forward(self, *_: Any) -> None: ...
    def mark_dirty(self, *_: Any) -> None: ...
    def mark_non_differentiable(self, *_: Any) -> None: ...
    def set_materialize_grads(self, *_: Any) -> None: ...


@contextmanager
def functions_followed() -> Iterator[None]:
    """Trace through the forward of a Function applied to proxies. torch itself would do so without gradients."""

    def apply(original: Callable[..., Any], kind: type[Function], args: Any, kwargs: Any) -> Any:
        if not any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs))):
            return original(*args, **kwargs)
        if kind is CheckpointFunction:
            return args[0](*args[2:])  # what is computed again in its backward has the gradients of this
        apart = kind.setup_context is not Function.setup_context
        return kind.forward(*(() if apart else (_Context(len(args)),)), *args, **kwargs)

    with _replaced(apply):
        yield


@contextmanager
def functions_noted() -> Iterator[set[str]]:
    """Collect the names of Functions that are applied."""
    names: set[str] = set()

    def apply(original: Callable[..., Any], kind: type[Function], args: Any, kwargs: Any) -> Any:
        if not kind.__module__.startswith("torch."):
            names.add(kind.__name__)
        return original(*args, **kwargs)

    with _replaced(apply):
        yield names


@contextmanager
def _replaced(apply: Callable[..., Any]) -> Iterator[None]:
    before = vars(Function)["apply"]

    def replacement(kind: type[Function], *args: Any, **kwargs: Any) -> Any:
        return apply(before.__get__(None, kind), kind, args, kwargs)

    Function.apply = classmethod(replacement)  # type: ignore[assignment]
    try:
        yield
    finally:
        Function.apply = before  # type: ignore[method-assign]


def other_gradients(names: set[str], network: nn.Module, graph: nn.Module, inputs: Inputs) -> str:
    """Says so where the captured graph has other gradients than the network; empty where it has the same."""
    if not names:
        return ""
    found = [_gradients(one, inputs) for one in (network, graph)]
    common = [name for name in found[0] if name in found[1]]
    if all(difference(found[0][name], found[1][name]) <= _SAME for name in common):
        return ""
    return (
        f"gradients of {', '.join(sorted(names))} are those of its forward in the compiled network: its own backward, "
        "which computes others, is not part of a graph"
    )


def _gradients(network: nn.Module, inputs: Inputs) -> dict[str, Tensor]:
    """Of a sum of the outputs with fixed random weights; zero where there is none."""
    parameters = {name: one for name, one in network.named_parameters() if one.requires_grad}
    with torch.enable_grad():
        outputs = pytree.tree_leaves(network(*inputs.args, **inputs.kwargs))
        draw = torch.Generator().manual_seed(0)
        sums = [
            (one * torch.randn(one.shape, generator=draw, dtype=torch.float64).to(one)).sum()
            for one in outputs
            if isinstance(one, Tensor) and one.requires_grad and one.is_floating_point()
        ]
        if not sums or not parameters:
            return {}
        found = torch.autograd.grad(torch.stack(sums).sum(), list(parameters.values()), allow_unused=True)
    return {
        name: torch.zeros_like(one) if gradient is None else gradient
        for (name, one), gradient in zip(parameters.items(), found, strict=True)
    }
