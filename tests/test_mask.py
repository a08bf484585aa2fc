"""The mask pass: exactly as many zeros as asked for, chosen as a sort of all scores would choose them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fxprune import zoo
from fxprune.densities import layer_zeros
from fxprune.facts import Prunable, WeightMasks
from fxprune.passes.mask import Mask
from fxprune.program import Program, skeleton_of
from fxprune.saliency import criterion
from fxprune.saliency.magnitude import Magnitude

THRESHOLDS = {0.5: 0.0151, 0.8: 0.0292, 0.9: 0.0382, 0.95: 0.0466, 0.97: 0.0528, 0.98: 0.0579}  # VGG-16, solved once


def program_of(weights: Sequence[Tensor]) -> Program:
    """A program that does nothing but hold these weights."""
    holder = nn.ParameterDict({f"w{number:03}": nn.Parameter(weight) for number, weight in enumerate(weights)})
    skeleton, tensors = skeleton_of(holder)
    graph = fx.Graph()
    graph.output(tuple(graph.get_attr(name) for name in tensors))
    names = dict.fromkeys(tensors, "conv")
    return Program(fx.GraphModule(skeleton, graph), tensors, inputs=None).with_facts(Prunable(names, {}))  # type: ignore[arg-type]


def masks_of(weights: Sequence[Tensor], sparsity: float, name: str = "magnitude", seed: int = 0) -> list[Tensor]:
    done = Mask(sparsity, criterion(name, seed)).run(program_of(weights))
    return list(done.fact(WeightMasks).masks.values())


def sorted_masks(scores: Sequence[Tensor], zeros: int) -> list[Tensor]:
    """The same by sorting: lowest scores go first, of equal ones the last in order."""
    values = [value for score in scores for value in score.reshape(-1).tolist()]
    order = sorted(range(len(values)), key=lambda place: (values[place], -place))
    kept = torch.ones(len(values), dtype=torch.bool)
    kept[order[:zeros]] = False
    parts = kept.split([score.numel() for score in scores])
    return [part.reshape(score.shape) for part, score in zip(parts, scores, strict=True)]


def equal(left: Sequence[Tensor], right: Sequence[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 1.5, -1.0000001, 1e-38, -1e-45, 3e38])
many = st.floats(-3, 3, width=32)
tensors = st.lists(st.lists(few | many, min_size=1, max_size=12).map(torch.tensor), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(tensors, st.floats(0, 1, exclude_max=True))
def test_equals_a_sort_of_all_scores(weights: list[Tensor], sparsity: float) -> None:
    total = sum(weight.numel() for weight in weights)
    expected = sorted_masks([weight.abs() for weight in weights], round(sparsity * total))
    assert equal(masks_of(weights, sparsity), expected)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=4), st.sampled_from([0.1, 0.5, 0.9, 0.99]), st.integers(0, 99)
)
def test_equals_a_sort_where_many_scores_share_a_bucket(sizes: list[int], sparsity: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    weights = [1 + torch.randint(0, 40, (size,), generator=draw) * 2.0**-20 for size in sizes]
    assert equal(masks_of(weights, sparsity), sorted_masks(weights, round(sparsity * sum(sizes))))


@dataclass(frozen=True)
class Given:
    """The weights are the scores, of either sign and any precision."""

    name: ClassVar[str] = "given"

    def scores(self, program: Program, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
        return ((name, program.tensors[name].detach()) for name in names)


@settings(max_examples=150, deadline=None)
@given(tensors, st.floats(0, 1, exclude_max=True), st.sampled_from([torch.float32, torch.float64]))
def test_signed_scores_rank_as_numbers(weights: list[Tensor], sparsity: float, dtype: torch.dtype) -> None:
    scores = [weight.to(dtype) for weight in weights]
    total = sum(weight.numel() for weight in weights)
    done = Mask(sparsity, Given()).run(program_of(scores))
    assert equal(list(done.fact(WeightMasks).masks.values()), sorted_masks(scores, round(sparsity * total)))


@pytest.mark.parametrize("ranking", ["uniform", "erk"])
def test_each_layer_by_itself(ranking: str) -> None:
    draw = torch.Generator().manual_seed(3)
    weights = [torch.randn(size, generator=draw) for size in ((16, 3, 3, 3), (32, 16, 3, 3), (10, 32))]
    done = Mask(0.9, Magnitude(), ranking).run(program_of(weights))
    masks = list(done.fact(WeightMasks).masks.values())
    zeros = layer_zeros([weight.shape for weight in weights], 0.9, ranking)
    assert [int((~mask).sum()) for mask in masks] == zeros
    assert sum(zeros) == round(0.9 * sum(weight.numel() for weight in weights))
    for weight, mask, count in zip(weights, masks, zeros, strict=True):
        assert torch.equal(mask, sorted_masks([weight.abs()], count)[0])


def test_uniform_takes_the_same_share_and_erk_spares_small_layers() -> None:
    shapes = [(16, 3, 3, 3), (32, 16, 3, 3), (10, 32)]
    sizes = [math.prod(shape) for shape in shapes]
    shares = [zeros / size for zeros, size in zip(layer_zeros(shapes, 0.9, "uniform"), sizes, strict=True)]
    assert shares == pytest.approx([0.9] * 3, abs=2e-3)
    kept = [size - zeros for zeros, size in zip(layer_zeros(shapes, 0.9, "erk"), sizes, strict=True)]
    # 5360 weights, 536 stay: shared as 25 : 54 : 42, none is full
    assert kept == pytest.approx([536 * part / 121 for part in (25, 54, 42)], abs=1)


def test_erk_leaves_full_layers_dense() -> None:
    zeros = layer_zeros([(4, 1, 1, 1), (64, 64, 3, 3)], 0.2, "erk")
    assert zeros == [0, round(0.2 * (4 + 64 * 64 * 9))]


@pytest.mark.parametrize("sparsity", [0.0, 0.001, 0.3, 0.5, 0.98, 0.9999])
def test_exactly_as_many_zeros_as_asked_for(sparsity: float) -> None:
    draw = torch.Generator().manual_seed(3)
    weights = [torch.randn(size, generator=draw) for size in ((7, 5, 3, 3), (11, 4), (2, 1, 5))]
    total = sum(weight.numel() for weight in weights)
    assert sum(int((~mask).sum()) for mask in masks_of(weights, sparsity)) == round(sparsity * total)


def test_sparsity_zero_keeps_zeros_too() -> None:
    (mask,) = masks_of([torch.zeros(5)], 0.0)
    assert mask.all()


def test_masks_are_boolean_and_shaped_as_their_weights() -> None:
    weights = [torch.ones(2, 3, 1, 1), torch.ones(4, 2)]
    masks = masks_of(weights, 0.5)
    assert [mask.shape for mask in masks] == [weight.shape for weight in weights]
    assert all(mask.dtype == torch.bool for mask in masks)


def test_of_equal_scores_the_last_in_order_go() -> None:
    first, second = masks_of([torch.ones(3), torch.full((3,), -1.0)], 0.5)
    assert (first.tolist(), second.tolist()) == ([True] * 3, [False] * 3)
    first, second = masks_of([torch.tensor([1.0, 2.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])], 0.5)
    assert (first.tolist(), second.tolist()) == ([True, True, False], [False, True, False])


def test_weights_that_are_not_contiguous() -> None:
    weight = torch.arange(12.0).reshape(3, 4).T
    assert equal(masks_of([weight], 0.5), sorted_masks([weight], 6))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(dtype: torch.dtype) -> None:
    weight = torch.tensor([0.5, -0.25, 3.0, 0.125], dtype=dtype)
    assert masks_of([weight], 0.5)[0].tolist() == [True, False, True, False]


def test_random_criterion_ignores_the_weights() -> None:
    small, large = [torch.full((40, 10), 1e-6)], [torch.randn(40, 10)]
    assert equal(masks_of(small, 0.7, "random"), masks_of(large, 0.7, "random"))
    assert int(masks_of(small, 0.7, "random")[0].sum()) == 120
    assert not equal(masks_of(small, 0.7, "random", 0), masks_of(small, 0.7, "random", 1))


def test_random_criterion_spreads_evenly() -> None:
    masks = masks_of([torch.zeros(20_000), torch.ones(20_000)], 0.7, "random")
    for mask in masks:
        assert abs(float(mask.float().mean()) - 0.3) < 5 * math.sqrt(0.7 * 0.3 / 20_000)


def fan_ins(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Weight -> (fan-in, number of weights)."""
    return {
        name: (parameter[0].numel(), parameter.numel())
        for name, parameter in model.named_parameters()
        if parameter.ndim > 1
    }


