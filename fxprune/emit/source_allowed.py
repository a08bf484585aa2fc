"""Names that a model.py may use without being trusted: what makes tensors from tensors, and nothing that takes code."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import get_overridable_functions

from fxprune.emit.source_functions import AUGMENTED, HOMES, INFIX, PREFIX

IMPORTS = {
    "import math", "import operator", "import torch", "import torch.nn.functional as F", "from torch import nn",
    "from collections import namedtuple",
}  # fmt: skip
# Of torch's functions: those that read memory by address, or take a function.
_UNSAFE = ("fbgemm_", "quantized_", "miopen_", "mkldnn_", "cudnn_", "fused_moving_avg", "choose_qparams", "autocast")
_TAKES_CODE = {"triplet_margin_with_distance_loss"}
_FACTORIES = {
    "arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn", "zeros",
}  # fmt: skip
_IN_PLACE = {"celu_", "dropout_", "elu_", "hardtanh_", "leaky_relu_", "relu_", "rrelu_", "selu_", "threshold_"}
_MORE = {"hardsigmoid", "hardswish", "logsigmoid", "threshold", "upsample"} | _IN_PLACE
_NO_METHODS = {
    "apply_", "backward", "const_data_ptr", "data_ptr", "map2_", "map_", "module_load", "numpy", "record_stream",
    "register_hook", "register_post_accumulate_grad_hook", "resize", "resize_", "resize_as", "resize_as_",
    "retain_grad", "set_", "share_memory_", "sparse_resize_", "sparse_resize_and_clear_", "storage", "storage_type",
    "untyped_storage",
}  # fmt: skip
_MORE_METHODS = {"new_empty", "new_full", "new_ones", "new_tensor", "new_zeros", "unflatten", "ndimension"}
ATTRIBUTES = {"H", "T", "device", "dtype", "imag", "indices", "mH", "mT", "ndim", "real", "shape", "values"}
_MATH = {"ceil", "exp", "fabs", "floor", "gcd", "isqrt", "log", "log2", "pow", "prod", "sqrt", "trunc"}
_OPERATORS = {"contains", "getitem", "index", "is_", "is_not", "not_", "setitem", "truth"}
_MORE_OPERATORS = {
    "alias", "col2im", "copy", "fill", "hardsigmoid", "hardswish", "im2col", "lift_fresh_copy", "new_empty", "new_full",
    "new_ones", "new_zeros", "rand_like", "randn_like", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d",
    "replication_pad1d", "replication_pad2d", "replication_pad3d", "slice", "sym_numel", "sym_size", "sym_stride",
    "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d", "upsample_nearest2d",
    "upsample_nearest3d", "upsample_trilinear3d", "zero",
}  # fmt: skip
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
    """`torch.cat`, `F.relu`: home is the text before the last dot."""
    if home in ("math", "operator"):
        return name in _MATH if home == "math" else name in _names_of_operators()
    if home not in HOMES or name.startswith(("_", *_UNSAFE)) or name in _TAKES_CODE:
        return False
    if (home == "torch" and name in _FACTORIES) or (home in ("torch", "F") and name in _MORE):
        return True
    return id(getattr(HOMES[home], name, None)) in _overridable()


@functools.cache
def _names() -> set[str]:
    functions = (one for several in get_overridable_functions().values() for one in several)
    return {str(one.__name__) for one in functions if hasattr(one, "__name__")}


@functools.cache
def _names_of_operators() -> set[str]:
    return {one.__name__ for one in (*INFIX, *PREFIX, *AUGMENTED)} | _OPERATORS


def is_constant(name: str) -> bool:
    """`torch.float32`, `torch.channels_last`, `torch.strided`."""
    return isinstance(getattr(torch, name, None), torch.dtype | torch.memory_format | torch.layout)


def is_operator(name: str, overload: str) -> bool:
    """`torch.ops.aten.relu.default`: known as a function or method too, or one of a few that are not, and takes a
    tensor or only makes one.
    """
    plain = name.removesuffix("_")
    if name.startswith(("_", *_UNSAFE)) or {name, plain} & _NO_METHODS or overload.endswith("out"):
        return False
    if plain in _FACTORIES | _MORE_OPERATORS:
        return True
    try:
        schema: Any = getattr(getattr(torch.ops.aten, name), overload)._schema
    except AttributeError:
        return False
    return plain in _names() and any("Tensor" in str(one.type) for one in schema.arguments)


@functools.cache
def _methods() -> set[str]:
    known = {one.__name__ for one in get_overridable_functions()[Tensor] if hasattr(one, "__name__")}
    return {name for name in known | _MORE_METHODS if not name.startswith("_")} - _NO_METHODS


def is_method(name: str) -> bool:
    """Of tensors; none that takes code or an address."""
    return name in _methods()


def is_layer(name: str) -> bool:
    """`nn.Conv2d`: a class of layers whose constructors take plain values."""
    kind = getattr(nn, name, None)
    inside = isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__.startswith("torch.nn.modules.")
    return inside and name not in _NO_LAYERS and not name.startswith("Lazy")
