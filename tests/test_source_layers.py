"""The calls that make layers anew, values and long lines as text, and the names that a reader finds in a forward."""

from __future__ import annotations

import math
import operator
from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fxprune.emit.source_functions import Needs, function_text
from fxprune.emit.source_layers import layer_text
from fxprune.emit.source_names import Names
from fxprune.emit.source_text import WIDTH, SourceError, literal, subscript, wrapped

LAYERS: dict[str, Callable[[], nn.Module]] = {
    "nn.Conv2d(3, 8, 3, padding=1, bias=False)": lambda: nn.Conv2d(3, 8, 3, padding=(1, 1), bias=False),
    "nn.Conv2d(3, 8, (3, 5), stride=(1, 2))": lambda: nn.Conv2d(3, 8, (3, 5), stride=(1, 2)),
    'nn.Conv2d(4, 8, 3, padding="same", groups=2, padding_mode="circular")': lambda: nn.Conv2d(
        4, 8, 3, padding="same", groups=2, padding_mode="circular"
    ),
    "nn.Conv1d(3, 8, 3, dtype=torch.float64)": lambda: nn.Conv1d(3, 8, 3).double(),
    "nn.ConvTranspose2d(3, 8, 2, stride=2, output_padding=1)": lambda: nn.ConvTranspose2d(3, 8, 2, 2, 0, 1),
    "nn.Linear(3, 4, bias=False)": lambda: nn.Linear(3, 4, bias=False),
    "nn.Bilinear(3, 4, 5)": lambda: nn.Bilinear(3, 4, 5),
    "nn.Identity()": lambda: nn.Identity(7, some="thing"),
    "nn.BatchNorm2d(8, momentum=None, affine=False)": lambda: nn.BatchNorm2d(8, momentum=None, affine=False),
    "nn.BatchNorm1d(8, eps=0.001, track_running_stats=False)": lambda: nn.BatchNorm1d(
        8, 1e-3, track_running_stats=False
    ),
    "nn.LayerNorm(8, elementwise_affine=False)": lambda: nn.LayerNorm(8, elementwise_affine=False),
    "nn.LayerNorm((7, 7), bias=False)": lambda: nn.LayerNorm((7, 7), bias=False),
    "nn.GroupNorm(2, 8, affine=False)": lambda: nn.GroupNorm(2, 8, affine=False),
    "nn.RMSNorm(8)": lambda: nn.RMSNorm(8),
    "nn.InstanceNorm2d(8, affine=True)": lambda: nn.InstanceNorm2d(8, affine=True),
    "nn.LocalResponseNorm(5, alpha=0.1)": lambda: nn.LocalResponseNorm(5, alpha=0.1),
    "nn.MaxPool2d(3, stride=2, padding=1, ceil_mode=True)": lambda: nn.MaxPool2d(3, 2, 1, ceil_mode=True),
    "nn.AvgPool2d(2, divisor_override=3)": lambda: nn.AvgPool2d(2, divisor_override=3),
    "nn.AdaptiveAvgPool2d((1, None))": lambda: nn.AdaptiveAvgPool2d((1, None)),
    "nn.AdaptiveAvgPool2d((1, 1))": lambda: nn.AdaptiveAvgPool2d((1, 1)),
    'nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=True)': lambda: nn.Upsample(
        scale_factor=2, mode="bilinear", align_corners=True
    ),
    "nn.UpsamplingNearest2d(size=5)": lambda: nn.UpsamplingNearest2d(size=5),
    "nn.ReLU(inplace=True)": lambda: nn.ReLU(inplace=True),
    'nn.GELU(approximate="tanh")': lambda: nn.GELU("tanh"),
    "nn.Hardtanh(min_val=-2.0, max_val=2.0)": lambda: nn.Hardtanh(-2.0, 2.0),
    "nn.PReLU(num_parameters=3)": lambda: nn.PReLU(3),
    "nn.Softmax(dim=1)": lambda: nn.Softmax(dim=1),
    "nn.Flatten(start_dim=2)": lambda: nn.Flatten(2),
    "nn.Unflatten(1, (2, 4))": lambda: nn.Unflatten(1, (2, 4)),
    "nn.ConstantPad2d((1, 2, 0, 1), 0.5)": lambda: nn.ConstantPad2d((1, 2, 0, 1), 0.5),
    "nn.ZeroPad2d((1, 2, 3, 4))": lambda: nn.ZeroPad2d((1, 2, 3, 4)),
    "nn.ReflectionPad2d(1)": lambda: nn.ReflectionPad2d(1),
    "nn.PixelShuffle(2)": lambda: nn.PixelShuffle(2),
    "nn.ChannelShuffle(4)": lambda: nn.ChannelShuffle(4),
    "nn.Dropout2d(p=0.2)": lambda: nn.Dropout2d(0.2),
    "nn.Embedding(10, 3, padding_idx=0)": lambda: nn.Embedding(10, 3, padding_idx=0),
    "nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True)": lambda: nn.LSTM(
        3, 4, 2, batch_first=True, bidirectional=True
    ),
    "nn.GRU(3, 4, bias=False)": lambda: nn.GRU(3, 4, bias=False),
    "nn.MultiheadAttention(8, 2, batch_first=True)": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
    "nn.MultiheadAttention(8, 2, bias=False)": lambda: nn.MultiheadAttention(8, 2, bias=False),
}


