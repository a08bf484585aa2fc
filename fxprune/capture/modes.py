"""Who looks at the mode of a network, train or eval, or changes it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


class _Mode:
    """Stands in for `training` of all modules, and knows whether anybody has looked at it, or how often set it."""

    def __init__(self) -> None:
        self.read, self.written = False, 0

    def __get__(self, module: nn.Module | None, kind: type | None = None) -> Any:
        self.read = True
        if module is None or "training" not in vars(module):
            raise AttributeError("training")
        return vars(module)["training"]

    def __set__(self, module: nn.Module, value: bool) -> None:
        self.written += 1
        vars(module)["training"] = value


@contextmanager
def watched_mode() -> Iterator[_Mode]:
    """Tells whether the code inside has read the mode of any module. Patches nn.Module, as tracing itself does."""
    mode = _Mode()
    nn.Module.training = mode  # type: ignore[assignment]
    try:
        yield mode
    finally:
        del nn.Module.training


def switches_itself(module: nn.Module) -> bool:
    """A module whose train() or eval() may change more than the mode."""
    kind = type(module)
    return kind.train is not nn.Module.train or kind.eval is not nn.Module.eval or "train" in vars(module)
