"""The zoo: counts against published and hand-derived numbers, and weights that depend on the seed and nothing else."""

from __future__ import annotations

import pickle
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from fxprune import zoo
from fxprune.errors import OptionError

EXPECTED_NAMES = [
    *("vgg11", "vgg13", "vgg16", "vgg19", "vgg11_nobias", "vgg13_nobias", "vgg16_nobias", "vgg19_nobias"),
    *("resnet8", "resnet20", "resnet32", "resnet56", "resnet8_a", "resnet20_a", "resnet32_a", "resnet56_a"),
    *("resnet50", "resnet50_3x3", "mobilenet10"),
]


class Counts(NamedTuple):
    """Sizes of a network; state_bytes counts the tensors only."""

    parameters: int
    prunable: int
    macs: int
    convs: int
    state_bytes: int


# name, classes, image size
COUNTS = {
    ("vgg11", 10, 32): Counts(9_231_114, 9_222_848, 152_769_536, 8, 36_946_536),
    ("vgg16", 10, 32): Counts(14_728_266, 14_715_584, 313_201_664, 13, 58_946_960),
    ("vgg19", 10, 32): Counts(20_040_522, 20_024_000, 398_136_320, 16, 80_206_248),
    ("resnet8", 10, 32): Counts(78_042, 77_360, 12_501_632, 9, 314_928),
    ("resnet20", 10, 32): Counts(272_474, 270_896, 40_813_184, 21, 1_096_336),
    ("resnet32", 10, 32): Counts(466_906, 464_432, 69_124_736, 33, 1_877_744),
    ("resnet56", 10, 32): Counts(855_770, 851_504, 125_747_840, 57, 3_440_560),
    ("resnet50", 1000, 64): Counts(25_557_032, 25_502_912, 335_691_776, 53, 102_441_032),
    ("resnet50", 200, 64): Counts(23_917_832, 23_864_512, 334_053_376, 53, 95_884_232),
    ("resnet50_3x3", 200, 64): Counts(23_910_152, 23_856_832, 5_191_647_232, 53, 95_853_512),
    ("resnet50", 1000, 224): Counts(25_557_032, 25_502_912, 4_089_184_256, 53, 102_441_032),
}
PARAMETERS = {
    "vgg11_nobias": 9_228_362,
    "vgg13": 9_416_010,
    "vgg16_nobias": 14_724_042,
    "vgg19_nobias": 20_035_018,
    "resnet8_a": 75_290,
    "resnet20_a": 269_722,
    "resnet32_a": 464_154,
    "resnet56_a": 853_018,
    "mobilenet10": 2_410_826,
}
# What the two projections of option B cost (16 -> 32 at 16x16, 32 -> 64 at 8x8); their BatchNorms also keep 192 running
# statistics and two int64 counters.
PROJECTIONS = Counts(2_752, 2_560, 262_144, 2, 4 * (2_752 + 192) + 16)


def count_macs(net: nn.Module, size: int) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        net(torch.empty(1, 3, size, size))
    return int(counter.get_total_flops()) // 2


