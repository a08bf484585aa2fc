"""einops while a network is traced: its functions ask a backend what to do, and know none for proxies.

Answered by the backend for torch, rearrange, reduce, repeat and the like become reshape, permute and so on in the
graph, where the numbers in them can be patched and written as source.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import fx


@contextmanager
def einops_for(kinds: tuple[type[fx.Proxy], ...]) -> Iterator[None]:
    """Let einops take proxies of these types for tensors. Does nothing where einops has not been imported, or has
    become another one inside: tracing fails then as it would without.
    """
    backends = sys.modules.get("einops._backends")
    table, torchs = getattr(backends, "_type2backend", None), getattr(backends, "TorchBackend", None)
    if not isinstance(table, dict) or not isinstance(torchs, type):
        yield
        return

    class ForProxies(torchs):  # type: ignore[misc, valid-type]
        framework_name = "torch.fx proxies"  # which no module is called: never found for anything else

        def shape(self, x: fx.Proxy) -> list[Any]:
            """A list, because einops remembers answers by shapes that can be hashed."""
            return list(x.shape)

    table.update(dict.fromkeys(kinds, ForProxies()))
    try:
        yield
    finally:
        for kind in kinds:
            table.pop(kind, None)
