"""Blocks of a forward that run under torch.autocast: a graph holds their calls, not the block."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

NOTE = (
    "forward enters torch.autocast, and the compiled network does not: its layers run in the type of their inputs, "
    "unless the whole network is called under autocast"
)


@contextmanager
def autocast_noted() -> Iterator[list[str]]:
    """Collect NOTE when the code inside enters torch.autocast, on whatever device and also to switch it off."""
    notes: list[str] = []
    enter: Callable[..., Any] = torch.autocast.__enter__

    def noted(block: torch.autocast) -> Any:
        notes[:] = [NOTE]
        return enter(block)

    with _replaced(noted, torch.autocast.__exit__):
        yield notes


@contextmanager
def without_autocast() -> Iterator[list[str]]:
    """Blocks of torch.autocast have no effect in here: the network computes what its graph computes. Collects NOTE."""
    notes: list[str] = []

    def noted(block: torch.autocast) -> Any:
        notes[:] = [NOTE]
        return block

    with _replaced(noted, lambda block, *_: None):
        yield notes


@contextmanager
def _replaced(enter: Callable[..., Any], leave: Callable[..., Any]) -> Iterator[None]:
    before = torch.autocast.__enter__, torch.autocast.__exit__
    torch.autocast.__enter__, torch.autocast.__exit__ = enter, leave  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.autocast.__enter__, torch.autocast.__exit__ = before  # type: ignore[method-assign]
