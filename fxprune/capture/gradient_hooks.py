"""Hooks on gradients that a forward registers: a graph has no place for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

NOTE = "forward registers hooks on gradients, and the compiled network has none: its gradients are as they come"


def gradient_hooks(model: nn.Module) -> tuple[str, ...]:
    """A note where parameters have hooks: those of the compiled network are others."""
    named = [name for name, one in model.named_parameters() if one._backward_hooks]
    if not named:
        return ()
    return (f"hooks on the gradients of {', '.join(named[:5])} stay with your network: the compiled one has none",)


@contextmanager
def gradient_hooks_noted() -> Iterator[list[str]]:
    """Collect NOTE when the code inside registers a hook on the gradient of a tensor."""
    notes: list[str] = []
    register: Callable[..., Any] = Tensor.register_hook

    def noted(tensor: Tensor, hook: Any) -> Any:
        notes[:] = [NOTE]
        return register(tensor, hook)

    Tensor.register_hook = noted  # type: ignore[method-assign]
    try:
        yield notes
    finally:
        Tensor.register_hook = register  # type: ignore[method-assign]
