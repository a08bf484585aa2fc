"""report.html: what report.json says, for people. One file, no script, nothing loaded from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

from fxprune.wording import share_text

TEMPLATE = "report.html.j2"
_COUNTS = {
    "parameters": "parameters",
    "nonzeros": "of them not zero",
    "macs": "multiply-accumulates, one example",
    "bytes": "bytes of weights and buffers",
}

_REPAIRS = {
    "densified": "became dense, so that no output is left without inputs",
    "lifted": "bias starts at 1, because only one channel is left",
}


def report_page(document: Mapping[str, Any]) -> str:
    """The page for the content of a report.json.

    Names of layers come from a model file that nobody vouches for: everything is escaped.
    """
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["share"] = share_text
    template = environment.from_string(files("fxprune.emit").joinpath(TEMPLATE).read_text("utf-8"))
    return template.render(
        title=document.get("model", "a network"),
        costs=[*_costs(document), *_measured(document.get("measured", {}))],
        layers=document["layers"],
        widest=max((layer["before"] for layer in document["layers"]), default=1),
        average=document["average_sparsity"],
        achieved=document["achieved_sparsity"],
        reasons=list(_reasons(document["groups"])),
        facts=list(_facts(document)),
        asked={name: value for name, value in document["asked"].items() if value not in (None, [], {}, ())},
        seconds=document["seconds"],
        slowest=max(document["seconds"].values(), default=1) or 1,
        files=document["files"],
    )


def _costs(document: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    """Label, dense, compiled, ratio."""
    for name, label in _COUNTS.items():
        before, after = document["before"][name], document["after"][name]
        yield label, f"{before:,}", f"{after:,}", _ratio(before, after)


def _measured(measured: Mapping[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    if not measured:
        return
    first, second = measured["sides"]
    for name, sizes in measured["files"].items():
        before, after = sizes[first], sizes[second]
        yield f"bytes of {name}", _count(before), _count(after), _ratio(before, after)
    for runtime, timed in measured["latency"].items():
        before, after = (f"{1e3 * timed[side]['median']:,.2f} ms" for side in (first, second))
        yield f"median latency, {runtime}", before, after, f"{timed['ratio']['median']:.2f}x"
    for runtime, peak in measured["peak_memory"].items():
        before, after = peak[first], peak[second]
        yield (
            f"peak memory, {runtime}",
            f"{before / 2**20:,.1f} MiB",
            f"{after / 2**20:,.1f} MiB",
            _ratio(before, after),
        )


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"


def _ratio(before: int | None, after: int | None) -> str:
    return f"{before / after:.2f}x" if before and after else ""


def _reasons(groups: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str, list[str]]]:
    """What is frozen or was cut approximately: which of the two, the reason, and the parameters that it concerns."""
    for kind in ("frozen", "approximate"):
        met: dict[str, list[str]] = {}
        for group in groups:
            if group[kind] and (kind == "frozen" or group["after"] < group["before"]):
                met.setdefault(group[kind], []).extend(group["members"])
        for reason, members in met.items():
            yield kind, reason, list(dict.fromkeys(members))


def _facts(document: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    error, onnx = document["proof_error"], document.get("onnx")
    yield (
        "proof",
        "skipped, nothing was compared"
        if error is None
        else f"differs by {error:.1e} in float64 from the dense network with the removed channels zeroed",
    )
    if onnx:
        batch = "any batch size" if onnx["dynamic_batch"] else "a fixed batch size"
        yield "ONNX", f"opset {onnx['opset']}, {batch}; differs from torch by {onnx['difference']:.1e} of the output"
    for index, reason in document["refused"].items():
        yield "refused", f"group {index} stays, the proof found fault with cutting it: {reason}"
    for name, told in _REPAIRS.items():
        if document[name]:
            yield "repaired", f"{told}: {', '.join(document[name])}"
    if document["repaired_rows"]:
        rows = sum(document["repaired_rows"].values())
        yield "repaired", f"outputs that had no weight left and got the largest one back: {rows:,}"
    measured = document.get("measured", {})
    if measured:
        machine = measured["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        yield "measured", f"{machine['processor']}, threads: {measured['threads']}, {versions}"
    for note in (*document["notes"], *measured.get("notes", ())):
        yield "note", note
