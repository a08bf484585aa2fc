"""Calls that torch.fx alone cannot record: einops, questions about shapes, modules of the moment, writes."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any, Optional

import pytest
import torch
import torch.nn.functional as F
from einops import einops, rearrange, reduce, repeat
from einops.layers.torch import Rearrange
from small_network import Small, X, check_exact
from torch import Tensor, nn
from torch.autograd import Variable

import fxprune

BY_RANK = {4: 2.0, 3: 3.0}


class Net(Small):
    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.middle = middle
        self.register_buffer("order", torch.arange(11, -1, -1))
        self.register_buffer("window", torch.ones(1, 1, 3, 3) / 9)
        self.same = nn.Conv2d(12, 12, 1)
        self.unfold, self.plain = Rearrange("b c (h p) w -> b c h (p w)", p=2), [nn.Hardtanh(0.0, 4.0)]

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.middle(self, self.features(x)))


def rearranged(_: Any, x: Tensor) -> Tensor:
    tokens = rearrange(x, "b c h w -> b (h w) c")
    return rearrange(tokens * tokens.sigmoid(), "b (h w) c -> b c h w", h=x.shape[2])


def reduced(_: Any, x: Tensor) -> Tensor:
    return x * repeat(reduce(x, "b c h w -> b c", "mean"), "b c -> b c h w", h=4, w=4)


def grouped(_: Any, x: Tensor) -> Tensor:
    return rearrange(x, "b (g c) h w -> b (c g) h w", g=3)


def layer_of_einops(net: Any, x: Tensor) -> Tensor:
    found: Tensor = net.unfold(x)
    return found


def looked_up_by_rank(_: Any, x: Tensor) -> Tensor:
    return x * BY_RANK[x.ndim] * len(x.shape)


def asked_for_its_type(_: Any, x: Tensor) -> Tensor:
    return x.float() if "Half" in x.type() else x.tanh()


def counted(net: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, net.window.expand(12, 1, 3, 3), groups=12) if len(net.window.shape) == 4 else x


def made_at_the_call(_: Any, x: Tensor) -> Tensor:
    found: Tensor = nn.ZeroPad2d(1)(nn.Sequential(nn.Hardswish(), nn.MaxPool2d(2))(x))
    return found


def wrapped_at_the_call(net: Any, x: Tensor) -> Tensor:
    found: Tensor = nn.Sequential(net.same, nn.ReLU())(x)
    return found


def kept_in_a_list(net: Any, x: Tensor) -> Tensor:
    found: Tensor = net.plain[0](x)
    return found


def as_variables(net: Any, x: Tensor) -> Tensor:
    return Variable(x).index_select(1, Variable(net.order))


def as_tensors(_: Any, x: Tensor) -> Tensor:
    return torch.as_tensor(x) * torch.as_tensor(x.shape[2] / 2)


def asked_whether_it_is_a_tensor(_: Any, x: Tensor) -> Tensor:
    both = torch.is_tensor(x) and torch.jit.isinstance(x, Optional[Tensor])  # noqa: UP045 (what TorchScript reads)
    return x * 2 if both and not torch.is_tensor(x.shape[0]) else x.new_zeros(2, 1, 1, 1)


def written_into(_: Any, x: Tensor) -> Tensor:
    x.data = x * 2
    return x


MIDDLES = [
    rearranged, reduced, grouped, layer_of_einops, looked_up_by_rank, asked_for_its_type, counted, made_at_the_call,
    wrapped_at_the_call, kept_in_a_list, as_variables, as_tensors, asked_whether_it_is_a_tensor, written_into,
]  # fmt: skip


@pytest.mark.parametrize("middle", MIDDLES)
def test_traced_and_cut(middle: Callable[[Any, Tensor], Tensor]) -> None:
    done = check_exact(Net(middle), X)
    assert done.report.front_end == "fx" and done.program.dynamic_batch
    assert done.report.after.parameters < 0.6 * done.report.before.parameters
    assert done.to_source().difference < 1e-9


def test_einops_forgets_proxies() -> None:
    table = einops.get_backend.__globals__["_type2backend"]
    before = dict(table)
    fxprune.explain(Net(rearranged), X)
    assert set(table) - set(before) <= {Tensor}


class Merges(nn.Module):
    """In inference the weights of one convolution are those of two, each time anew (as in SPAN)."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow, self.merged = (nn.Conv2d(3, 8, size, padding=size // 2) for size in (3, 1, 3))
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.out(self.wide(x) + self.narrow(x))  # type: ignore[no-any-return]
        self.merged.weight.data = self.wide.weight.data + F.pad(self.narrow.weight.data, [1, 1, 1, 1])
        self.merged.bias.data = self.wide.bias.data + self.narrow.bias.data  # type: ignore[union-attr]
        return self.out(self.merged(x))  # type: ignore[no-any-return]