def counts(net: nn.Module, size: int) -> Counts:
    layers = [module for module in net.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return Counts(
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        prunable=sum(layer.weight.numel() for layer in layers),
        macs=count_macs(net, size),
        convs=sum(isinstance(layer, nn.Conv2d) for layer in layers),
        state_bytes=sum(tensor.nbytes for tensor in net.state_dict().values()),
    )


def on_meta(name: str, num_classes: int | None = None) -> nn.Module:
    """The network as `build` gives it, eval mode, without its numbers."""
    return zoo.build(name, num_classes).to("meta").eval()


def state_bytes(net: nn.Module) -> dict[str, bytes]:
    return {name: tensor.numpy().tobytes() for name, tensor in net.state_dict().items()}


def global_draws() -> Tensor:
    """What the global generator would give next; leaves it where it was."""
    with torch.random.fork_rng(devices=[]):
        return torch.rand(8)


def test_names() -> None:
    assert zoo.names() == EXPECTED_NAMES


@pytest.mark.parametrize(("name", "num_classes", "size"), COUNTS)
def test_counts(name: str, num_classes: int, size: int) -> None:
    assert counts(on_meta(name, num_classes), size) == COUNTS[name, num_classes, size]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts(name: str) -> None:
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("depth", [8, 20, 32, 56])
def test_option_a_saves_two_projections(depth: int) -> None:
    found = counts(on_meta(f"resnet{depth}_a"), 32)
    saved = (b - a for b, a in zip(COUNTS[f"resnet{depth}", 10, 32], found, strict=True))
    assert Counts(*saved) == PROJECTIONS


@pytest.mark.parametrize(("depth", "biases"), [(11, 2_752), (16, 4_224), (19, 5_504)])
def test_vgg_without_biases_saves_only_them(depth: int, biases: int) -> None:
    full = COUNTS[f"vgg{depth}", 10, 32]
    expected = full._replace(parameters=full.parameters - biases, state_bytes=full.state_bytes - 4 * biases)
    assert counts(on_meta(f"vgg{depth}_nobias"), 32) == expected


def test_mobilenet_macs() -> None:
    found = counts(on_meta("mobilenet10"), 32)
    assert found.convs == 21
    assert round(found.macs / 1e6, 2) == 33.55


def test_resnet50_stride_sits_in_the_3x3() -> None:
    block = on_meta("resnet50").get_submodule("layer3.0")
    strides = [block.get_submodule(name).stride for name in ("conv1", "conv2", "conv3", "downsample.0")]
    assert strides == [(1, 1), (2, 2), (1, 1), (2, 2)]


@pytest.mark.parametrize("name", EXPECTED_NAMES)
def test_entry_runs_traces_and_pickles(name: str) -> None:
    entry = zoo.entry(name)
    net = zoo.build(name).eval()
    x = torch.randn(entry.input_shape, generator=torch.Generator().manual_seed(1))
    restored = pickle.loads(pickle.dumps(net))
    with torch.no_grad():
        y = net(x)
        assert y.shape == (1, entry.num_classes)
        assert y.isfinite().all() and y.std() > 0
        assert torch.equal(fx.symbolic_trace(net)(x), y)
    assert str(restored) == str(net)
    assert state_bytes(restored) == state_bytes(net)


def test_entries_describe_themselves() -> None:
    entries = [zoo.entry(name) for name in zoo.names()]
    assert [entry.name for entry in entries] == zoo.names()
    assert len({entry.description for entry in entries}) == len(entries)
    assert all("\n" not in entry.description for entry in entries)
    assert zoo.entry("resnet50").input_shape == (1, 3, 64, 64)
    assert zoo.entry("resnet20").input_shape == (1, 3, 32, 32)


def test_a_traced_network_serves_both_modes() -> None:
    net = zoo.build("resnet8")
    traced = fx.symbolic_trace(net)
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    before = net.state_dict()["bn1.running_mean"].clone()
    assert net.training
    traced(x)
    assert not torch.equal(net.state_dict()["bn1.running_mean"], before)
    assert torch.equal(traced.eval()(x), net.eval()(x))


def test_option_a_shortcut_keeps_every_second_pixel_and_adds_zeros() -> None:
    x = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    y = zoo.SubsampleAndPad(5)(x)
    assert y.shape == (2, 8, 2, 2)
    assert torch.equal(y[:, :3], x[:, :, ::2, ::2])
    assert not y[:, 3:].any()


@pytest.mark.parametrize("name", ["vgg11", "resnet8", "resnet8_a", "mobilenet10"])
def test_seed_decides_every_byte(name: str) -> None:
    torch.manual_seed(5)
    first = state_bytes(zoo.build(name, seed=3))
    torch.manual_seed(6)
    assert state_bytes(zoo.build(name, seed=3)) == first
    other = state_bytes(zoo.build(name, seed=4))
    drawn = [key for key, module in zoo.build(name).named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert all(other[f"{key}.weight"] != first[f"{key}.weight"] for key in drawn)
    assert other["fc.bias" if "fc.bias" in other else "classifier.bias"] not in first.values()


@pytest.mark.parametrize("name", ["vgg11", "resnet8", "mobilenet10"])
def test_global_generator_is_left_alone(name: str) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    expected = global_draws()
    zoo.build(name, seed=11)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(global_draws(), expected)


def test_initialisation() -> None:
    for module in zoo.build("vgg16").modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in = module.weight[0].numel()
            assert module.bias is not None
            assert module.weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.05)
            assert 0.5 < module.bias.abs().max().item() * fan_in**0.5 <= 1.0
        if isinstance(module, nn.BatchNorm2d):
            state = module.state_dict()
            assert all((state[name] == 1).all() for name in ("weight", "running_var"))
            assert not any(state[name].any() for name in ("bias", "running_mean", "num_batches_tracked"))


def test_depthwise_fan_in_is_nine() -> None:
    depthwise = [
        module for module in zoo.build("mobilenet10").modules() if isinstance(module, nn.Conv2d) and module.groups > 1
    ]
    assert len(depthwise) == 10
    assert all(conv.groups == conv.in_channels == conv.out_channels for conv in depthwise)
    assert depthwise[-1].weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.05)


