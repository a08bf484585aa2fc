"""torch.autograd.Function in a forward: what it computes is traced, and its gradient is that of what was traced.

A graph has no place for a backward of the user's own. Mostly it is the derivative of forward, made by hand to be quick
or to save memory; where it is another one (a straight-through estimator), the compiled network trains differently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import Function
from torch.autograd.function import _SingleLevelFunction
from torch.utils import _pytree as pytree
from torch.utils.checkpoint import CheckpointFunction


class _Context:
    """What forward is given to note things for backward; nobody looks at them."""

    def __init__(self, args: tuple[Any, ...]) -> None:
        self.needs_input_grad = tuple(map(_trained, args))

    def save_for_backward(self, *_: Any) -> None: ...
    def save_for_forward(self, *_: Any) -> None: ...
    def mark_dirty(self, *_: Any) -> None: ...
    def mark_non_differentiable(self, *_: Any) -> None: ...
    def set_materialize_grads(self, *_: Any) -> None: ...


def _trained(value: Any) -> bool:
    """Whether gradients would be asked for: of activations and of parameters that are not frozen."""
    if isinstance(value, fx.proxy.ParameterProxy):
        return value.param.requires_grad
    if isinstance(value, fx.Proxy):
        return value.node.op not in ("placeholder", "get_attr")
    return isinstance(value, Tensor) and value.requires_grad


_noting: list[set[str]] = []


def _note(kind: type[Function]) -> None:
    if not kind.__module__.startswith("torch."):
        for names in _noting:
            names.add(kind.__name__)


@contextmanager
def functions_followed(inside: Callable[[], AbstractContextManager[None]] = nullcontext) -> Iterator[None]:
    """Trace through the forward of a Function applied to proxies. torch itself would do so without gradients.

    inside   entered meanwhile, where gradients flow through the call: forward itself runs without, as it does in torch
    """

    def apply(original: Callable[..., Any], kind: type[Function], args: Any, kwargs: Any) -> Any:
        if not any(isinstance(leaf, fx.Proxy) for leaf in pytree.tree_leaves((args, kwargs))):
            return original(*args, **kwargs)
        if kind is CheckpointFunction:
            return args[0](*args[2:])  # what is computed again in its backward has the gradients of this
        _note(kind)
        context = () if kind.setup_context is not Function.setup_context else (_Context(args),)
        with inside() if torch.is_grad_enabled() else nullcontext(), torch.no_grad():
            return kind.forward(*context, *args, **kwargs)

    with _replaced(apply):
        yield


@contextmanager
def functions_noted() -> Iterator[set[str]]:
    """Collect the names of Functions of other people than torch's that are applied, or traced through."""

    def apply(original: Callable[..., Any], kind: type[Function], args: Any, kwargs: Any) -> Any:
        _note(kind)
        return original(*args, **kwargs)

    names: set[str] = set()
    _noting.append(names)
    try:
        with _replaced(apply):
            yield names
    finally:
        _noting.pop()


@contextmanager
def _replaced(apply: Callable[..., Any]) -> Iterator[None]:
    """Function.apply, and what it calls: `swish = Swish.apply` at the top of a file holds the former for good."""
    with _replaced_in(Function, apply), _replaced_in(_SingleLevelFunction, apply):
        yield


@contextmanager
def _replaced_in(owner: type[Any], apply: Callable[..., Any]) -> Iterator[None]:
    before = vars(owner).get("apply")

    def replacement(kind: type[Function], *args: Any, **kwargs: Any) -> Any:
        original = super(owner, kind).apply if before is None else before.__get__(None, kind)
        return apply(original, kind, args, kwargs)

    owner.apply = classmethod(replacement)
    try:
        yield
    finally:
        if before is None:
            del owner.apply
        else:
            owner.apply = before
