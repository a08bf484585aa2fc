"""Questions about types that code asks of torch while it is traced: a proxy answers for the value it stands for.

`isinstance(x, Tensor)` cannot be answered so: to torch's own code a proxy would look like a tensor in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx


@contextmanager
def types_answered(value_of: Callable[[fx.Node], Any]) -> Iterator[None]:
    """torch.is_tensor and torch.jit.isinstance look at what a node returns on the meta device."""
    is_tensor, is_instance = torch.is_tensor, torch.jit.isinstance

    def value(x: Any) -> Any:
        return value_of(x.node) if isinstance(x, fx.Proxy) else x

    def instance(obj: Any, target_type: Any) -> Any:
        return is_instance(value(obj), target_type)  # type: ignore[no-untyped-call]

    torch.is_tensor = lambda obj: is_tensor(value(obj))  # type: ignore[assignment]
    torch.jit.isinstance = instance
    try:
        yield
    finally:
        torch.is_tensor, torch.jit.isinstance = is_tensor, is_instance
