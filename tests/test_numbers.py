"""Weights that are NaN or infinite are named before anything is computed from them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fxprune
from fxprune import zoo
from fxprune.capture.module import check_numbers
from fxprune.errors import CaptureError


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["conv1.weight", "fc.bias", "bn1.running_var"])
def test_compile_names_the_tensor(name: str, value: float) -> None:
    model = zoo.build("resnet8")
    model.state_dict()[name].view(-1)[3] = value
    with pytest.raises(CaptureError, match=rf"{name} holds 1 numbers that are NaN or infinite, of \d+: the training"):
        fxprune.compile(model, torch.zeros(2, 3, 32, 32), sparsity=0.9)


def test_infinities_that_cancel_are_found() -> None:
    model = nn.Conv2d(3, 4, 1)
    model.weight.data[0, 0], model.weight.data[1, 0] = math.inf, -math.inf
    with pytest.raises(CaptureError, match="weight holds 2 numbers"):
        check_numbers(model)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_large_numbers_are_numbers(dtype: torch.dtype) -> None:
    model = nn.Conv2d(3, 8, 1).to(dtype)
    model.weight.data.fill_(torch.finfo(dtype).max)  # their sum is infinite
    check_numbers(model)


def test_masks_of_attention_may_be_infinite() -> None:
    model = nn.Conv2d(3, 4, 1)
    model.register_buffer("mask", torch.full((3, 3), -math.inf).triu(1))
    model.register_buffer("count", torch.tensor(3))
    check_numbers(model)
    model.mask[0, 0] = math.nan  # type: ignore[index, operator]
    with pytest.raises(CaptureError, match="mask holds 1 numbers"):
        check_numbers(model)
