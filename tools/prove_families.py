"""Prove the whole list of networks exact at full size, one line each; exits with 1 when one of them fails.

    .venv/bin/python tools/prove_families.py                    all, at 224 pixels (inception_v3: 299)
    .venv/bin/python tools/prove_families.py --size 64 dla34    some of them, smaller

Each network gets random BatchNorm statistics and loses half of its channels at random. `error` compares it in float64
with an oracle that does not use the engine: the dense network with the consumers' columns of removed channels zeroed.
`onnx` compares the file with torch in float32 at batch 1, 2 and 5. ConvNeXt appears twice: as compile() treats it when
weights are kept, and cut behind its LayerNorms, where the oracle's LayerNorms see kept channels only.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from families import FAMILIES, build, conv_share, pictures, prunable  # noqa: E402
from family_oracle import oracle, over_kept_channels, relative  # noqa: E402

import fxprune  # noqa: E402

LIMITS = {"error": 1e-9, "share": 0.95, "onnx": 1e-4}
COLUMNS = "{:20} {:8} {:>5} {:>6} {:>9} {:>7} {:>7} {:>9} {:>7} {:>9} {:>8}  {}"
HEAD = ("network", "front", "size", "batch", "error", "convs", "groups", "prunable", "refused", "onnx", "seconds", "")


def main() -> int:
    options = parsed()
    torch.set_num_threads(options.threads)
    print(COLUMNS.format(*HEAD), flush=True)
    faults = 0
    for name in options.names or FAMILIES:
        for approximate in ("freeze", "cut") if name == "convnext_tiny" else (None,):
            faults += bool(line(name, approximate, options))
    print(f"{faults} of them failed" if faults else "all hold")
    return 1 if faults else 0


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NETWORK", help=f"some of: {', '.join(FAMILIES)}")
    parser.add_argument("--size", type=int, help="pixels; a network that needs more gets its smallest size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-onnx", action="store_true", help="leave the ONNX files out")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(FAMILIES))
    if unknown:
        parser.error(f"{unknown[0]} is none of {', '.join(FAMILIES)}")
    return options


def line(name: str, approximate: str | None, options: argparse.Namespace) -> str:
    """Prove one network and print its line. Returns what is wrong with it, or nothing."""
    size = max(options.size or FAMILIES[name].usual, FAMILIES[name].small)
    start = time.perf_counter()
    done, error, share = proved(name, size, approximate)
    onnx = None if options.no_onnx else exported(name, size, approximate)
    seconds = time.perf_counter() - start
    groups = prunable(done.report)
    wrong = faults(done, error, share, onnx, exact=approximate is None)
    shown = f"{name} {approximate or ''}".strip(), done.report.front_end, size, "1,2,5", f"{error:.1e}", f"{share:.1%}"
    rest = len(done.report.groups), len(groups), len(done.report.refused), "-" if onnx is None else f"{onnx:.1e}"
    print(COLUMNS.format(*shown, *rest, f"{seconds:.1f}", wrong or "ok"), flush=True)
    return wrong


def proved(name: str, size: int, approximate: str | None) -> tuple[fxprune.Compiled, float, float]:
    """The compiled network, its difference from the oracle and the share of conv parameters in prunable groups."""
    model = build(name, size)
    x = pictures(name, 2, size)
    done = fxprune.compile(model, x, keep_rate=0.5, select="random", keep_weights=True, seed=3, approximate=approximate)
    expected, found = oracle(model, done.recipe), done.module.eval()
    if approximate == "cut":
        expected = over_kept_channels(copy.deepcopy(expected), done.recipe)
    with torch.no_grad():
        pairs = [(expected(x), found(x)) for x in (pictures(name, batch, size) for batch in (1, 2, 5))]
    return done, max(relative(*pair) for pair in pairs), conv_share(model, done.report)


def exported(name: str, size: int, approximate: str | None) -> float:
    """The difference of the ONNX file from torch."""
    model, x = build(name, size, dtype=torch.float32), pictures(name, 2, size, torch.float32)
    done = fxprune.compile(
        model, x, keep_rate=0.5, select="random", keep_weights=True, seed=3, approximate=approximate, proof=False
    )
    with tempfile.TemporaryDirectory() as folder:
        return float(done.to_onnx(Path(folder) / "net.onnx").difference)


def faults(done: fxprune.Compiled, error: float, share: float, onnx: float | None, *, exact: bool) -> str:
    """Everything that does not hold, in words."""
    stuck = [group.index for group in prunable(done.report) if group.before > 1 and group.after >= group.before]
    checks = {
        "differs from the oracle": error <= LIMITS["error"],
        "convs are frozen": share >= LIMITS["share"] or done.report.asked["approximate"] == "freeze",
        "groups were refused": not done.report.refused,
        f"groups {stuck} lost nothing": not stuck,
        "not exact": not exact or not done.report.approximate,
        "onnx differs": onnx is None or onnx <= LIMITS["onnx"],
    }
    return ", ".join(words for words, holds in checks.items() if not holds)


if __name__ == "__main__":
    sys.exit(main())
