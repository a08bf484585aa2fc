"""docs/coverage.md: what the coverage sweep found, from its records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from statistics import median
from typing import Any

from coverage_networks import Network

SLOW = 3.0  # analysis that takes more forward passes than this is worth a look
WHY_SLOW = (
    "Analysis takes about a tenth of a millisecond a call, however large the pictures are, and looks at all channels: "
    "it costs many forward passes where pictures and layers are small, and few where they are large. Networks that "
    "torch.fx cannot follow cost seconds more (torch.export), and those whose graphs differ in training are walked "
    "twice."
)
Record = Mapping[str, Any]


def page(chosen: list[Network], known: Mapping[str, Record]) -> str:
    """The whole page as Markdown."""
    rows = [(network, known[network.spec]) for network in chosen if network.spec in known]
    parts = ["# Coverage", _INTRODUCTION, _summary(chosen, rows), _open(rows), _worst(rows), _slowest(rows)]
    for title, prefix in (("torchvision", "torchvision:"), ("timm", "timm:")):
        parts.append(f"## {title}\n\n{_table([row for row in rows if row[0].spec.startswith(prefix)])}")
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """Written by `tools/coverage.py`; run it again to renew this page. Every network gets random weights
and random statistics, and is compiled twice.

* **exact**: every group loses half of its channels at random, weights stay, float64, no proof. The number is the
  largest relative difference from the network's own module in which the consumers' columns of removed channels are
  zero. `kept` means that normalisations over channels see the kept ones only, as the report says (`approximate`);
  `computed weights` that columns are dropped when a layer is called, because its weight is made from its parameters;
  `queries` that queries and keys are silent too, because they meet outside of layers; `proof` that only the engine's
  own reference can show a statistic outside of layers the kept channels. A cut network that magnifies the last bit
  of its picture beyond 1e-9 can show nothing; it is judged with batch norms that hold the statistics of their inputs
  (`calibrated`).
* **training**: compiled at several sparsities with the proof on, each time one forward pass and one training step
  with finite gradients.
* **share**: parameters of convolutions whose output channels lie in prunable groups, of all parameters of
  convolutions. A convolution that makes the network's output is frozen by definition.
* **analysis**: CPU seconds of capture and analysis / CPU seconds of a dense forward pass at batch 1 and the
  network's own picture size."""


def _summary(chosen: list[Network], rows: list[tuple[Network, Record]]) -> str:
    lines = ["| | run | right | wrong result | exact by an oracle | median share, pure CNNs | ONNX agrees |"]
    lines.append("|---|---|---|---|---|---|---|")
    kinds = {"torchvision classifiers": "classifier", "torchvision segmentation": "segmentation", "timm": ""}
    for title, kind in kinds.items():
        mine = [row for row in rows if (row[0].module == kind if kind else row[0].spec.startswith("timm:"))]
        total = sum(one.module == kind if kind else one.spec.startswith("timm:") for one in chosen)
        lines.append(_summary_line(title, mine, total))
    return "## Summary\n\n" + "\n".join(lines) + f"\n\n{_left(chosen, rows)}{_trained(rows)}{_engines(rows)}"


def _left(chosen: list[Network], rows: list[tuple[Network, Record]]) -> str:
    """What nobody has run yet, said in so many words."""
    run = {network.spec for network, _ in rows}
    left = [network.parameters for network in chosen if network.spec not in run]
    if not left:
        return ""
    sizes = f"from {min(left) / 1e6:.0f} to {max(left) / 1e6:.0f} million parameters"
    return f"{len(left)} of {len(chosen)} networks, {sizes}, have not been run yet, and nothing is known about them. "


def _trained(rows: list[tuple[Network, Record]]) -> str:
    counts = Counter(float(sparsity) for _, record in rows for sparsity in record.get("training", {}))
    shown = ", ".join(f"{number} at {sparsity:.0%}" for sparsity, number in sorted(counts.items()))
    return f"Networks compiled and trained a step, by sparsity: {shown}. " if counts else ""


def _engines(rows: list[tuple[Network, Record]]) -> str:
    """Which commits the records are of: a sweep takes hours, and a mended network is run again alone."""
    counts = Counter(record.get("commit", "earlier ones") for _, record in rows)
    return f"Run at commit: {', '.join(f'{name} ({number})' for name, number in counts.most_common())}."


