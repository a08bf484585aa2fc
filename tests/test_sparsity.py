"""The sparsity pass: zeros counted on the masks, and the four readings of the average."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor, nn

from fxprune.capture.module import capture
from fxprune.errors import OptionError
from fxprune.facts import Prunable, Share, SparsityReport, WeightMasks
from fxprune.passes.sparsity import Sparsity
from fxprune.program import Program

KINDS = {"0.weight": "conv", "2.weight": "conv", "4.weight": "linear"}


def network() -> nn.Module:
    """54 + 24 conv weights, 8 linear ones; 10 biases and affine numbers more."""
    return nn.Sequential(
        nn.Conv2d(3, 2, 3, bias=False), nn.BatchNorm2d(2), nn.Conv2d(2, 4, (1, 3)), nn.Flatten(), nn.Linear(4, 2)
    )


def masked(zeros: dict[str, int]) -> Program:
    """The network with so many zeros in each layer's mask."""
    program = capture(network(), torch.empty(1, 3, 3, 5))
    masks: dict[str, Tensor] = {}
    for name, count in zeros.items():
        shape = program.module.get_parameter(name).shape
        masks[name] = (torch.arange(shape.numel()) >= count).reshape(shape)
    return program.with_facts(Prunable({name: KINDS[name] for name in zeros}, {}), WeightMasks(masks))


def report(zeros: dict[str, int], average: str = "prunable") -> SparsityReport:
    return Sparsity(average).run(masked(zeros)).fact(SparsityReport)


ZEROS = {"0.weight": 27, "2.weight": 20, "4.weight": 0}


def test_counts_zeros_of_each_layer() -> None:
    layers = report(ZEROS).layers
    assert layers == {"0.weight": Share(27, 54), "2.weight": Share(20, 24), "4.weight": Share(0, 8)}
    assert (layers["0.weight"].sparsity, layers["2.weight"].kept) == (0.5, 4)


@pytest.mark.parametrize(
    ("average", "expected"),
    [
        ("prunable", Fraction(47, 86)),
        ("conv", Fraction(47, 78)),
        ("all-params", Fraction(47, 86 + 4 + 4 + 2)),
        ("layer-mean", (Fraction(1, 2) + Fraction(5, 6) + 0) / 3),
    ],
)
def test_readings_of_the_average_are_exact(average: str, expected: Fraction) -> None:
    assert report(ZEROS, average).average == expected


def test_weights_that_take_no_part_do_not_count() -> None:
    assert report({"2.weight": 6}).average == Fraction(1, 4)


@pytest.mark.parametrize("average", ["prunable", "conv", "all-params", "layer-mean"])
def test_no_zero_gives_zero(average: str) -> None:
    assert report(dict.fromkeys(KINDS, 0), average).average == 0


def test_conv_average_of_a_network_without_convolutions() -> None:
    assert report({"4.weight": 4}, "conv").average == 0


def test_tied_weights_count_once_in_all_parameters() -> None:
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = first.weight
    program = capture(nn.Sequential(first, second), torch.empty(1, 4))
    mask = torch.arange(16).reshape(4, 4) >= 8
    program = program.with_facts(Prunable({"0.weight": "linear"}, {}), WeightMasks({"0.weight": mask}))
    assert Sparsity("all-params").run(program).fact(SparsityReport).average == Fraction(1, 2)


def test_unknown_average() -> None:
    with pytest.raises(OptionError, match=r"'median': choose prunable, conv, all-params, layer-mean"):
        report(ZEROS, "median")
