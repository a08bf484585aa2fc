"""Names that a model.py may use without being trusted: what makes tensors from tensors, and nothing that takes code."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn
from torch.overrides import get_overridable_functions

from fxprune.aten import FACTORIES, NO_METHODS, UNSAFE, is_operator
from fxprune.emit.source_functions import AUGMENTED, HOMES, INFIX, PREFIX

IMPORTS = {
    "import math", "import operator", "import torch", "import torch.nn.functional as F", "from torch import nn",
    "from collections import namedtuple",
}  # fmt: skip
_ATEN = "torch.ops.aten."
_TAKES_CODE = {"triplet_margin_with_distance_loss"}
_IN_PLACE = {"celu_", "dropout_", "elu_", "hardtanh_", "leaky_relu_", "relu_", "rrelu_", "selu_", "threshold_"}
_MORE = {"hardsigmoid", "hardswish", "logsigmoid", "threshold", "upsample"} | _IN_PLACE
_MORE_METHODS = {"new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "unflatten", "ndimension"}
ATTRIBUTES = {"H", "T", "device", "dtype", "imag", "indices", "mH", "mT", "ndim", "real", "shape", "values"}
_MATH = {"ceil", "exp", "fabs", "floor", "gcd", "isqrt", "log", "log2", "pow", "prod", "sqrt", "trunc"}
_OPERATORS = {"contains", "getitem", "index", "is_", "is_not", "not_", "setitem", "truth"}
_NO_LAYERS = {
    "Container", "DataParallel", "Module", "ModuleDict", "ParameterDict", "ParameterList", "RNNBase", "RNNCellBase",
    "Transformer", "TransformerDecoder", "TransformerDecoderLayer", "TransformerEncoder", "TransformerEncoderLayer",
    "TripletMarginWithDistanceLoss",
}  # fmt: skip
LOOPING = {"GRU", "LSTM", "RNN"}  # constructors that count to num_layers


@functools.cache
def _overridable() -> set[int]:
    return {id(one) for functions in get_overridable_functions().values() for one in functions}


def is_function(home: str, name: str) -> bool:
    """`torch.cat`, `F.relu`, `torch.ops.aten.relu.default`: home is the text before the last dot."""
    if home.startswith(_ATEN):
        return is_operator(home.removeprefix(_ATEN), name)
    if (home, name) == ("torch", "device"):
        return True
    if home in ("math", "operator"):
        return name in _MATH if home == "math" else name in _names_of_operators()
    if home not in HOMES or name.startswith(("_", *UNSAFE)) or name in _TAKES_CODE:
        return False
    if (home == "torch" and name in FACTORIES) or (home in ("torch", "F") and name in _MORE):
        return True
    return id(getattr(HOMES[home], name, None)) in _overridable()


@functools.cache
def _names_of_operators() -> set[str]:
    return {one.__name__ for one in (*INFIX, *PREFIX, *AUGMENTED)} | _OPERATORS


def is_constant(name: str) -> bool:
    """`torch.float32`, `torch.channels_last`, `torch.strided`; none of quantised or sparse tensors."""
    found = getattr(torch, name, None)
    return found is torch.strided or (isinstance(found, torch.dtype | torch.memory_format) and not name.startswith("q"))


@functools.cache
def _methods() -> set[str]:
    known = {one.__name__ for one in get_overridable_functions()[Tensor] if hasattr(one, "__name__")}
    return {name for name in known | _MORE_METHODS if not name.startswith(("_", *UNSAFE))} - NO_METHODS


def is_method(name: str) -> bool:
    """Of tensors; none that takes code or an address."""
    return name in _methods()


def is_layer(name: str) -> bool:
    """`nn.Conv2d`: a class of layers whose constructors take plain values."""
    kind = getattr(nn, name, None)
    inside = isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.startswith("torch.nn.modules.")
    return inside and name not in _NO_LAYERS and not name.startswith("Lazy")