def _summary_line(title: str, rows: list[tuple[Network, Record]], total: int) -> str:
    right = sum(record["status"] == "ok" for _, record in rows)
    wrong = sum(record["status"] == "wrong" for _, record in rows)
    oracle = sum(not _by(record).startswith("proof") for _, record in rows if "exact" in record)
    shares = [record["share"] for network, record in rows if network.pure and "share" in record]
    onnx = [record for _, record in rows if "onnx" in record["seconds"]]
    agree = sum(
        "onnx" in record and record["onnx"]["difference"] <= record["onnx"].get("allowed", 1e-3) for record in onnx
    )
    share = f"{median(shares):.2%} of {len(shares)}" if shares else "-"
    cells = (title, f"{len(rows)} of {total}", right, wrong, oracle, share, f"{agree} of {len(onnx)}")
    return _row(cells)


def _open(rows: list[tuple[Network, Record]]) -> str:
    failed = [(network, record) for network, record in rows if record["status"] != "ok"]
    if not failed:
        return "## Not right\n\nNone."
    lines = ["| network | status | reason |", "|---|---|---|"]
    lines += [_row((network.spec, record["status"], _cell("; ".join(record["faults"])))) for network, record in failed]
    return "## Not right\n\n" + "\n".join(lines)


def _worst(rows: list[tuple[Network, Record]]) -> str:
    """The ten pure convolutional networks with the smallest share, and why."""
    pure = [(network, record) for network, record in rows if network.pure and "share" in record]
    lines = ["| network | share | what is frozen |", "|---|---|---|"]
    for network, record in sorted(pure, key=lambda row: row[1]["share"])[:10]:
        lines.append(_row((network.spec, f"{record['share']:.1%}", _reasons(record, 3))))
    return "## The ten smallest shares of convolutional networks\n\n" + "\n".join(lines)


def _slowest(rows: list[tuple[Network, Record]]) -> str:
    ratios = [(ratio(record), network.spec, record) for network, record in rows if record.get("analysis")]
    if not ratios:
        return "## Analysis time\n\nNot measured."
    slow = sorted((one for one in ratios if one[0] > SLOW), key=lambda one: -one[0])
    half = median(one[0] for one in ratios)
    text = f"Median {half:.1f} forward passes; {len(slow)} of {len(ratios)} take more than {SLOW:.0f}. {WHY_SLOW}"
    lines = ["| network | passes | capture s | analysis s | forward s |", "|---|---|---|---|---|"]
    for passes, spec, record in slow[:15]:
        times = record["analysis"]
        cells = (f"{times[name]:.2f}" for name in ("capture", "analyse", "forward"))
        lines.append(_row((spec, f"{passes:.1f}", *cells)))
    return f"## Analysis time\n\n{text}\n\n" + "\n".join(lines)


def ratio(record: Record) -> float:
    times = record["analysis"]
    return float((times["capture"] + times["analyse"]) / times["forward"])


def _table(rows: Iterable[tuple[Network, Record]]) -> str:
    head = ("network", "M params", "px", "status", "exact", "groups", "share", "frozen, and why", "analysis / forward")
    lines = [_row(head), _row(["---"] * len(head))]
    for network, record in rows:
        lines.append(_row(_cells(network, record)))
    return "\n".join(lines)


def _cells(network: Network, record: Record) -> list[str]:
    first = [network.spec.partition(":")[2], f"{network.parameters / 1e6:.1f}"]
    if "share" not in record:
        return [*first, "-", record["status"], *["-"] * 3, _cell("; ".join(record["faults"]))[:200], "-"]
    outcome = record.get("exact")
    shown = f"{outcome['error']:.0e} {_short(outcome['by'])}".strip() if outcome else "-"
    if outcome and outcome["by"] == "proof":
        shown = f"{outcome['proof']:.0e} proof"
    if outcome and "statistics" in outcome:
        shown += f" {outcome['statistics']}"
    times = record.get("analysis")
    speed = f"{times['capture'] + times['analyse']:.2f} / {times['forward']:.2f}" if times else "-"
    groups = str(record["groups"]) + (f" ({len(record['refused'])} refused)" if record["refused"] else "")
    size = str(record["shape"][-1])
    return [*first, size, record["status"], shown, groups, f"{record['share']:.1%}", _reasons(record, 2), speed]


def _short(by: str) -> str:
    return by.replace("oracle", "").replace("kept channels", "kept").strip(", ")


def _by(record: Record) -> str:
    return str(record["exact"]["by"])


def _reasons(record: Record, count: int) -> str:
    found = [f"{one['share']:.1%} {one['reason']}" for one in record["frozen"][:count] if one["share"] >= 0.0005]
    found += [f"{number} groups approximate: {reason}" for reason, number in list(record["approximate"].items())[:1]]
    return _cell("; ".join(found))


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"
