"""Constructs that networks of other libraries are made of, one small network for each."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from families import randomise
from small_network import ReadsTheInput, Small, X, check_exact, halved
from torch import Tensor, nn

import fxprune
from fxprune.errors import CaptureError

# -- numbers that are read out of tensors ----------------------------------------------------------------------------


class ReadsItsStride(Small):
    """A plain tensor on the module, one number of which fills another tensor, as anchors of detectors are made."""

    def __init__(self) -> None:
        super().__init__()
        self.strides = torch.tensor([8.0, 16.0])
        self.register_buffer("offset", torch.tensor(0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x)
        grid = y.new_full((1, 1, 1, 1), self.strides[1].item())
        return self.scores(y * grid + y.new_full((1,), self.offset.item()))


class ReadsAParameter(Small):
    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.features(x) * float(self.gain))


def test_numbers_of_buffers_and_constants_are_known() -> None:
    done = check_exact(ReadsItsStride(), X)
    assert done.report.after.parameters < 0.5 * done.report.before.parameters
    (note,) = [note for note in done.report.notes if "are fixed" in note]
    assert "strides" in note and "offset" in note


@pytest.mark.parametrize("make", [ReadsAParameter, ReadsTheInput])
def test_numbers_that_may_change_are_refused(make: Callable[[], nn.Module]) -> None:
    """Training changes a parameter, and every input is another one."""
    with pytest.raises(CaptureError, match="cannot be captured"):
        halved(make())


# -- arguments -------------------------------------------------------------------------------------------------------


class AnyArguments(Small):
    def forward(self, *images: Tensor) -> Tensor:
        return self.scores(sum(self.features(one) for one in images))  # type: ignore[arg-type]


def test_any_number_of_arguments_and_any_batch_size() -> None:
    """One tensor given twice is two arguments."""
    done = halved(AnyArguments(), (X, X))
    assert done.program.dynamic_batch
    assert done.module.eval()(X[:1], X[1:]).shape == (1, 5)


class WritesIntoItsList(Small):
    """Pathways of a video network are replaced in the list that came in, one by one."""

    def forward(self, paths: list[Tensor]) -> Tensor:
        assert isinstance(paths, list)
        for number in range(len(paths)):
            paths[number] = self.features(paths[number])
        return self.scores(paths[0] + paths[1])


def test_what_a_network_does_to_its_arguments_is_not_seen_by_the_next_run() -> None:
    given = [X, X.clone()]
    assert halved(WritesIntoItsList(), (given,)).module.eval()([X, X]).shape == (2, 5)
    assert given[0] is X


class TriesAnotherCall(Small):
    """Layers are called with an argument that only some of them take."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in (self.conv1, self.conv2):
            try:
                x = layer(x, lengths=None)
            except TypeError:
                x = layer(x)
        return self.scores(x)


def test_a_call_that_does_not_fit_raises_while_tracing() -> None:
    assert check_exact(TriesAnotherCall(), X).report.front_end == "fx"


class KeepsWhatItSaw(Small):
    """Attributes are written in forward and read again, as normalising layers do with their means."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean.type_as(x)
        y = self.features(x - self.mean)
        return self.scores(y if self.training else y * 2)


def test_attributes_that_forward_writes_are_as_before_in_the_next_trace() -> None:
    model = KeepsWhatItSaw()
    assert halved(model).report.front_end == "fx"
    assert model.mean.shape == (1, 3, 1, 1)


class SaysHowLong(Small):
    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(16, 12, 3)

    def features(self, x: Tensor) -> Tensor:
        y = self.conv1(x).repeat_interleave(2, dim=1, output_size=16)
        out: Tensor = self.conv2(y).relu()
        return out

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.features(x))


def test_a_length_that_is_said_beforehand_follows_the_cut() -> None:
    assert check_exact(SaysHowLong(), X).module.get_parameter("conv1.weight").shape[0] == 4


class CallsInTrainingOnly(Small):
    """What training calls, inference reads the weights of, as layers do that are folded into one for inference."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(x) if self.training else F.conv2d(x, self.conv1.weight, self.conv1.bias)
        return self.scores(self.conv2(y.relu()).relu())


