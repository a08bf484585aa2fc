"""How far onnxruntime may be from torch. Both round, each in its own order, and some networks magnify that."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from fxprune.compare import difference, random_inputs
from fxprune.program import Inputs

TOLERANCE = 1e-4  # max|a - b| / max|a| of networks that do not magnify rounding
LARGEST = 0.1  # never allowed more than this
_ORDERS = 10.0  # another order of additions may do this much more than what is seen here
_NUDGES = 2


@torch.no_grad()
def allowed(module: nn.Module, inputs: Inputs) -> float:
    """TOLERANCE, or ten times what rounding alone does to this network in torch: single against double precision, and
    the last bits of all numbers changed. A product of activations a layer multiplies their relative errors, so that
    twenty such layers without training can turn 1e-7 into 1e-2. The module is in eval mode.
    """
    inputs = random_inputs(inputs, seed=0)
    try:
        found = module(*inputs.args, **inputs.kwargs)
        wide = pytree.tree_map_only(Tensor, _double, (inputs.args, dict(inputs.kwargs)))
        apart = [difference(copy.deepcopy(module).double()(*wide[0], **wide[1]), found)]
        for seed in range(_NUDGES):
            twin, args, kwargs = _nudged(module, inputs, seed)
            apart.append(difference(found, twin(*args, **kwargs)))
    except Exception:  # a network that insists on its precision: nothing is known about its rounding
        return TOLERANCE
    return float(np.clip(_ORDERS * max(apart), TOLERANCE, LARGEST)) if np.isfinite(apart).all() else TOLERANCE


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _nudged(module: nn.Module, inputs: Inputs, seed: int) -> tuple[nn.Module, Any, Any]:
    """The last bits changed of all numbers: an exporter folds batch norms into weights, which rounds them anew."""
    draw = torch.Generator().manual_seed(seed)

    def nudge(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        bits = torch.randint(-1, 2, tensor.shape, generator=draw).to(tensor.dtype)
        return tensor * (1 + torch.finfo(tensor.dtype).eps * bits)

    twin = copy.deepcopy(module)
    for tensor in (*twin.parameters(), *twin.buffers()):
        tensor.copy_(nudge(tensor))
    args, kwargs = pytree.tree_map_only(Tensor, nudge, (inputs.args, dict(inputs.kwargs)))
    return twin, args, kwargs
