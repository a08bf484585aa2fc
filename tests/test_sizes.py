"""Networks whose Python code asks for sizes while it is traced: one graph of torch.fx serves them all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import fxprune
from fxprune.capture.module import capture
from fxprune.errors import CaptureError
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


def widened_with_zeros(x: Tensor) -> Tensor:
    """A shortcut to more channels (He et al. 2015, option A), made with torch.zeros from sizes."""
    b, c, h, w = x.size()
    return x + torch.cat([x[:, :6], torch.zeros(b, c - 6, h, w, dtype=x.dtype, device=x.device)], 1)


def shifted_in_place(x: Tensor) -> Tensor:
    """Temporal shift (Lin et al. 2019): parts of a new tensor are written one after the other."""
    fold = x.shape[1] // 4
    out = torch.zeros_like(x)
    out[:, :fold, :-1] = x[:, :fold, 1:]
    out[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
    out[:, 2 * fold :] = x[:, 2 * fold :]
    out[..., 0] = 0.5
    return out


def placed(x: Tensor) -> Tensor:
    """The pixels' places, from sizes."""
    rows, columns = torch.arange(x.size(2), dtype=x.dtype), torch.linspace(0, 1, x.size(3), dtype=x.dtype)
    return x + rows.view(-1, 1) * columns


def the_greatest_of(x: Tensor) -> Tensor:
    """A field of a named result, which torch.fx makes a node of late."""
    return torch.stack([x, -x], 1).max(1).values


ASKING = [
    padded_to_a_multiple, loop_over_rows, loop_over_pieces, resized_by_a_number, scaled_by_a_number,
    widened_with_zeros, shifted_in_place,
]  # fmt: skip
MAKING = [*ASKING, placed, the_greatest_of]


def images(batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))


@pytest.mark.parametrize("run", ASKING)
def test_plain_torch_fx_cannot_follow(run: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises((TypeError, fx.proxy.TraceError, RuntimeError)):
        fx.symbolic_trace(Net(run))


@pytest.mark.parametrize("run", MAKING)
def test_one_graph_for_every_batch_size(run: Callable[[Tensor], Tensor]) -> None:
    net = Net(run).double().eval()
    program = capture(net, images())
    assert program.front_end == "fx" and program.train_graph is None
    graph = materialise(program.module, program.tensors)
    for batch in (1, 2, 5):
        assert torch.equal(graph(images(batch)), net(images(batch)))


@pytest.mark.parametrize("run", MAKING)
def test_cut_and_proved(run: Callable[[Tensor], Tensor]) -> None:
    done = fxprune.compile(Net(run).double(), images(), keep_rate=0.5, select="random", keep_weights=True)
    assert done.module.get_parameter("a.weight").shape[0] in (4, 5) and not done.report.refused


def test_an_answer_that_the_batch_size_decides_is_refused() -> None:
    net = Net(lambda x: x if x.shape[0] > 1 else x * 2).eval()
    assert capture(net, images().float()).front_end == "export"


def test_what_depends_on_values_is_no_size() -> None:
    with pytest.raises(fxprune.FxpruneError, match="is no size"):
        capture(Net(lambda x: x if x.sum() > 0 else -x), images().float())


def test_random_numbers_of_the_network_are_drawn_each_time() -> None:
    """Shake-shake (Gastaldi 2017): its weights depend on the batch, and are no constants of the graph."""

    class Shaken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.left, self.right, self.b = (nn.Conv2d(i, o, 1) for i, o in ((3, 8), (8, 6), (8, 6), (6, 4)))

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            part = torch.rand(x.size(0), 1, 1, 1, dtype=x.dtype) if self.training else 0.5
            out: Tensor = self.b(part * self.left(x) + (1 - part) * self.right(x))
            return out

    done = fxprune.compile(Shaken().double(), images(), keep_rate=0.5)
    assert done.report.front_end == "fx" and not done.report.refused
    module = done.module.train()
    assert not torch.equal(module(images()), module(images()))
    assert torch.equal(module.eval()(images(3)), module(images(3)))


def test_a_parameter_is_asked_for_one_of_its_sizes() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.mix, self.b = nn.Conv2d(3, 8, 1), nn.Parameter(torch.rand(2, 8)), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            for row in range(self.mix.size(0)):
                x = x * self.mix[row].view(1, -1, 1, 1)
            out: Tensor = self.b(x)
            return out

    done = fxprune.compile(Mixed().double(), images(), keep_rate=0.5)
    assert done.report.front_end == "fx" and done.module.get_parameter("mix").shape == (2, 4)


def test_what_a_tensor_holds_without_gradients() -> None:
    """x.data.size() is an old way to ask for sizes; the written source has it in a form that may be read back."""
    shuffled = Net(lambda x: x.data.view(x.data.size(0), 2, 4, 8, 6).transpose(1, 2).flatten(1, 2)).double()
    done = fxprune.compile(shuffled, images(), keep_rate=0.5)
    assert done.report.front_end == "fx" and not done.report.refused
    assert ".data" not in done.to_source().source.text and ".detach()" in done.to_source().source.text


def test_asking_again_gets_the_same_answer() -> None:
    """The example does not fit this network. Its code asks again after it has caught the first answer."""
    asked: list[str] = []

    def stubborn(x: Tensor) -> Tensor:
        grid = x.view(7, 11, 13)
        for _ in range(2):
            try:
                int(grid.shape[0])
            except Exception as error:
                asked.append(str(error))
        return x

    with pytest.raises(CaptureError, match="does not run on the example input"):
        capture(Net(stubborn).double(), images())
    assert len(asked) >= 2 and all("cannot be worked out from shapes: shape '[7, 11, 13]'" in one for one in asked)
