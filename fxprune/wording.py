"""How numbers read, wherever they are shown."""

from __future__ import annotations

UNITS = {"parameters": "parameters", "macs": "MACs", "bytes": "bytes"}  # of the numbers in `fxprune.cost.Cost`


def counted(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def share_text(sparsity: float | None) -> str:
    """Four digits, of which the last is never rounded up to 1: a layer that keeps a weight does not look empty."""
    return "" if sparsity is None else f"{min(sparsity, 0.9999) if sparsity < 1 else 1:.4f}"
