"""What the coverage sweep measures of one network. Everything that goes wrong ends up in the record, in words.

exact      half of the channels at random, weights kept, in float64, unproved, against the user's own module with the
           consumers' columns of removed channels zeroed; norms see the kept ones only where the report is "approximate"
training   compiled at each sparsity, proof on: a forward pass, and a step with finite gradients
onnx       the file against torch in onnxruntime
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from coverage_exactness import EXACT, judged
from coverage_networks import NoDraws
from families import conv_share, conv_weights, prunable, randomise
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.capture.inputs import run_on_meta
from fxprune.capture.module import capture
from fxprune.capture.specs import build_spec
from fxprune.channels.engine import analyse
from fxprune.channels.groups import couple
from fxprune.errors import FxpruneError, NothingPrunableError
from fxprune.program import Inputs, skeleton_of
from fxprune.report import Report

ONNX = 1e-3
TRAINING = "training at "
SIZES = (64, 96, 128, 160, 192, 224, 256, 288, 299, 320, 384)


def built(spec: str, seed: int = 0) -> nn.Module:
    """The network with cheap random weights, random statistics and affine parameters."""
    with NoDraws():  # type: ignore[no-untyped-call]
        model = build_spec(spec, seed).module
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(torch.randn(weight.shape, generator=draw) * (2 / weight[0].numel()) ** 0.5)
    return randomise(model, seed)


def smallest_picture(model: nn.Module) -> tuple[int, ...]:
    """(channels, height, width): the smallest of the usual sizes that runs in both modes, or the network's own."""
    skeleton, _ = skeleton_of(model)
    own = own_picture(model)
    fault: Exception | None = None
    for shape in dict.fromkeys([*((own[0], size, size) for size in SIZES if size < own[-1]), own]):
        try:
            with torch.device("meta"):
                run_on_meta(skeleton, Inputs((torch.zeros(2, *shape, device="meta"),)))
                with torch.no_grad():
                    skeleton.train()(torch.zeros(2, *shape, device="meta"))
        except Exception as error:
            fault = error
            continue
        return shape
    raise RuntimeError(f"no picture fits: {first_words(fault)}")


def own_picture(model: nn.Module) -> tuple[int, ...]:
    if (getattr(model, "default_cfg", None) or {}).get("input_size"):
        return tuple(model.default_cfg["input_size"])
    size = getattr(model, "image_size", 224)  # torchvision's transformers insist on theirs
    size = 299 if type(model).__name__ == "Inception3" else size
    return (3, size, size)


def pictures(shape: tuple[int, ...], batch: int = 2, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(batch), dtype=dtype)


def steps(sparsities: Iterable[float], onnx: bool) -> list[str]:
    """What is asked of a network, by the names under which a record keeps the seconds of each."""
    return ["analysis", "exact", *(f"{TRAINING}{one}" for one in sparsities), *["onnx"] * onnx]


def measure(spec: str, names: Sequence[str], known: dict[str, Any] | None = None) -> dict[str, Any]:
    """These steps of one network, as plain data; added to what is known of it."""
    record: dict[str, Any] = copy.deepcopy(known) if known else {"spec": spec, "faults": [], "seconds": {}}
    with timed(record, "build"):
        model = built(spec)
        shape = smallest_picture(model)
    record |= {"shape": shape, "parameters": sum(one.numel() for one in model.parameters())}
    for name in names:
        with step(record, name):
            if name.startswith(TRAINING):
                _training(record, model, shape, float(name.removeprefix(TRAINING)))
            else:
                CHECKS[name](record, model, shape)
    record["status"] = "wrong" if record.get("wrong") else "refused" if record["faults"] else "ok"
    return record


@contextmanager
def timed(record: dict[str, Any], name: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:  # a step that fails has been run, too
        record["seconds"][name] = round(time.perf_counter() - start, 3)


@contextmanager
def step(record: dict[str, Any], name: str) -> Iterator[None]:
    """One check; whatever it raises is noted and the next one goes on."""
    try:
        with timed(record, name):
            yield
    except Exception as error:
        user = isinstance(error, FxpruneError)
        record["faults"].append(f"{name}: {'' if user else type(error).__name__ + ': '}{first_words(error)}")
        record["crashed"] = record.get("crashed", False) or not user


def first_words(error: Exception | None) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:400]


# -- the checks ------------------------------------------------------------------------------------------------------


def _speed(record: dict[str, Any], model: nn.Module, _: tuple[int, ...]) -> None:
    """Seconds of CPU time of capture, of analysis and of a dense forward pass, at the network's own picture size."""
    shape = own_picture(model)
    one, pair = pictures(shape, 1), torch.zeros(2, *shape, device="meta")
    forward = _forward_seconds(model.eval(), one)
    marks = [time.process_time()]
    program = capture(model, pair)
    marks.append(time.process_time())
    couple(analyse(program))
    marks.append(time.process_time())
    steps = zip(("capture", "analyse"), marks, marks[1:], strict=False)
    record["analysis"] = {"forward": forward} | {name: round(end - start, 4) for name, start, end in steps}


@torch.no_grad()
def _forward_seconds(model: nn.Module, one: torch.Tensor) -> float:
    """Of the mean of as many passes as fill a tenth of a second: clocks may tick in hundredths."""
    model(one)  # the first pass allocates
    passes, start = 0, time.process_time()
    while (spent := time.process_time() - start) < 0.1:
        model(one)
        passes += 1
    return spent / passes


