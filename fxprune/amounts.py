"""Amounts as people write them: 2.5M, 10MiB, 25%."""

from __future__ import annotations

import re

from fxprune.errors import OptionError

_COUNTS = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9}
_BYTES = {
    **{"": 1.0, "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9},
    **{"kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30},
}
_WRITTEN = re.compile(r"(?P<number>\d+(?:\.\d*)?(?:e[+-]?\d+)?|\.\d+) ?(?P<unit>%|[a-z]*)", re.IGNORECASE)


def amount(text: str, *, in_bytes: bool = False) -> float:
    """A number above 1, or a fraction up to 1, as `fxprune.budget.Budget` takes it.

    text      "2.5M" or "300k"; with `in_bytes` "10MiB" or "4 MB"; "0.25" and "25%" are fractions

    Raises OptionError.
    """
    units = _BYTES if in_bytes else _COUNTS
    found = _WRITTEN.fullmatch(text.strip())
    unit = found["unit"].lower() if found else ""
    if not found or unit not in {"%", *units}:
        told = "10MiB, 500kB" if in_bytes else "2.5M, 300k"
        raise OptionError(f"{text!r} is no amount: write {told}, or a share of the dense network, as 25% or 0.25")
    value = float(found["number"]) * (0.01 if unit == "%" else units[unit])
    if value <= 0 or (unit == "%" and value > 1) or (unit not in ("", "%") and value <= 1):
        raise OptionError(f"{text!r} is out of range: amounts lie above 1, shares above 0 and up to 100%")
    return value
