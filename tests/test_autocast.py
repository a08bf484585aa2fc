"""A forward that enters torch.autocast is captured without the block, and that is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.capture.autocast import NOTE


class Cast(nn.Module):
    def __init__(self, **block: Any) -> None:
        super().__init__()
        self.a, self.b, self.block = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), block

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if not self.block:
            return self.b(x)
        with torch.autocast(**self.block):
            return self.b(x)


PICTURES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def halved(**block: Any) -> fxprune.Compiled:
    torch.manual_seed(0)
    return fxprune.compile(Cast(**block), PICTURES, keep_rate=0.5, select="first", keep_weights=True)


@pytest.mark.parametrize("block", [{"device_type": "cpu"}, {"device_type": "cpu", "enabled": False}])
def test_the_block_is_left_out_and_noted(block: dict[str, Any]) -> None:
    """bfloat16 rounds far more than the captured graph may differ by: the block plays no part in that comparison."""
    enter = torch.autocast.__enter__
    done, plain = halved(**block), halved()
    assert NOTE in done.report.notes and NOTE not in plain.report.notes and done.report.front_end == "fx"
    assert torch.autocast.__enter__ is enter
    with torch.no_grad():
        assert torch.equal(done.module(PICTURES), plain.module(PICTURES))
        with torch.autocast("cpu"):
            assert done.module(PICTURES).dtype == torch.bfloat16