def test_layers_of_one_shape_differ() -> None:
    # One generator restarted for each layer would give equal layers equal weights.
    convs = [module for module in zoo.build("vgg13").modules() if isinstance(module, nn.Conv2d)]
    alike = [conv for conv in convs if conv.in_channels == conv.out_channels == 512]
    assert len(alike) == 3
    for one, two in pairwise(alike):
        assert not torch.equal(one.weight, two.weight)
        assert one.bias is not None and two.bias is not None and not torch.equal(one.bias, two.bias)


def test_options_override_the_entry() -> None:
    assert state_bytes(zoo.build("vgg11", bias=False)) == state_bytes(zoo.build("vgg11_nobias"))
    assert state_bytes(zoo.build("resnet8", shortcut="a")) == state_bytes(zoo.build("resnet8_a"))
    assert zoo.build("resnet8", 7)(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [("vgg12", "vgg1"), ("resnet18", "resnet8"), ("VGG16", "vgg16"), ("mobilenet", "mobilenet10")],
)
def test_unknown_name_names_the_nearest(wrong: str, nearest: str) -> None:
    for ask in (zoo.build, zoo.entry):
        with pytest.raises(OptionError, match=f"no network '{wrong}'; did you mean .*{nearest}"):
            ask(wrong)


def test_unknown_name_without_neighbours_lists_all() -> None:
    with pytest.raises(OptionError, match="no network 'q'; it has vgg11, .*mobilenet10"):
        zoo.build("q")


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, "10", 2**31])
def test_wrong_num_classes(wrong: int) -> None:
    with pytest.raises(OptionError, match="num_classes is"):
        zoo.build("resnet8", wrong)


@pytest.mark.parametrize("wrong", [-1, 2**32, 1.5, True, None])
def test_wrong_seed(wrong: int) -> None:
    with pytest.raises(OptionError, match="seed is"):
        zoo.build("resnet8", seed=wrong)


def test_extreme_seeds_work() -> None:
    assert state_bytes(zoo.build("resnet8", seed=2**32 - 1)) != state_bytes(zoo.build("resnet8", seed=2**31 - 1))


def test_wrong_options() -> None:
    with pytest.raises(OptionError, match="resnet8 has no option 'bias'; it has: shortcut"):
        zoo.build("resnet8", bias=True)
    with pytest.raises(OptionError, match="mobilenet10 has no option 'width'; it has: none"):
        zoo.build("mobilenet10", width=2)
    with pytest.raises(OptionError, match=r"shortcut of resnet8 is 'c': choose from \('a', 'b'\)"):
        zoo.build("resnet8", shortcut="c")
    with pytest.raises(OptionError, match="has no option 'depth'"):
        zoo.build("vgg11", depth=16)
