"""What the proof compares: its reference follows channels that no dimension carries by itself."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import fxprune


def test_a_norm_over_channels_of_features_in_rows() -> None:
    """Features of a linear layer become channels and pixels: a norm's parameters follow what survives of channels,
    though no pixel and no channel has labels of its own.
    """

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features, self.norm = nn.Linear(12, 16), nn.LayerNorm(4)
            self.c, self.fc = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = self.features(x.flatten(1)).view(-1, 4, 2, 2)
            return self.c(x), self.fc(self.norm(x.movedim(1, -1)).mean((1, 2)))

    done = fxprune.compile(
        Net(), torch.zeros(2, 3, 2, 2), keep_rate=0.5, select="random", keep_weights=True, approximate="cut",
        retry=False, seed=1,
    )  # fmt: skip
    error = done.report.proof_error
    assert error is not None and error <= 1e-9 and tuple(done.module.get_parameter("norm.weight").shape) == (2,)