def closed_form(threshold: float, fan_in: int) -> float:
    """Share of N(0, 2 / fan_in) within +-threshold (half-normal distribution)."""
    return math.erf(threshold / math.sqrt(4 / fan_in))


@pytest.fixture(scope="module")
def vgg16() -> nn.Module:
    return zoo.build("vgg16", seed=5)


@pytest.mark.parametrize("sparsity", THRESHOLDS)
def test_layer_sparsities_follow_the_closed_form(vgg16: nn.Module, sparsity: float) -> None:
    sizes = fan_ins(vgg16)
    low, high = 0.0, 1.0
    total = sum(count for _, count in sizes.values())
    for _ in range(60):
        middle = (low + high) / 2
        reached = sum(count * closed_form(middle, fan_in) for fan_in, count in sizes.values())
        low, high = (middle, high) if reached < sparsity * total else (low, middle)
    assert low == pytest.approx(THRESHOLDS[sparsity], abs=6e-5)
    weights = dict(vgg16.named_parameters())
    masks = masks_of([weights[name].detach() for name in sizes], sparsity)
    for (name, (fan_in, count)), mask in zip(sizes.items(), masks, strict=True):
        expected = closed_form(low, fan_in)
        error = 5 * math.sqrt(expected * (1 - expected) / count) + 1 / count
        # The threshold itself is a quantile of a sample: add what that moves this layer by.
        slope = math.sqrt(fan_in / math.pi) * math.exp(-(low**2) * fan_in / 4)
        error += 5 * slope * math.sqrt(sparsity * (1 - sparsity) / total) / density(low, sizes, total)
        assert abs(float((~mask).sum()) / count - expected) < error, name


def density(threshold: float, sizes: dict[str, tuple[int, int]], total: int) -> float:
    """Share of all weights per unit of |w| at the threshold."""
    return (
        sum(
            count * math.sqrt(fan_in / math.pi) * math.exp(-(threshold**2) * fan_in / 4)
            for fan_in, count in sizes.values()
        )
        / total
    )


def test_magnitude_scores_are_absolute_values() -> None:
    program = program_of([torch.tensor([-2.0, 1.0])])
    ((name, score),) = Magnitude().scores(program, ["w000"])
    assert (name, score.tolist()) == ("w000", [2.0, 1.0])