def _exactness(record: dict[str, Any], model: nn.Module, shape: tuple[int, ...]) -> None:
    """What the engine says, unproved, against the oracle; where the two differ, what is left after the proof."""
    dense, x = copy.deepcopy(model).double().eval(), pictures(shape, 2, torch.float64)
    done, record["exact"] = judged(dense, x, "cut")
    record |= _described(model, done.report)
    if done.report.approximate:
        record["kept_weights"] = _frozen_statistics(model, dense, x)
    outcomes = [record["exact"], record.get("kept_weights", {"error": 0.0, "by": ""})]
    if any(one["error"] > EXACT and one["by"] == "oracle" for one in outcomes):
        record["wrong"] = True
        record["faults"].append("exact: differs from the oracle")


def _frozen_statistics(model: nn.Module, dense: nn.Module, x: Tensor) -> dict[str, Any]:
    """What is left for users who keep their weights: no statistic may change. Perhaps nothing."""
    try:
        done, outcome = judged(dense, x, "freeze")
    except NothingPrunableError as error:
        return {"error": 0.0, "by": "nothing", "share": 0.0, "reason": first_words(error)}
    return outcome | {"share": share(model, done.report)}


def share(model: nn.Module, report: Report) -> float:
    """Share of conv parameters in prunable groups. Groups of one channel have nothing to lose and do not count."""
    groups = tuple(group for group in report.groups if not (group.frozen and group.before == 1))
    return conv_share(model, replace(report, groups=groups))


def _described(model: nn.Module, report: Report) -> dict[str, Any]:
    groups = prunable(report)
    stuck = [group for group in groups if group.before > 1 and group.after >= group.before]
    return {
        "front_end": report.front_end,
        "groups": len(groups),
        "frozen_groups": sum(bool(group.producers) for group in report.groups) - len(groups),
        "stuck_groups": len(stuck),
        "share": share(model, report),
        "refused": {str(index): reason[:200] for index, reason in report.refused.items()},
        "approximate": dict(Counter(reason.split(" (")[0] for reason in report.approximate.values())),
        "frozen": _frozen(model, report),
        "notes": [note[:200] for note in report.notes],
    }


def _frozen(model: nn.Module, report: Report) -> list[dict[str, Any]]:
    """Reasons why convolutions stay as they are, the heaviest first: share of all conv parameters and one example."""
    sizes = {f"{name}[{dim}]": weight.numel() for name, dim, weight in conv_weights(model)}
    weights: Counter[str] = Counter()
    example: dict[str, str] = {}
    for group in report.groups:
        for member in group.members:
            if group.frozen and member in sizes:
                reason = group.frozen[:200]
                weights[reason] += sizes.pop(member)
                example.setdefault(reason, member)
    total = sum(weight.numel() for _, _, weight in conv_weights(model)) or 1
    return [
        {"reason": reason, "share": round(count / total, 4), "example": example[reason]}
        for reason, count in weights.most_common(6)
    ]


def _training(record: dict[str, Any], model: nn.Module, shape: tuple[int, ...], sparsity: float) -> None:
    x = pictures(shape)
    done = fxprune.compile(copy.deepcopy(model).train(), x, sparsity)
    module = done.module.train()
    outputs = [one for one in pytree.tree_leaves(module(x)) if isinstance(one, Tensor)]
    torch.stack([one.square().mean() for one in outputs]).sum().backward()
    gradients = {name: one.grad for name, one in module.named_parameters()}
    bad = [name for name, one in gradients.items() if one is not None and not bool(one.isfinite().all())]
    nn.utils.clip_grad_norm_(module.parameters(), 1.0)  # batch norms over two pooled pictures magnify gradients
    torch.optim.SGD(module.parameters(), lr=1e-3).step()
    with torch.no_grad():
        after = [one for one in pytree.tree_leaves(module.eval()(x)) if isinstance(one, Tensor)]
    report = done.report
    record.setdefault("training", {})[str(sparsity)] = {
        "parameters": report.after.parameters,
        "refused": len(report.refused),
        "without_gradient": sum(one is None for one in gradients.values()),
        "proof": report.proof_error,
    }
    if bad or not all(bool(one.isfinite().all()) for one in (*outputs, *after)):
        record["wrong"] = True
        record["faults"].append(f"training at {sparsity}: not finite: {bad[0] if bad else 'the outputs'}")


def _onnx(record: dict[str, Any], model: nn.Module, shape: tuple[int, ...]) -> None:
    options: dict[str, Any] = {"keep_rate": 0.5, "select": "random", "keep_weights": True, "seed": 3}
    done = fxprune.compile(model, pictures(shape), proof=False, approximate="cut", **options)
    with tempfile.TemporaryDirectory() as folder:
        report = done.to_onnx(Path(folder) / "net.onnx")
    allowed = max(ONNX, report.tolerance)
    record["onnx"] = {
        "difference": float(report.difference), "dynamic": report.dynamic_batch, "allowed": allowed
    }  # fmt: skip
    if not report.difference <= allowed:
        record["wrong"] = True
        record["faults"].append(f"onnx: differs from torch by {report.difference:.1e}")


CHECKS = {"analysis": _speed, "exact": _exactness, "onnx": _onnx}
