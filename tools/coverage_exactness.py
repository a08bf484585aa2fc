"""Half of a network's channels gone, and the distance from references that know nothing of the engine."""

from __future__ import annotations

import copy
from typing import Any

import torch
from coverage_oracle import kept_channels_only, references
from family_oracle import relative
from torch import Tensor, nn

import fxprune

EXACT, ILL_CONDITIONED = 1e-9, 1e-5


def judged(dense: nn.Module, x: Tensor, approximate: str) -> tuple[fxprune.Compiled, dict[str, Any]]:
    """Half of the network and how far it is from the oracle: unproved, and where that is too far, proved.

    A cut network that magnifies the last bit of its picture beyond the tolerance can show nothing: it is judged with
    batch norms whose statistics are those of its layers, "calibrated".
    """
    done, outcome = _cut(dense, x, approximate, proof=False)
    if outcome["error"] <= EXACT:
        return done, outcome
    calm = {}
    if outcome["rounding"] > EXACT:
        dense, calm = calibrated(dense, x), {"statistics": "calibrated", "rounding_before": outcome["rounding"]}
        done, outcome = _cut(dense, x, approximate, proof=False)
        if outcome["error"] <= EXACT:
            return done, outcome | calm
    done, proved = _cut(dense, x, approximate, proof=True)
    return done, proved | calm | {"unproved": outcome["error"]}


def calibrated(dense: nn.Module, x: Tensor) -> nn.Module:
    """A copy whose batch norms hold the statistics of their inputs for six pictures."""
    network = copy.deepcopy(dense).train()
    for part in network.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.momentum = 1.0
    with torch.no_grad():
        network(torch.cat([x, 1.5 * x.flip(0), x.flip(-1)]))
    return network.eval()


def _cut(dense: nn.Module, x: Tensor, approximate: str, proof: bool) -> tuple[fxprune.Compiled, dict[str, Any]]:
    options: dict[str, Any] = {"keep_rate": 0.5, "select": "random", "keep_weights": True, "seed": 3}
    done = fxprune.compile(dense, x, approximate=approximate, proof=proof, **options)
    return done, _compared(dense, done, x)


def _compared(dense: nn.Module, done: fxprune.Compiled, x: Tensor) -> dict[str, Any]:
    """The smallest difference from the references, each of them right for networks of one kind, and which one it was.

    "oracle" knows nothing of the engine, "proof" is the engine's own reference, for statistics that no module holds.
    """
    found = done.module.eval()
    errors = {}
    for name, reference in references(dense, done.recipe):
        errors[name] = _gap(reference, found, x)
        if errors[name] > EXACT and done.report.approximate:
            with kept_channels_only(reference, done.recipe):
                errors[f"{name}, kept channels"] = _gap(reference, found, x)
        if min(errors.values()) <= EXACT:
            break
    best = min(errors, key=errors.__getitem__)
    outcome: dict[str, Any] = {"error": errors[best], "by": best}
    if errors[best] <= EXACT:
        return outcome
    outcome["rounding"] = rounding(found, x)
    proof = done.report.proof_error
    if proof is not None and proof <= ILL_CONDITIONED and (done.report.approximate or _functional(done)):
        return outcome | {"by": "proof", "proof": proof, "signal": done.report.proof_signal}
    return outcome | {"by": "oracle", "proof": proof}


def _functional(done: fxprune.Compiled) -> bool:
    """Whether the network multiplies or sums tensors outside of its layers, where the oracle zeroes no columns."""
    products = {"matmul", "bmm", "einsum", "scaled_dot_product_attention", "conv2d", "linear", "sum", "norm"}
    calls = [one for one in done.program.module.graph.nodes if one.op in ("call_function", "call_method")]
    return bool(products & {getattr(one.target, "__name__", str(one.target)) for one in calls})


def _gap(reference: nn.Module, found: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return relative(reference(x), found(x))


def rounding(network: nn.Module, x: Tensor) -> float:
    """How far the outputs move, as a share of the largest, when each entry of x moves by its last bit."""
    bits = torch.randint(0, 2, x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype) * 2 - 1
    with torch.no_grad():
        return relative(network(x), network(x * (1 + bits * torch.finfo(x.dtype).eps)))
