"""Networks that cannot be compiled as they are: what the user is told, and what can be done."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from small_network import ReadsTheInput, Small, halved
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError


class Float(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.features(x))


def quantised() -> nn.Module:
    model = Float().train()
    model.qconfig = torch.ao.quantization.get_default_qat_qconfig("fbgemm")  # type: ignore[assignment]
    prepared: nn.Module = torch.ao.quantization.prepare_qat(model)
    return prepared


def with_a_script() -> nn.Module:
    model = Float()
    model.conv1 = torch.jit.script(model.conv1)
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            quantised,
            "conv1 is a Conv2d: the network has been quantised, or prepared for it; compile the float",
        ),
        (with_a_script, "conv1 is a ScriptModule"),
        (ReadsTheInput, r"submodule=, --submodule NAME"),
    ],
)
def test_refusals_say_what_to_do(make: Callable[[], nn.Module], words: str) -> None:
    with pytest.raises(CaptureError, match=words):
        halved(make())


def test_hooks_on_layers_are_named_as_the_reason() -> None:
    model = Float()
    model.conv2.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    with pytest.raises(fxprune.errors.NothingPrunableError, match="forward hooks may do anything"):  # type: ignore[attr-defined]
        halved(model)


def test_numbers_of_numpy_can_be_written_as_source() -> None:
    model = Float()
    model.conv2 = nn.Conv2d(8, 12, tuple(np.array([3, 3])), padding=tuple(np.array([1, 1])))
    assert "np." not in str(halved(model).to_source().source)
