"""Which options have no effect with which others. torch stays out."""

from __future__ import annotations

# What says how much goes -> the option that says what becomes of it, and all options that belong to it.
DECIDES = {"sparsity": "policy", "keep_rate": "select"}
BELONG = {"sparsity": ("policy", "coupling", "average", "ranking"), "keep_rate": ("select", "pool", "reduction")}

_BY_SLICES = ("l1", "l2", "group-l1", "group-l2", "fpgm", "bn-scale", "taylor", "taylor-batch", "taylor-element")
_BY_NEITHER = ("random", "gate", "gate-per-mac", "gate-after-steps")
IDLE = {
    ("policy", "reconvene"): (),
    ("policy", "inverted"): (),
    ("policy", "all"): ("average",),
    ("policy", "random"): ("average",),
    ("policy", "none"): ("coupling", "average"),
    ("policy", "precrop"): ("criterion", "ranking", "coupling", "average"),
    ("policy", "precrop-synflow"): ("coupling", "average"),
    ("select", "saliency"): ("reduction",),
    ("select", "first"): ("criterion", "reduction", "pool"),
    **{("select", name): ("criterion",) for name in _BY_SLICES},
    **{("select", name): ("criterion", "reduction") for name in _BY_NEITHER},
}


def without_effect(decides: str, value: str) -> tuple[str, ...]:
    """Options that nothing looks at where "policy" or "select" has this value."""
    return IDLE[decides, value]