@pytest.mark.parametrize("text", LAYERS)
def test_call_makes_an_equal_layer(text: str) -> None:
    layer = LAYERS[text]()
    assert layer_text("here", layer, False, Needs()) == text
    again = eval(text, {"nn": nn, "torch": torch})
    again.load_state_dict(layer.state_dict(), strict=True)
    assert {name: one.dtype for name, one in again.state_dict().items()} == {
        name: one.dtype for name, one in layer.state_dict().items()
    }
    assert repr(again) == repr(layer)


def test_masked_layer_is_of_a_class_of_its_own() -> None:
    needs = Needs()
    assert layer_text("a", nn.Conv2d(3, 8, 3), True, needs) == "MaskedConv2d(3, 8, 3)"
    assert needs.parts == {"MaskedConv2d"}
    with pytest.raises(SourceError, match="a is a Bilinear with a mask"):
        layer_text("a", nn.Bilinear(3, 4, 5), True, needs)


class Mixing(nn.Linear):
    def __init__(self, how_much: float) -> None:
        super().__init__(3, 3)
        self.amount = how_much


def changed(layer: nn.Module, **attributes: Any) -> nn.Module:
    for name, value in attributes.items():
        setattr(layer, name, value)
    return layer


@pytest.mark.parametrize(
    ("layer", "complaint"),
    [
        (changed(nn.Conv2d(4, 8, 3), transposed=True), "no call of Conv2d"),
        (changed(nn.BatchNorm2d(4), running_mean=torch.zeros(5)), "no call of BatchNorm2d"),
        (changed(nn.Linear(3, 3), weight=nn.Parameter(torch.zeros(3, 4))), "no call of Linear"),
        (changed(nn.ReLU(), inplace=torch.tensor(1.0)), "no call of ReLU"),
        (nn.utils.parametrizations.spectral_norm(nn.Linear(3, 3)), "parametrised weights of its own"),
        (nn.utils.spectral_norm(nn.Linear(3, 3)), "hooks"),
        (Mixing(0.5), "does not tell the argument 'how_much'"),
    ],
    ids=range(7),
)  # fmt: skip
def test_layer_that_no_call_makes_is_refused(layer: nn.Module, complaint: str) -> None:
    with pytest.raises(SourceError, match=complaint):
        layer_text("here", layer, False, Needs())


def test_numbers_that_no_state_dict_has_are_refused() -> None:
    layer = nn.Linear(3, 3)
    layer.register_buffer("table", torch.ones(3), persistent=False)
    with pytest.raises(SourceError, match="numbers that its state dict leaves out"):
        layer_text("here", layer, False, Needs())


# ---- values


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()
NESTS = st.recursive(
    PLAIN, lambda one: st.lists(one) | st.lists(one).map(tuple) | st.dictionaries(st.text() | st.integers(), one)
)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and math.isnan(left):
        return isinstance(right, float) and math.isnan(right)
    if isinstance(left, list | tuple):
        return type(left) is type(right) and len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    return type(left) is type(right) and bool(left == right)


@given(NESTS)
def test_plain_values_come_back(value: Any) -> None:
    assert same(value, eval(literal(value)))


@pytest.mark.parametrize(
    "value",
    [
        torch.float16, torch.channels_last, torch.strided, torch.device("cuda:1"), ..., slice(1, None, -2),
        torch.Size([2, 3]), (slice(None), ..., None, 3),
    ],
    ids=repr,
)  # fmt: skip
def test_values_of_torch_come_back(value: Any) -> None:
    assert eval(literal(value)) == value