def test_a_layer_that_one_mode_calls_and_the_other_reads() -> None:
    done = check_exact(CallsInTrainingOnly(), X)
    assert done.report.front_end == "fx" and done.module.train()(X.double()).shape == (2, 5)
    assert done.module.get_parameter("conv1.weight").shape[0] == 4


# -- modes of networks that torch.fx cannot follow -------------------------------------------------------------------


class StandardisesByBatchNorm(Small):
    """The statistics of a weight are those of a batch norm that has none of its own, in either mode."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.conv2.weight
        flat = F.batch_norm(weight.reshape(1, len(weight), -1), None, None, training=True)
        y = F.conv2d(self.conv1(x).relu(), flat.reshape_as(weight), self.conv2.bias)
        return self.scores(y if x.shape[0] > 1 else y * 2)


class DropsMaps(Small):
    def __init__(self) -> None:
        super().__init__()
        self.drop, self.norm = nn.Dropout2d(0.5), nn.InstanceNorm2d(12, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.drop(self.features(x)))
        return self.scores(y if x.shape[0] > 1 else y * 2)


class ThrowsItsOwnNoise(Small):
    """Noise and a window are made in forward, on the device of the moment: none while shapes are worked out."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.features(x) + torch.randn((1, 12, 1, 1), generator=None) * torch.hann_window(4)[2]
        return self.scores(y if x.shape[0] > 1 else y * 2)


def test_tensors_that_forward_makes_from_nothing() -> None:
    assert halved(ThrowsItsOwnNoise()).report.front_end == "export"


def test_batch_norms_of_weights_are_no_batch_norms_of_pictures() -> None:
    done = fxprune.compile(randomise(StandardisesByBatchNorm()), X, keep_rate=0.5, approximate="cut")
    assert done.report.front_end == "export" and done.report.proof_error is not None
    assert done.module.get_parameter("conv1.weight").shape[0] == 4


def test_dropout_of_maps_and_running_statistics_come_back_in_training() -> None:
    done = halved(randomise(DropsMaps()))
    assert done.report.front_end == "export"
    network, before = done.module.eval(), done.module.get_buffer("norm.running_mean").clone()
    assert torch.equal(network(X), network(X))
    assert not torch.equal(network.train()(X), network(X))
    assert not torch.equal(network.get_buffer("norm.running_mean"), before)


# -- pooling along channels ------------------------------------------------------------------------------------------


class PoolsTheHeight(nn.Module):
    """Columns of a picture become a sequence; channels lie where pooling expects the height, and are not pooled."""

    def __init__(self, pool: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.head, self.pool = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 5), pool

    def forward(self, x: Tensor) -> Tensor:
        columns = self.pool(self.conv(x).relu().permute(0, 3, 1, 2))
        out: Tensor = self.head(columns.squeeze(3))
        return out


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "adaptive": nn.AdaptiveAvgPool2d((None, 1)),
    "adaptive, written down": nn.AdaptiveAvgPool2d((12, 1)),
    "adaptive function": lambda y: F.adaptive_avg_pool2d(y, [12, 1]),
    "adaptive maximum": nn.AdaptiveMaxPool2d((None, 1)),
    "window": nn.MaxPool2d((1, 8)),
    "mean of a window": nn.AvgPool2d((1, 8), stride=(1, 8)),
}


@pytest.mark.parametrize("name", POOLS)
def test_channels_that_are_not_pooled_can_go(name: str) -> None:
    done = check_exact(PoolsTheHeight(POOLS[name]), X)
    assert done.module.get_parameter("conv.weight").shape[0] == 6


@pytest.mark.parametrize("pool", [nn.MaxPool2d((3, 8), stride=(1, 8), padding=(1, 0)), nn.AvgPool2d((2, 8))])
def test_channels_that_are_pooled_stay(pool: nn.Module) -> None:
    with pytest.raises(fxprune.errors.NothingPrunableError, match="every entry along this dimension"):  # type: ignore[attr-defined]
        halved(PoolsTheHeight(pool) if pool.stride == (1, 8) else PoolsPairs(pool))


class PoolsPairs(PoolsTheHeight):
    def forward(self, x: Tensor) -> Tensor:
        y = self.pool(self.conv(x).relu().permute(0, 3, 1, 2)).squeeze(3)
        out: Tensor = self.head(y.repeat_interleave(2, 2))
        return out
