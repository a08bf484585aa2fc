"""The networks of the two papers fxprune implements, with weights drawn from a seed.

Reconvene (Eccles, Wong, Varghese, CCGrid 2024, arXiv 2404.16877) prunes VGGs for CIFAR-10 and a ResNet-50 for Tiny
ImageNet; channel redistribution (Qi et al., 2021) prunes VGG-16, CIFAR ResNets, ResNet-50 and a MobileNet of ten
blocks. Details neither gives follow open_lth (conv biases in VGG, option B shortcuts, Kaiming fan-in), save that
BatchNorm weights start at 1 and not in U[0, 1). Parameters and buffers of ResNet-50 carry torchvision's names.
"""

from __future__ import annotations

import difflib
import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.errors import OptionError

_VGG = {
    11: "64 M 128 M 256 256 M 512 512 M 512 512",
    13: "64 64 M 128 128 M 256 256 M 512 512 M 512 512",
    16: "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512",
    19: "64 64 M 128 128 M 256 256 256 256 M 512 512 512 512 M 512 512 512 512",
}
_CIFAR_RESNETS = (8, 20, 32, 56)
_MOBILE_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1), (512, 1), (1024, 2), (1024, 1))
_CHOICES: dict[str, tuple[object, ...]] = {"bias": (True, False), "shortcut": ("a", "b"), "stem": ("7x7", "3x3")}


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    input_shape  the input it was made for, (batch, channels, height, width)
    num_classes  outputs when none are asked for
    make         make(num_classes, **options) -> network with torch's own initialisation; `build` draws the weights
    """

    name: str
    input_shape: tuple[int, int, int, int]
    num_classes: int
    description: str
    make: Callable[..., nn.Module]


def names() -> list[str]:
    """Every name that `build` knows, family by family."""
    return list(_ENTRIES)


def entry(name: str) -> Entry:
    """The entry of this name. Raises OptionError, naming the nearest names, when there is none."""
    if name in _ENTRIES:
        return _ENTRIES[name]
    near = difflib.get_close_matches(str(name).lower(), _ENTRIES, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(_ENTRIES)}"
    raise OptionError(f"the zoo has no network {name!r}; {hint}")


def build(name: str, num_classes: int | None = None, seed: int = 0, **options: object) -> nn.Module:
    """A network of the zoo on the CPU, in train mode. The same arguments give the same bytes.

    num_classes  outputs; None means the entry's own
    seed         of the generator all weights come from, in [0, 2**32); torch's global one is neither read nor advanced
    options      bias=True/False for VGGs, shortcut="a"/"b" for CIFAR ResNets, stem="7x7"/"3x3" for ResNet-50

    Conv and linear weights are Kaiming normal (fan-in, gain sqrt 2), their biases uniform within 1/sqrt(fan-in), as in
    open_lth; BatchNorm starts at weight 1, bias 0. Raises OptionError for an unknown name, option or value.
    """
    chosen = entry(name)
    classes = chosen.num_classes if num_classes is None else num_classes
    _check_integer("num_classes", classes, 1, 2**31)
    _check_integer("seed", seed, 0, 2**32)  # torch's CPU generator ignores higher bits: two such seeds could be equal
    _check_options(chosen, options)
    with torch.device("meta"):  # the layers' constructors would draw from the global generator
        net = chosen.make(classes, **options)
    return _draw(net.to_empty(device="cpu"), seed)


def _check_integer(what: str, value: object, low: int, end: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < end:
        raise OptionError(f"{what} is {value!r}: give an integer from {low} up to, not including, {end}")


def _check_options(chosen: Entry, options: dict[str, object]) -> None:
    parameters = inspect.signature(chosen.make).parameters.values()
    known = [parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY]
    for option, value in options.items():
        if option not in known:
            raise OptionError(f"{chosen.name} has no option {option!r}; it has: {', '.join(known) or 'none'}")
        if value not in _CHOICES[option]:
            raise OptionError(f"option {option} of {chosen.name} is {value!r}: choose from {_CHOICES[option]}")


@torch.no_grad()
def _draw(net: nn.Module, seed: int) -> nn.Module:
    generator = torch.Generator("cpu").manual_seed(seed)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        if isinstance(module, nn.Conv2d | nn.Linear):
            _draw_layer(module, generator)
    return net


def _draw_layer(layer: nn.Conv2d | nn.Linear, generator: torch.Generator) -> None:
    nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu", generator=generator)
    if layer.bias is not None:
        bound = layer.weight[0].numel() ** -0.5
        nn.init.uniform_(layer.bias, -bound, bound, generator=generator)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=bias)


def _conv_bn_relu(inputs: int, outputs: int, stride: int = 1, bias: bool = False) -> list[nn.Module]:
    return [_conv(inputs, outputs, 3, stride, bias=bias), nn.BatchNorm2d(outputs), nn.ReLU()]


def _pooled_head(width: int, num_classes: int) -> dict[str, nn.Module]:
    return {"avgpool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(width, num_classes)}


def vgg(depth: int, num_classes: int, *, bias: bool = True) -> nn.Sequential:
    """VGG for 32x32 images, one linear layer. open_lth has a bias in front of BatchNorm, most other code has none."""
    layers: list[nn.Module] = []
    width = 3
    for item in _VGG[depth].split():
        if item == "M":
            layers.append(nn.MaxPool2d(2))
            continue
        layers += _conv_bn_relu(width, int(item), bias=bias)
        width = int(item)
    parts = {"features": nn.Sequential(*layers), "avgpool": nn.AvgPool2d(2), "flatten": nn.Flatten()}
    return nn.Sequential(OrderedDict(**parts, classifier=nn.Linear(width, num_classes)))


class BasicBlock(nn.Module):
    """Two 3x3 convs and a shortcut (He et al., 2016). (N, inputs, H, W) -> (N, width, H / stride, W / stride)."""

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.downsample(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 with the stride (torchvision's way), 1x1 to four times the width, and a shortcut (He et al., 2016).

    (N, inputs, H, W) -> (N, 4 * width, H / stride, W / stride).
    """

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module) -> None:
        super().__init__()
        self.conv1 = _conv(inputs, width, 1)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, 4 * width, 1)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        return F.relu(self.bn3(self.conv3(out)) + self.downsample(x))


