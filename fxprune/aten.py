"""Operators of ATen that text from outside may name: the graph of an exported program, the source of a network.

An operator makes tensors from tensors and plain values, checks what it is given, and touches no file. torch has many
others: kernels for one device that trust their caller, packed weights, storage that is replaced under a tensor, sparse
and quantised tensors whose parts can be changed so that they no longer fit each other.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch._ops import OpOverload
from torch.overrides import get_overridable_functions

# Beginnings of names of torch's functions, methods and operators.
UNSAFE = (
    *("fbgemm_", "quantize", "miopen_", "mkldnn_", "cudnn_", "fused_moving_avg", "choose_qparams", "autocast", "q_"),
    *("sparse_", "to_sparse", "to_mkldnn"),
)
FACTORIES = {
    *("arange", "empty", "eye", "full", "linspace", "logspace", "ones", "rand", "randint", "randn", "zeros"),
    *("normal", "rand_like", "randint_like", "randn_like", "randperm"),
}  # fmt: skip
NO_METHODS = {
    *("apply_", "backward", "const_data_ptr", "data_ptr", "map2_", "map_", "module_load", "numpy", "record_stream"),
    *("register_hook", "register_post_accumulate_grad_hook", "resize", "resize_", "resize_as", "resize_as_"),
    *("retain_grad", "set", "set_", "share_memory_", "storage", "storage_type", "untyped_storage"),
    # of sparse tensors and the like
    *("ccol_indices", "coalesce", "col_indices", "crow_indices", "hspmm", "indices", "int_repr", "row_indices", "smm"),
    *("sspaddmm", "values"),
}
_MORE = {
    *("alias", "col2im", "copy", "empty_permuted", "fill", "fill_diagonal", "hardsigmoid", "hardswish", "im2col"),
    *("lift_fresh", "lift_fresh_copy", "new_empty", "new_full", "new_ones", "new_zeros", "rand_like", "randn_like"),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d"),
    *("replication_pad3d", "scalar_tensor", "slice", "sym_numel", "sym_size", "sym_stride", "tril_indices"),
    *("triu_indices", "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d"),
    *("upsample_nearest2d", "upsample_nearest3d", "upsample_trilinear3d", "zero"),
    # what torch.export's decompositions leave
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_cdist_forward", "_log_softmax", "_native_batch_norm_legit"),
    *("_native_batch_norm_legit_functional", "_native_batch_norm_legit_no_training", "_pdist_forward"),
    *("_prelu_kernel", "_safe_softmax", "_scaled_dot_product_flash_attention_for_cpu", "_softmax", "_to_copy"),
    *("_unsafe_view", "_upsample_bicubic2d_aa", "_upsample_bilinear2d_aa", "_upsample_nearest_exact1d"),
    *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
}
# Text that an operator may take, by the name of the argument: not the file that aten::from_file opens.
_TEXTS = (
    *("approximate", "equation", "indexing", "interpolation", "mode", "norm", "ord", "padding", "padding_side"),
    *("pad_mode", "reduce", "rounding_mode", "side"),
)
_PLAIN_TYPES = ("Tensor", "int", "float", "bool", "number", "Device", "SymInt", "complex")


def find_operator(name: str, overload: str) -> OpOverload | None:
    """`relu.default` of torch.ops.aten; None when there is no such operator or it may not be named from outside."""
    if not (name.isidentifier() and overload.isidentifier()) or name.startswith("__") or overload.startswith("__"):
        return None
    found = getattr(getattr(torch.ops.aten, name, None), overload, None)
    return found if isinstance(found, OpOverload) and _is_known(name, overload, found) and _is_plain(found) else None


def is_operator(name: str, overload: str) -> bool:
    """Whether `find_operator` finds it."""
    return find_operator(name, overload) is not None


def _is_known(name: str, overload: str, found: OpOverload) -> bool:
    """A function or method of torch's public interface too, or one of a few that are not. Writes to no `out`."""
    plain = name.removesuffix("_")
    if name.startswith(UNSAFE) or {name, plain} & NO_METHODS or any(one.is_out for one in found._schema.arguments):
        return False
    if plain in FACTORIES | _MORE:
        return True
    return (
        not name.startswith("_") and plain in _names() and any("Tensor" in str(one.type) for one in _arguments(found))
    )


@functools.cache
def _names() -> set[str]:
    functions = (one for several in get_overridable_functions().values() for one in several)
    return {str(one.__name__) for one in functions if hasattr(one, "__name__")}


def _is_plain(found: OpOverload) -> bool:
    texts = [argument.name for argument in _arguments(found) if "str" in str(argument.type)]
    kinds = [_innermost(str(argument.type)) for argument in _arguments(found) if argument.name not in texts]
    returns = [_innermost(str(one.type)) for one in found._schema.returns]
    return (
        all(name in _TEXTS for name in texts)
        and all(kind in (*_PLAIN_TYPES, "Generator") for kind in kinds)
        and bool(returns)
        and all(kind in _PLAIN_TYPES for kind in returns)
    )


def _arguments(found: OpOverload) -> list[Any]:
    return list(found._schema.arguments)


def _innermost(kind: str) -> str:
    """`Tensor` of `Optional[List[Tensor]]`."""
    while kind.endswith("]"):
        kind = kind[kind.index("[") + 1 : -1]
    return kind
