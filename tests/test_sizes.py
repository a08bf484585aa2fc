"""Networks whose Python code asks for sizes while it is traced: one graph of torch.fx serves them all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune.capture.module import capture
from fxprune.program import materialise


class Net(nn.Module):
    """3 -> 8 channels, then `run`, then 8 -> 5."""

    def __init__(self, run: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.run = run
        self.a, self.norm, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.b(self.run(self.norm(self.a(x))))
        return out


def padded_to_a_multiple(x: Tensor) -> Tensor:
    missing = -x.shape[-1] % 4
    return F.pad(x, (0, missing)) if missing > 0 else x


def loop_over_rows(x: Tensor) -> Tensor:
    return torch.stack([x[:, :, row] * (row + 1) for row in range(x.shape[2])], dim=2)


def loop_over_pieces(x: Tensor) -> Tensor:
    return torch.cat([piece * number for number, piece in enumerate(x.chunk(3, 1), 1)], 1)


def resized_by_a_number(x: Tensor) -> Tensor:
    return F.interpolate(x, size=(int(x.shape[2] * 1.5), int(x.shape[3])))


def scaled_by_a_number(x: Tensor) -> Tensor:
    """The dense width stays what it is: it is a number, not a size."""
    return x / float(x.shape[1])


ASKING = [padded_to_a_multiple, loop_over_rows, loop_over_pieces, resized_by_a_number, scaled_by_a_number]


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("run", ASKING)
def test_one_graph_for_every_batch_size(run: Callable[[Tensor], Tensor]) -> None:
    net = Net(run).double().eval()
    with pytest.raises((TypeError, fx.proxy.TraceError, RuntimeError)):
        fx.symbolic_trace(net)
    program = capture(net, images())
    assert program.front_end == "fx" and program.train_graph is None
    graph = materialise(program.module, program.tensors)
    for batch in (1, 2, 5):
        assert torch.equal(graph(images(batch)), net(images(batch)))


@pytest.mark.parametrize("run", ASKING)
def test_cut_and_proved(run: Callable[[Tensor], Tensor]) -> None:
    done = fxprune.compile(Net(run).double(), images(), keep_rate=0.5, select="random", keep_weights=True)
    assert done.module.get_parameter("a.weight").shape[0] in (4, 5) and not done.report.refused


def test_an_answer_that_the_batch_size_decides_is_refused() -> None:
    net = Net(lambda x: x if x.shape[0] > 1 else x * 2).eval()
    assert capture(net, images().float()).front_end == "export"


def test_what_depends_on_values_is_no_size() -> None:
    with pytest.raises(fxprune.FxpruneError, match="is no size"):
        capture(Net(lambda x: x if x.sum() > 0 else -x), images().float())
