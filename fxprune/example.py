"""Example inputs as plain data: shapes and types, in the nest that the network takes. Numbers are not kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import LoadError
from fxprune.program import Inputs

LARGEST = 1 << 28  # elements of one tensor: a gigabyte in float32, and far beyond any image
_PLAIN = (type(None), bool, int, float, str)


def described(inputs: Inputs) -> Any:
    """{"args": [...], "kwargs": {...}}; a tensor is {"shape": [2, 3, 32, 32], "dtype": "float32"}."""
    return {"args": _told(list(inputs.args)), "kwargs": _told(dict(inputs.kwargs))}


def _told(value: Any) -> Any:
    if isinstance(value, Tensor):
        return {"shape": list(value.shape), "dtype": str(value.dtype).removeprefix("torch.")}
    if type(value) in _PLAIN:
        return {"value": value}
    if type(value) is list:
        return [_told(one) for one in value]
    if type(value) is tuple:
        return {"tuple": [_told(one) for one in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _told(one) for key, one in value.items()}}
    return {"unknown": type(value).__qualname__}


def rebuilt(found: Any, file: str) -> Inputs:
    """Inputs of zeros in these shapes. `file` is what to call their source in messages. Raises LoadError."""
    try:
        args, kwargs = _made(found["args"]), _made(found["kwargs"])
        return Inputs(tuple(args), kwargs)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError):
        raise LoadError(f"{file} does not say which inputs the network takes") from None


def _made(found: Any) -> Any:
    if isinstance(found, list):
        return [_made(one) for one in found]
    if "shape" in found:
        dtype = getattr(torch, found["dtype"])
        if not isinstance(dtype, torch.dtype) or math.prod(found["shape"]) > LARGEST:
            raise ValueError
        return torch.zeros(found["shape"], dtype=dtype)
    if "value" in found:
        return found["value"]
    if "tuple" in found:
        return tuple(_made(one) for one in found["tuple"])
    return {key: _made(one) for key, one in found["dict"].items()}
