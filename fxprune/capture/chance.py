"""Random numbers that a forward draws while it is traced. What it decides by them would be decided once and for all."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


class DrawnInTracingError(Exception):
    """The graph would hold one throw of the dice."""


@contextmanager
def nothing_drawn() -> Iterator[None]:
    """Raise DrawnInTracingError when the code inside draws from the global generator of Python, numpy or torch; all of
    them are left as they were. A draw that becomes a node of the graph is none.
    """
    with generators_kept():
        python, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
        yield
        same = random.getstate() == python and _place(np.random.get_state()) == _place(numpys)
        if not same or not torch.equal(torch.get_rng_state(), torchs):
            raise DrawnInTracingError("forward decides by random numbers, which a graph would draw once for all")


@contextmanager
def generators_kept() -> Iterator[None]:
    """The global generators of Python, numpy and torch are left as they were."""
    python, numpys, torchs = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpys)
        torch.set_rng_state(torchs)


def _place(state: Any) -> tuple[int, bytes]:
    """Where numpy's generator stands, as something that can be compared."""
    _, key, position, *_ = state
    return position, key.tobytes()
