"""What the cut network costs is what its widths imply: sums written out here, apart from everything in fxprune."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import nn

from fxprune import zoo
from fxprune.capture.zoo_imports import import_torchvision
from fxprune.errors import LoadError
from fxprune.learner import StructureLearner


class Layer(NamedTuple):
    """A convolution without bias and the batch normalisation behind it. `size`: pixels along one side of its output."""

    name: str
    inputs: int
    outputs: int
    kernel: int
    size: int
    depthwise: bool = False

    def parameters(self) -> int:
        return self.outputs * (1 if self.depthwise else self.inputs) * self.kernel**2 + 2 * self.outputs

    def macs(self) -> int:
        return self.outputs * (1 if self.depthwise else self.inputs) * self.kernel**2 * self.size**2


Widths = Mapping[str, int]


def basic(depth: int, learned: Widths) -> Iterator[Layer]:
    """ResNet for CIFAR: the first convolution of each block is learned."""
    yield Layer("conv1", 3, 16, 3, 32)
    for stage, (before, width) in enumerate(pairwise((16, 16, 32, 64)), 1):
        size = 64 >> stage
        for block in range((depth - 2) // 6):
            name, inputs = f"layer{stage}.{block}", before if block == 0 else width
            inner = learned[f"{name}.conv1"]
            yield Layer(f"{name}.conv1", inputs, inner, 3, size)
            yield Layer(f"{name}.conv2", inner, width, 3, size)
            if inputs != width:
                yield Layer(f"{name}.downsample.0", inputs, width, 1, size)


def bottleneck(learned: Widths) -> Iterator[Layer]:
    """ResNet-50 on 64 x 64 pixels: the first two convolutions of each block are learned; the second has the stride."""
    yield Layer("conv1", 3, 64, 7, 32)
    for stage, blocks in enumerate((3, 4, 6, 3), 1):
        width, size = 64 << (stage - 1), 32 >> stage
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            inputs = 4 * width if block else max(64, 2 * width) if stage > 1 else 64
            first, second = learned[f"{name}.conv1"], learned[f"{name}.conv2"]
            yield Layer(f"{name}.conv1", inputs, first, 1, 2 * size if stage > 1 and not block else size)
            yield Layer(f"{name}.conv2", first, second, 3, size)
            yield Layer(f"{name}.conv3", second, 4 * width, 1, size)
            if not block:
                yield Layer(f"{name}.downsample.0", inputs, 4 * width, 1, size)


def chain(learned: Widths) -> Iterator[Layer]:
    """VGG-16 without biases: all is learned. Places of the convolutions within `features`, pooling counted."""
    before, place, size = 3, 0, 32
    for convolutions in (2, 2, 3, 3, 3):
        for _ in range(convolutions):
            width = learned[f"features.{place}"]
            yield Layer(f"features.{place}", before, width, 3, size)
            before, place = width, place + 3
        place, size = place + 1, size // 2


def separable(learned: Widths) -> Iterator[Layer]:
    """The MobileNet-like network: a depthwise convolution is as wide as what it reads."""
    yield Layer("features.0", 3, 32, 3, 32)
    before, size = 32, 32
    for block, (_, stride) in enumerate(zoo._MOBILE_BLOCKS):
        size //= stride
        width = learned[f"features.{6 + 6 * block}"]
        yield Layer(f"features.{3 + 6 * block}", before, before, 3, size, depthwise=True)
        yield Layer(f"features.{6 + 6 * block}", before, width, 1, size)
        before = width


def of_torchvision() -> nn.Module:
    try:
        return import_torchvision().models.resnet50(weights=None)
    except LoadError:
        pytest.skip("torchvision is not installed")


CASES: dict[str, tuple[Callable[[], nn.Module], int, Callable[[Widths], Iterator[Layer]], int, int]] = {
    "resnet32": (lambda: zoo.build("resnet32"), 32, lambda widths: basic(32, widths), 64, 10),
    "resnet56": (lambda: zoo.build("resnet56"), 32, lambda widths: basic(56, widths), 64, 10),
    "vgg16": (lambda: zoo.build("vgg16_nobias"), 32, chain, 0, 10),
    "mobilenet": (lambda: zoo.build("mobilenet10"), 32, separable, 0, 10),
    "torchvision resnet50": (of_torchvision, 64, bottleneck, 2048, 1000),
}


@pytest.mark.parametrize("case", CASES)
def test_parameters_and_macs_are_those_of_the_widths(case: str) -> None:
    make, size, layers, last, classes = CASES[case]
    learner = StructureLearner(make(), torch.zeros(2, 3, size, size))
    draw = torch.Generator().manual_seed(3)
    parts = torch.rand(len(learner.limits), generator=draw)
    state = learner.state_dict()
    state["saliency"] = torch.rand(sum(learner.limits), generator=draw)
    state["widths"] = [limit * float(part) for limit, part in zip(learner.limits, parts, strict=True)]
    learner.load_state_dict(state)
    names = [group.producers[0].removesuffix(".weight") for group in learner.groups]
    learned = dict(zip(names, learner.final_widths(), strict=True))
    assert any(width < limit for width, limit in zip(learned.values(), learner.limits, strict=True))

    done = learner.finish(proof=False)
    expected = list(layers(learned))
    last = last or expected[-1].outputs
    parameters = sum(one.parameters() for one in expected) + last * classes + classes
    macs = sum(one.macs() for one in expected) + last * classes
    assert sum(one.numel() for one in done.module.parameters()) == parameters == done.report.after.parameters
    assert done.report.after.macs == macs
    modules = dict(done.module.named_modules())
    assert {one.name: modules[one.name].out_channels for one in expected} == {one.name: one.outputs for one in expected}