Pair = namedtuple("Pair", "left right")


class Loud(int):
    def __repr__(self) -> str:
        return "__import__('os').system('true')"


@pytest.mark.parametrize("value", [Loud(3), object(), {1, 2}, Pair(1, 2), torch.zeros(1), print], ids=range(6))
def test_values_without_an_exact_text_are_refused(value: Any) -> None:
    with pytest.raises(SourceError, match="has no text"):
        literal([value])


@pytest.mark.parametrize("index", ["3", ":", "1:-2", "::2", "..., 1:3:2", "None, 0", "-1"])
def test_subscripts_are_written_as_they_are_read(index: str) -> None:
    class Index:
        def __getitem__(self, one: Any) -> Any:
            return one

    found = eval(f"Index()[{index}]", {"Index": Index})
    again = eval(f"Index()[{subscript(found, literal)}]", {"Index": Index})
    assert again == found and subscript(found, literal) == index.replace("None", "None")


@given(st.lists(st.text(max_size=8), max_size=30), st.integers(0, 5))
def test_long_statements_are_broken_and_mean_the_same(parts: list[str], depth: int) -> None:
    lines = wrapped(f"x = f({literal(parts)}, ({literal(tuple(parts))}), 3)", depth)
    found = eval("\n".join(lines).strip().removeprefix("x = "), {"f": lambda *args: args})
    assert found == (parts, tuple(parts), 3)
    assert all(len(line) <= WIDTH for line in lines)


# ---- functions


@pytest.mark.parametrize(
    ("function", "text"),
    [
        (torch.cat, "torch.cat"), (F.relu, "F.relu"), (torch.relu, "torch.relu"), (torch.conv2d, "F.conv2d"),
        (torch.functional.split, "torch.split"), (F.max_pool2d, "F.max_pool2d"), (torch._C._nn.gelu, "F.gelu"),
        (torch.special.expit, "torch.special.expit"), (operator.getitem, "operator.getitem"), (math.ceil, "math.ceil"),
        (max, "max"), (torch.ops.aten.relu.default, "torch.ops.aten.relu.default"),
        (torch.ops.aten.add, "torch.ops.aten.add"), (Pair, "Pair"),
    ],
    ids=range(14),
)  # fmt: skip
def test_functions_have_the_names_that_readers_know(function: Any, text: str) -> None:
    needs = Needs()
    assert function_text(function, needs) == text
    if not text.startswith("Pair"):
        assert eval(text, {"torch": torch, "F": F, "operator": operator, "math": math}) is function
    assert needs.packages == set()


@pytest.mark.parametrize(
    "function", [lambda x: x, torch.ops.profiler._record_function_enter_new.default, eval, getattr], ids=range(4)
)
def test_functions_that_have_none_are_refused(function: Any) -> None:
    if function is eval:
        needs = Needs()
        assert function_text(function, needs) == "eval" and needs.imports == {"from builtins import eval"}
        return
    with pytest.raises(SourceError):
        function_text(function, Needs())


# ---- names


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.first(x).relu())
        return torch.cat([x, y], 1).view(x.size(0), -1, x.size(2) * 2)


def test_a_stream_keeps_its_name_and_a_branch_has_that_of_its_block() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Sequential(Block()))
    graph = fx.Tracer().trace(model)
    names = Names(graph.nodes, {"model"})
    found = {node.name: names[node].name for node in graph.nodes if node.op != "output" and not names.inline(node)}
    branch = "_1_0_first"
    assert found == {
        "input_1": "input", "_0": "input", "_1_0_first": branch, "relu": branch, "_1_0_second": branch, "cat": branch,
        "size": "size", "size_1": "size_1", "view": branch,
    }  # fmt: skip
    assert [node.name for node in graph.nodes if names.inline(node)] == ["mul"]


def test_what_nobody_reads_any_more_is_forgotten() -> None:
    model = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)), nn.ReLU())
    graph = fx.Tracer().trace(model)
    for node in graph.nodes:
        if node.name == "_1":
            with graph.inserting_after(node):
                joined = graph.call_function(torch.cat, ([node, node.args[0]],))
            node.replace_all_uses_with(joined, delete_user_cb=lambda user, joined=joined: user is not joined)
    names = Names(graph.nodes)
    (joined,) = (node for node in graph.nodes if node.target is torch.cat)
    assert names[joined].dead and names[joined].name not in names[joined].dead