class SubsampleAndPad(nn.Module):
    """Option A shortcut: every second pixel, zeros as new last channels. (N, C, H, W) -> (N, C + extra, H/2, W/2)."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.extra = extra

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.extra))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))


def _basic_stage(inputs: int, width: int, blocks: int, shortcut: str) -> nn.Sequential:
    if inputs == width:
        first = BasicBlock(inputs, width, 1, nn.Identity())
    else:
        reshaped = SubsampleAndPad(width - inputs) if shortcut == "a" else _projection(inputs, width, 2)
        first = BasicBlock(inputs, width, 2, reshaped)
    return nn.Sequential(first, *(BasicBlock(width, width, 1, nn.Identity()) for _ in range(blocks - 1)))


def resnet(depth: int, num_classes: int, *, shortcut: str = "b") -> nn.Sequential:
    """ResNet of depth 6n + 2 for 32x32 images. Where the shape changes the shortcut is "b", 1x1 conv and BatchNorm, or
    "a", subsampling and zero channels without parameters (He et al., 2016, and most pruning papers)."""
    blocks = (depth - 2) // 6
    parts = OrderedDict[str, nn.Module](conv1=_conv(3, 16, 3), bn1=nn.BatchNorm2d(16), relu=nn.ReLU())
    for index, (inputs, width) in enumerate(pairwise((16, 16, 32, 64)), 1):
        parts[f"layer{index}"] = _basic_stage(inputs, width, blocks, shortcut)
    return nn.Sequential(parts | _pooled_head(64, num_classes))


def _bottleneck_stage(inputs: int, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(inputs, width, stride, _projection(inputs, 4 * width, stride))
    return nn.Sequential(first, *(Bottleneck(4 * width, width, 1, nn.Identity()) for _ in range(blocks - 1)))


def resnet50(num_classes: int, *, stem: str = "7x7") -> nn.Sequential:
    """ResNet-50. Stem "7x7": stride 2 and max-pool, as for ImageNet; "3x3": stride 1, no pool, as in SynFlow's code."""
    conv1 = _conv(3, 64, 7, 2) if stem == "7x7" else _conv(3, 64, 3)
    parts = OrderedDict[str, nn.Module](conv1=conv1, bn1=nn.BatchNorm2d(64), relu=nn.ReLU())
    if stem == "7x7":
        parts["maxpool"] = nn.MaxPool2d(3, stride=2, padding=1)
    stages = ((64, 64, 3, 1), (256, 128, 4, 2), (512, 256, 6, 2), (1024, 512, 3, 2))
    for index, (inputs, width, blocks, stride) in enumerate(stages, 1):
        parts[f"layer{index}"] = _bottleneck_stage(inputs, width, blocks, stride)
    return nn.Sequential(parts | _pooled_head(2048, num_classes))


def _separable(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
    depthwise = [_conv(inputs, inputs, 3, stride, groups=inputs), nn.BatchNorm2d(inputs), nn.ReLU()]
    return [*depthwise, _conv(inputs, outputs, 1), nn.BatchNorm2d(outputs), nn.ReLU()]


def mobilenet10(num_classes: int) -> nn.Sequential:
    """Ten separable blocks for 32x32 images. Qi et al. give no widths: this has 33.55 M MACs, theirs 29.7 M."""
    layers = _conv_bn_relu(3, 32)
    width = 32
    for outputs, stride in _MOBILE_BLOCKS:
        layers += _separable(width, outputs, stride)
        width = outputs
    return nn.Sequential(OrderedDict(features=nn.Sequential(*layers), **_pooled_head(width, num_classes)))


def _entries() -> Iterator[Entry]:
    small, tiny_imagenet = (1, 3, 32, 32), (1, 3, 64, 64)
    for text, mark, bias in (("conv biases on", "", True), ("no conv biases", "_nobias", False)):
        for depth in _VGG:
            yield Entry(f"vgg{depth}{mark}", small, 10, f"VGG-{depth}, {text}", partial(vgg, depth, bias=bias))
    for text, mark, shortcut in (("1x1 conv (option B)", "", "b"), ("zero-padded (option A)", "_a", "a")):
        for depth in _CIFAR_RESNETS:
            make = partial(resnet, depth, shortcut=shortcut)
            yield Entry(f"resnet{depth}{mark}", small, 10, f"ResNet-{depth}, {text} shortcuts", make)
    for text, mark, stem in (("7x7 stem and max-pool", "", "7x7"), ("3x3 stem, no max-pool", "_3x3", "3x3")):
        yield Entry(f"resnet50{mark}", tiny_imagenet, 200, f"ResNet-50, {text}", partial(resnet50, stem=stem))
    yield Entry("mobilenet10", small, 10, "MobileNet-like, ten depthwise and point-wise blocks", mobilenet10)


_ENTRIES = {made.name: made for made in _entries()}
