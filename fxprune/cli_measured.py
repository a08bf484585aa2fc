"""Measurements in the printed tables: rows of before, after and ratio, and under what circumstances they were taken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fxprune.wording import counted

if TYPE_CHECKING:
    from fxprune.runtime.latency import Latency
    from fxprune.runtime.measured import Measured

Row = tuple[str, str, str, str]  # label, first side, second side, first / second

_TIMES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_COUNTS = ((10**9, "G"), (10**6, "M"), (10**3, "k"))
_SIZES = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def measured_rows(measured: Measured) -> Iterator[Row]:
    """One row for the latency in each runtime, one for the peak memory in each."""
    for runtime, timed in measured.latency.items():
        sides = latency_text(timed.first), latency_text(timed.second)
        yield f"latency, {runtime}", *sides, f"{timed.ratio.median:.2f}x"
    for runtime, peaks in measured.memory.items():
        first, second = peaks.first.bytes, peaks.second.bytes
        smaller = f"{first / second:.2f}x" if second else "-"
        yield f"peak memory, {runtime}", size_text(first), size_text(second), smaller


def measured_facts(measured: Measured) -> Iterator[tuple[str, str]]:
    """How the numbers came about, and what is missing."""
    if measured.latency or measured.memory:
        yield "measured", _circumstances(measured)
    for passes, warm_up in dict.fromkeys((one.passes, one.warm_up) for one in measured.latency.values()):
        alike = [
            (name, one) for name, one in measured.latency.items() if (one.passes, one.warm_up) == (passes, warm_up)
        ]
        ratios = [f"{name} {one.ratio.low:.2f}x to {one.ratio.high:.2f}x" for name, one in alike]
        yield (
            "latency",
            f"median (90th percentile) of {passes} passes for each side, taken in turns after {warm_up} to warm up; "
            f"the middle 80 % of ratios: {', '.join(ratios)}",
        )
    if measured.memory:
        yield "memory", "peak of a fresh process that loads and runs the network, beyond what the runtime takes"
    for note in measured.notes:
        yield "note", note


def _circumstances(measured: Measured) -> str:
    batches = dict.fromkeys((measured.batch.first, measured.batch.second))
    used = {name.split()[0] for name in (*measured.latency, *measured.memory)}
    versions = [f"{name} {version}" for name, version in measured.machine.versions.items() if name in used]
    threads = counted(measured.threads, "thread")
    batch = f"batch {' and '.join(map(str, batches))}"
    return ", ".join([measured.machine.processor, threads, batch, *versions])


def latency_text(latency: Latency) -> str:
    """`12.3 ms (14.1)`: the median, and the 90th percentile in the same unit."""
    unit, _ = _unit(latency.median)
    return f"{time_text(latency.median)} ({_three(latency.p90 / unit)})"


def time_text(seconds: float) -> str:
    """`12.3 ms`."""
    unit, name = _unit(seconds)
    return f"{_three(seconds / unit)} {name}"


def _unit(seconds: float) -> tuple[float, str]:
    return next((pair for pair in _TIMES if seconds >= pair[0]), _TIMES[-1])


def count_text(count: int) -> str:
    """`14.7 M`."""
    unit, name = next((pair for pair in _COUNTS if count >= pair[0]), (1, ""))
    return f"{_three(count / unit)} {name}" if name else f"{count}"


def size_text(size: int) -> str:
    """`12.3 MiB`."""
    unit, name = next((pair for pair in _SIZES if size >= pair[0]), (1, "bytes"))
    return f"{_three(size / unit)} {name}"


def _three(number: float) -> str:
    """Three digits that count, but none of the whole number left out."""
    digits = 2 if number < 10 else 1 if number < 100 else 0
    return f"{number:,.{digits}f}"
