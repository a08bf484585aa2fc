"""Run every method on large networks: the proof, the ONNX file against torch, and a training step; exits with 1 when
one of them fails.

    .venv/bin/python tools/prove_methods.py                                 everything that build/methods.jsonl lacks
    .venv/bin/python tools/prove_methods.py --only reconvene --net resnet50 --again

A method that takes a sparsity gets 0.5 and 0.9 as that; one that takes a keep rate loses half or nine tenths of its
channels. Networks have random weights and BatchNorm statistics, pictures and labels are noise: exactness does not
depend on them. Each line of build/methods.jsonl is one run, so that a run that is ended goes on where it was:
with the same pixels, torch and commit, and no change since.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from families import build, pictures  # noqa: E402

import fxprune  # noqa: E402
from fxprune.errors import FxpruneError  # noqa: E402
from fxprune.methods import METHODS, wants_data  # noqa: E402

NETS = ("resnet50", "mobilenet_v2", "densenet121", "efficientnet_b0")
AMOUNTS = (0.5, 0.9)
LIMITS = {"proof": 1e-9, "onnx": 1e-4}
COLUMNS = "{:18} {:16} {:>4} {:>10} {:>8} {:>8} {:>8} {:>8} {:>8}  {}"
HEAD = ("method", "network", "at", "parameters", "smaller", "proof", "onnx", "loss", "seconds", "")


def main() -> int:
    options = parsed()
    torch.set_num_threads(1)
    options.records.parent.mkdir(parents=True, exist_ok=True)
    of = (options.size, torch.__version__, commit())
    known = {} if options.again or not of[-1] else read(options.records)
    print(COLUMNS.format(*HEAD), flush=True)
    faults = 0
    for key in runs(options):
        record = known.get((*key, *of))
        if record is None:
            record = {"key": [*key, *of], **tried(*key, options.size)}
            with options.records.open("a") as out:
                out.write(f"{json.dumps(record)}\n")
        faults += not told(record)
    print(f"{faults} of them failed" if faults else "all hold")
    return 1 if faults else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=tuple(METHODS), metavar="METHOD", default=tuple(METHODS))
    parser.add_argument("--net", nargs="*", choices=NETS, default=NETS)
    parser.add_argument("--at", nargs="*", type=float, default=AMOUNTS, help="fractions that go")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--again", action="store_true", help="run what is recorded, too")
    parser.add_argument("--records", type=Path, default=ROOT / "build" / "methods.jsonl")
    return parser.parse_args()


def read(path: Path) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Method, network, amount, pixels, torch and commit -> what came out last."""
    lines = path.read_text().splitlines() if path.is_file() else []
    return {tuple(record["key"]): record for record in map(json.loads, lines)}


def commit() -> str:
    """Of a checkout without changes; empty otherwise, because nothing tells two of those apart."""
    line = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    told = subprocess.run(line, capture_output=True, text=True, check=False).stdout.strip()
    return "" if told.endswith("-dirty") else told


def runs(options: argparse.Namespace) -> Iterator[tuple[str, str, float]]:
    return ((method, net, at) for net in options.net for at in options.at for method in options.only)


def tried(method: str, net: str, at: float, size: int) -> dict[str, Any]:
    """What came out, or the error."""
    start = time.perf_counter()
    try:
        found = worked(method, net, at, size)
    except FxpruneError as error:
        found = {"error": f"{type(error).__name__}: {error}"[:300]}
    return {**found, "seconds": time.perf_counter() - start}


def worked(method: str, net: str, at: float, size: int) -> dict[str, Any]:
    model, x = build(net, size, dtype=torch.float32), pictures(net, 2, size, torch.float32)
    knob = METHODS[method].knob
    asked: dict[str, Any] = {knob: at if knob == "sparsity" else 1 - at}
    if "keep_weights" not in METHODS[method].settings:
        asked["init"] = "kaiming"
    if wants_data(method):
        asked["data"] = batches(net, size)
    done = fxprune.compile(model, x, method=method, **asked)
    report = done.report
    with tempfile.TemporaryDirectory() as folder:
        onnx = done.to_onnx(Path(folder) / "net.onnx")
    return {
        "before": report.before.parameters,
        "after": report.after.parameters,
        "proof": report.proof_error,
        "refused": len(report.refused),
        "onnx": onnx.difference,
        "loss": stepped(done.module, *batches(net, size)[0]),
    }


def batches(net: str, size: int) -> list[tuple[Tensor, Tensor]]:
    """As many as any criterion asks for."""
    draw = torch.Generator().manual_seed(5)
    labels = [torch.randint(1000, (4,), generator=draw) for _ in range(4)]
    return [(torch.randn(4, 3, size, size, generator=draw), one) for one in labels]


def stepped(module: torch.nn.Module, images: Tensor, labels: Tensor) -> float:
    """The loss of one training step; NaN where a gradient is missing or not finite."""
    optimiser = torch.optim.SGD(module.parameters(), lr=0.01)
    loss = torch.nn.functional.cross_entropy(module(images), labels)
    loss.backward()
    slopes = [one.grad for one in module.parameters() if one.requires_grad]
    optimiser.step()
    whole = all(one is not None and bool(one.isfinite().all()) for one in slopes)
    return loss.item() if whole else math.nan


def told(record: dict[str, Any]) -> bool:
    """Print the line of a run. Returns whether everything holds."""
    method, net, at = record["key"][:3]
    seconds = f"{record['seconds']:.0f}"
    if "error" in record:
        print(COLUMNS.format(method, net, at, *"-----", seconds, record["error"]), flush=True)
        return False
    wrong = ", ".join(faults(record))
    numbers = f"{record['after']:,}", f"{record['before'] / record['after']:.2f}x"
    errors = f"{record['proof']:.0e}", f"{record['onnx']:.0e}", f"{record['loss']:.3f}"
    print(COLUMNS.format(method, net, at, *numbers, *errors, seconds, wrong or "ok"), flush=True)
    return not wrong


def faults(record: dict[str, Any]) -> Iterator[str]:
    if not (record["proof"] is not None and record["proof"] <= LIMITS["proof"]):
        yield "differs from the dense network"
    if not record["onnx"] <= LIMITS["onnx"]:
        yield "onnx differs"
    if not math.isfinite(record["loss"]):
        yield "does not train"
    if record["refused"]:
        yield f"{record['refused']} groups were refused"


if __name__ == "__main__":
    sys.exit(main())
