"""Methods by name, and targets instead of sparsities."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fxprune
from fxprune import zoo
from fxprune.budget import Budget, search
from fxprune.cost import Cost
from fxprune.errors import OptionError
from fxprune.idle import BELONG, IDLE
from fxprune.methods import METHODS, wants_data
from fxprune.options import CROPPING
from fxprune.passes.sensitivity import POLICIES
from fxprune.saliency.selections import SELECTIONS

IMAGE = torch.zeros(2, 3, 32, 32)
WITH_DATA = [name for name in METHODS if wants_data(name)]


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 3, 32, 32, generator=draw), torch.randint(0, 10, (4,), generator=draw)) for _ in range(4)]


@pytest.mark.parametrize("name", METHODS)
def test_each_method_compiles_with_proof_and_trains_a_step(name: str) -> None:
    method = METHODS[name]
    knob: dict[str, Any] = {method.knob: 0.5}
    done = fxprune.compile(
        zoo.build("resnet8"), IMAGE, method=name, data=batches() if name in WITH_DATA else None, **knob
    )
    assert done.report.proof_error is not None
    assert done.report.proof_error <= 1e-9
    assert done.recipe.options["method"] == name
    done.module(batches()[0][0]).square().mean().backward()
    assert all(one.grad is not None and bool(one.grad.isfinite().all()) for one in done.module.parameters())


@pytest.mark.parametrize(("sparsity", "compression"), [(0.8, 4.55), (0.9, 8.89), (0.95, 17.59)])
def test_precrop_meets_the_published_compression_of_vgg19(sparsity: float, compression: float) -> None:
    report = fxprune.compile(zoo.build("vgg19"), IMAGE, sparsity=sparsity, method="precrop", proof=False).report
    assert report.before.bytes / report.after.bytes == pytest.approx(compression, rel=0.01)


def test_what_contradicts_a_method_is_refused() -> None:
    model = zoo.build("resnet8")
    for options, message in (
        ({"method": "taste", "sparsity": 0.5}, "unknown method 'taste'"),
        ({"method": "l1", "sparsity": 0.5}, "method l1 takes keep_rate"),
        ({"method": "spai", "sparsity": 0.5, "policy": "inverted"}, "method spai sets policy to 'all'"),
        ({"method": "reconvene", "sparsity": 0.5, "policy": "all"}, "method reconvene sets policy to 'reconvene'"),
        ({"method": "uniform", "keep_rate": 0.5, "pool": "global"}, "method uniform sets pool to 'local'"),
        ({"method": "upai", "sparsity": 0.5, "policy": "reconvene"}, "method upai sets policy to 'none'"),
        ({"method": "l1", "keep_rate": 0.5, "keep_weights": False}, "method l1 sets keep_weights to True"),
        ({"select": "first", "keep_rate": 0.5, "pool": "isomorphic"}, "no effect where select is 'first'"),
        ({"keep_rate": 0.5, "policy": "all"}, "policy='all' has no effect with keep_rate"),
        ({"sparsity": 0.5, "pool": "global"}, "pool='global' has no effect with sparsity"),
        ({"sparsity": 0.5, "policy": "random", "average": "conv"}, "no effect where policy is 'random'"),
        ({"method": "fpgm", "target_macs": 0.5, "criterion": "random"}, "no effect where select is 'fpgm'"),
        ({"target_params": 0.5, "sparsity": 0.5}, "a target takes the place of sparsity"),
        ({"target_params": 0.5, "target_macs": 0.5}, "give one target"),
        ({"target_params": -1}, "a target is a positive number"),
        ({"target_params": "25%"}, "a target is a positive number"),
        ({"keep_rate": 0.5, "channel_sparsity": 0.5}, "give keep_rate or channel_sparsity"),
        ({"keep_rate": {}}, "keep_rate is {pattern of module names: fraction}, not {}"),
        ({"keep_rate": {3: 0.5}}, "keep_rate is {pattern"),
        ({"sparsity": 0.5, "data": [1]}, "data has no effect: magnitude looks at the network alone"),
        ({"sparsity": 0.5, "method": "precrop", "data": [1]}, "data has no effect: precrop looks"),
        ({"channel_sparsity": 1.0}, "channel_sparsity is the fraction of channels to remove"),
        ({"channel_sparsity": {"fc": "half"}}, "channel_sparsity is the fraction of channels to remove"),
    ):
        with pytest.raises(OptionError, match=message):
            fxprune.compile(model, IMAGE, **options)  # type: ignore[arg-type]


def test_each_policy_and_selection_says_what_has_no_effect_with_it() -> None:
    policies = [("policy", name) for name in (*POLICIES, *CROPPING)]
    assert set(IDLE) == {*policies, *(("select", name) for name in SELECTIONS)}
    known = {option for names in BELONG.values() for option in names}
    assert {option for names in IDLE.values() for option in names} <= {*known, "criterion"}


def test_options_that_a_recipe_has_written_down_are_taken_again() -> None:
    for asked in ({"method": "spai", "sparsity": 0.5}, {"method": "l1", "keep_rate": 0.5}, {"sparsity": 0.5}):
        first = fxprune.compile(zoo.build("resnet8"), IMAGE, proof=False, **asked)  # type: ignore[arg-type]
        again = fxprune.compile(zoo.build("resnet8"), IMAGE, **first.recipe.options)
        assert again.recipe == first.recipe


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"target_params": 0.6}, "parameters"),
        ({"target_macs": 0.7, "method": "uniform"}, "macs"),
        ({"target_size": 600_000, "method": "uniform"}, "bytes"),
    ],
)
def test_targets_are_met_and_nearly_used_up(options: dict[str, Any], kind: str) -> None:
    report = fxprune.compile(zoo.build("resnet20"), IMAGE, proof=False, **options).report
    limit = next(value for name, value in options.items() if name.startswith("target"))
    bound = limit if limit > 1 else limit * getattr(report.before, kind)
    assert 0.85 * bound <= getattr(report.after, kind) <= bound


def test_an_impossible_target_names_the_nearest() -> None:
    with pytest.raises(OptionError, match=r"cannot be met: the smallest found here is [\d,]+"):
        fxprune.compile(zoo.build("resnet8"), IMAGE, target_size=1000, proof=False)


@pytest.mark.parametrize("target", [0.9, 0.5, 0.3])
def test_a_target_is_met_where_removing_most_does_not(target: float) -> None:
    """Inverted shrinks nothing at the highest sparsities: its smallest resnet8 is that at 0.8 or so."""
    report = fxprune.compile(zoo.build("resnet8"), IMAGE, method="inverted", target_params=target, proof=False).report
    assert 0.85 * target <= report.after.parameters / report.before.parameters <= target
    with pytest.raises(OptionError, match=r"smallest found here is [\d,]+ \(2\d\.\d\d% of the dense network's"):
        fxprune.compile(zoo.build("resnet8"), IMAGE, method="inverted", target_params=0.01, proof=False)


def test_the_search_takes_the_best_of_all_trials() -> None:
    def cost_at(value: float) -> Cost:
        return Cost(int(1000 * value) + (200 if 0.3 < value < 0.4 else 0), 0, 0, 0)

    dense = Cost(1000, 1000, 0, 0)
    found = search(Budget("params", 0.35), dense, cost_at, 0.0, 1.0)
    assert cost_at(found).parameters <= 350
    assert cost_at(found).parameters >= 290
    assert search(Budget("params", 2000), dense, cost_at, 0.0, 1.0) == 1.0


def test_those_that_look_at_data_ask_for_them_before_anything_runs() -> None:
    assert WITH_DATA == ["3sp", "3sp-per-mac", "prospr-structured", "taylor", "taylor-batch", "taylor-element"]
    for options, name in (
        ({"sparsity": 0.5, "criterion": "snip"}, "snip"),
        ({"keep_rate": 0.5, "criterion": "grasp"}, "grasp"),
        ({"keep_rate": 0.5, "select": "gate"}, "gate"),
        ({"target_params": 0.5, "method": "taylor"}, "taylor"),
    ):
        with pytest.raises(OptionError, match=f"{name} looks at .* needs labelled data"):
            fxprune.compile(torch.nn.Identity(), IMAGE, **options)  # type: ignore[arg-type]


def test_channel_sparsity_is_the_rest_of_the_keep_rate() -> None:
    model = zoo.build("resnet8")
    kept = fxprune.compile(model, IMAGE, keep_rate=0.25, proof=False)
    assert kept.recipe.kept == fxprune.compile(model, IMAGE, channel_sparsity=0.75, proof=False).recipe.kept
    one = fxprune.compile(model, IMAGE, channel_sparsity={"layer2.0.conv1": 0.75}, proof=False).report
    assert [line.weight for line in one.layers if line.after < line.before] == ["layer2.0.conv1.weight"]


@pytest.mark.parametrize("ranking", ["uniform", "erk"])
def test_criteria_that_look_at_the_whole_network_rank_layer_by_layer(ranking: str) -> None:
    """They work out all layers at once, whichever is asked for first."""
    options: dict[str, Any] = {"criterion": "snip", "ranking": ranking, "data": batches(), "proof": False}
    report = fxprune.compile(zoo.build("resnet8"), IMAGE, sparsity=0.75, policy="none", **options).report
    assert report.achieved_sparsity == pytest.approx(0.75, abs=0.01)
    met = fxprune.compile(zoo.build("resnet8"), IMAGE, target_params=0.5, **options).report
    assert met.after.parameters <= 0.5 * met.before.parameters


def test_a_search_ranks_once_and_decides_with_what_it_has_seen() -> None:
    """Batches that differ each time they are asked for, as a shuffling loader's do, change nothing."""

    class Shuffling:
        walks = 0

        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            self.walks += 1
            yield from (([x + self.walks, y]) for x, y in batches())  # type: ignore[misc]

    data = Shuffling()
    done = fxprune.compile(zoo.build("resnet8"), IMAGE, method="3sp", target_macs=0.5, data=data)
    assert data.walks == 1
    assert done.report.after.macs <= 0.5 * done.report.before.macs
    assert done.report.notes[0].startswith("target of ") and " is met: " in done.report.notes[0]
    assert done.recipe.options["target_macs"] == 0.5


def test_a_target_that_the_proof_stands_in_the_way_of_is_told() -> None:
    dense, reached = Cost(1000, 1000, 0, 0), Cost(600, 600, 0, 0)
    assert "is missed, because the proof refused" in Budget("params", 0.5).told(dense, reached)


def test_the_page_lists_every_method_with_what_it_takes() -> None:
    page = (Path(__file__).parents[1] / "docs" / "methods.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `([\w-]+)` \| [^|]+ \| ([^|]+ \| [^|]* \| [^|]+) \|", page, re.MULTILINE))
    assert list(rows) == list(METHODS)
    for name, method in METHODS.items():
        takes, data, weights = (cell.strip() for cell in rows[name].split("|"))
        assert takes == method.knob.replace("_", " ")
        assert data == ("yes" if wants_data(name) else "")
        assert weights == ("kept" if method.settings.get("keep_weights") else "drawn")