@pytest.mark.parametrize("keep_weights", [False, True])
def test_weights_that_inference_derives_follow_training(keep_weights: bool) -> None:
    torch.manual_seed(0)
    network = fxprune.compile(Merges(), X, keep_rate=0.5, keep_weights=keep_weights).module
    with torch.no_grad():
        for name, one in network.named_parameters():
            one.mul_(1.0 if "merged" in name else 1.5)
        torch.testing.assert_close(network.eval()(X), network.train()(X))


class WritesIntoItsInput(Small):
    def forward(self, x: Tensor) -> Tensor:
        x *= 255
        return self.scores(self.features(x)) / 255


def test_what_a_network_does_to_its_input_is_not_seen_by_the_other(tmp_path: Any) -> None:
    example = X.clone()
    done = fxprune.compile(WritesIntoItsInput(), example, keep_rate=0.5)
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    assert torch.equal(example, X)
    assert done.to_onnx(tmp_path / "net.onnx").difference < 1e-4


class OldSpectralNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        norm = torch.nn.utils.spectral_norm
        self.conv, self.head = norm(nn.Conv2d(3, 8, 3)), norm(nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.conv(x).relu().mean((2, 3)))
        return found


def test_weights_that_were_normalised_are_loaded_and_exported(tmp_path: Any) -> None:
    model = OldSpectralNorm()
    model.train()(X)
    done = fxprune.compile(model.eval(), X, keep_rate=0.5, keep_weights=True)
    done.module.load_state_dict(done.module.state_dict())
    assert done.to_onnx(tmp_path / "net.onnx").difference < 1e-4
    assert "conv.weight_orig" in model.state_dict()


class Quantises(Small):
    """A division of whole numbers gives floats of the default type, which is not that of the proof."""

    def forward(self, x: Tensor) -> Tensor:
        levels = self.features(x).mul(16).round().to(torch.int32)
        return self.scores(levels / 16 + torch.arange(3).sum() / 3)


def test_whole_numbers_are_divided_in_the_proof() -> None:
    done = fxprune.compile(Quantises(), X, keep_rate=0.5, keep_weights=True)
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    assert torch.get_default_dtype() is torch.float32


class MovesItsMean(Small):
    """As super-resolution networks do: a plain tensor takes the type of the picture at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.mean = self.mean.type_as(x)
        size = (x.shape[2], x.shape[3])
        y = self.features(x - self.mean)
        return self.scores(y if size == (8, 8) else y * 2)


def test_attributes_that_forward_replaces_are_read_as_they_were() -> None:
    done = check_exact(MovesItsMean(), X)
    assert done.report.front_end == "fx"


class ListsOrTensors(Small):
    """Takes the branch for tensors, as torch.fx alone does not."""

    def forward(self, x: Any) -> Tensor:
        parts = [x] if isinstance(x, Tensor) else list(x)
        y = torch.cat([self.features(one) for one in parts])
        return self.scores(y if isinstance(y.shape[2], int) and not isinstance(y, list | tuple) else y * 0)


def test_isinstance_answers_where_a_trace_fails_without() -> None:
    done = check_exact(ListsOrTensors(), X)
    assert done.report.front_end == "fx" and done.program.dynamic_batch
    assert isinstance is vars(builtins)["isinstance"] and isinstance.__module__ == "builtins"
