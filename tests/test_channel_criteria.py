"""Channel criteria against their definitions, what competes with what, and Torch-Pruning's choices."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune import zoo
from fxprune.capture.module import capture
from fxprune.capture.zoo_imports import import_torchvision
from fxprune.channels.groups import Couplings
from fxprune.cost import cost
from fxprune.errors import OptionError
from fxprune.manager import PassManager
from fxprune.options import Options
from fxprune.pass_lists import finding_passes
from fxprune.program import Program
from fxprune.saliency.channels import ChannelCriterion, ChannelNorm, Fpgm, NormScale
from fxprune.saliency.gates import GateSlope
from fxprune.saliency.selections import SELECTIONS
from fxprune.saliency.taylor import Taylor
from fxprune.saliency.trial import Data

WITH_DATA = ("taylor", "taylor-batch", "taylor-element", "gate", "gate-per-mac", "gate-after-steps")


class Residual(nn.Module):
    """One group made by two layers, one made by one; both behind normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 6, 3, padding=1, bias=False)
        self.inner_norm = nn.BatchNorm2d(6)
        self.outer = nn.Conv2d(6, 4, 3, padding=1, bias=False)
        self.outer_norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        y = F.relu(self.inner_norm(self.inner(x)))
        return self.head(F.relu(x + self.outer_norm(self.outer(y))).flatten(1))


def residual() -> nn.Module:
    torch.manual_seed(0)
    model = Residual().double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return model


def batches(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(6, 3, 4, 4, generator=draw, dtype=torch.float64), torch.randint(0, 5, (6,), generator=draw))
        for _ in range(count)
    ]


def found(model: nn.Module, image: Tensor) -> tuple[Program, Couplings]:
    program = PassManager(finding_passes(Options(keep_rate=0.5))).run(capture(model, image))
    return program, program.fact(Couplings)


def scored(criterion: ChannelCriterion, model: nn.Module) -> dict[str, Tensor]:
    """Scores of each group by the first layer that makes it."""
    program, couplings = found(model, batches()[0][0])
    scores = criterion.scores(program, couplings)
    return {group.producers[0]: torch.from_numpy(scores[group.roots]) for group in couplings.prunable()}


def weight(model: nn.Module, name: str) -> Tensor:
    return model.get_parameter(name).detach()


@pytest.mark.parametrize("power", [1, 2])
def test_norms_of_filters(power: int) -> None:
    model = residual()
    norms = {
        name: weight(model, f"{name}.weight").abs().pow(power).sum((1, 2, 3)) for name in ("stem", "inner", "outer")
    }
    expected = {
        "mean": (norms["stem"] + norms["outer"]) / 2,
        "sum": norms["stem"] + norms["outer"],
        "max": torch.maximum(norms["stem"], norms["outer"]),
        "first": norms["stem"],
    }
    for reduction, stream in expected.items():
        scores = scored(ChannelNorm(power, "outputs", reduction), model)
        assert torch.allclose(scores["stem.weight"], stream)
        assert torch.allclose(scores["inner.weight"], norms["inner"])


def test_norms_of_everything_a_channel_consists_of() -> None:
    model = residual()
    scores = scored(ChannelNorm(1, "all", "sum"), model)["stem.weight"]
    parts = [
        weight(model, "stem.weight").abs().sum((1, 2, 3)),
        weight(model, "outer.weight").abs().sum((1, 2, 3)),
        weight(model, "inner.weight").abs().sum((0, 2, 3)),
        weight(model, "head.weight").abs().reshape(5, 4, 16).sum((0, 2)),
        weight(model, "stem_norm.weight").abs(),
        weight(model, "outer_norm.weight").abs(),
    ]
    assert torch.allclose(scores, torch.stack(parts).sum(0))


def test_fpgm_is_the_sum_of_distances_to_the_other_filters() -> None:
    model = residual()
    filters = weight(model, "inner.weight").flatten(1)
    expected = torch.stack([sum(((one - other).norm() for other in filters), torch.zeros(())) for one in filters])
    assert torch.allclose(scored(Fpgm(), model)["inner.weight"], expected)


def test_scales_of_normalisations() -> None:
    model = residual()
    scores = scored(NormScale(), model)
    assert torch.allclose(scores["inner.weight"], weight(model, "inner_norm.weight").abs())
    both = (weight(model, "stem_norm.weight").abs() + weight(model, "outer_norm.weight").abs()) / 2
    assert torch.allclose(scores["stem.weight"], both)
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.Flatten()).double()
    with pytest.raises(OptionError, match="behind 0.weight there is none"):
        scored(NormScale(), bare)


@pytest.mark.parametrize("absolute", ["example", "batch", "element"])
def test_taylor_is_read_off_the_feature_map(absolute: str) -> None:
    model = residual()
    twin = copy.deepcopy(model).train()
    maps: list[Tensor] = []
    twin.get_submodule("inner_norm").register_forward_hook(
        lambda _module, _given, output: (output.retain_grad(), maps.append(output))[0]
    )
    x, y = batches()[0]
    F.cross_entropy(twin(x), y).backward()
    assert maps[0].grad is not None
    product = (maps[0] * maps[0].grad).detach()
    expected = {
        "element": product.abs().mean((0, 2, 3)),
        "example": product.mean((2, 3)).abs().mean(0),
        "batch": product.mean((0, 2, 3)).abs(),
    }[absolute]
    scores = scored(Taylor(Data(batches()), absolute=absolute, scaling="none"), model)["inner.weight"]
    assert torch.allclose(scores, expected, rtol=1e-9)


def test_the_three_forms_of_taylor_rank_differently() -> None:
    orders = {
        tuple(scored(Taylor(Data(batches()), absolute=one), residual())["inner.weight"].argsort().tolist())
        for one in ("example", "batch", "element")
    }
    assert len(orders) > 1


@pytest.mark.parametrize("steps", [0, 2])
def test_a_gate_is_a_factor_behind_the_normalisation(steps: int) -> None:
    model, rate, small = residual(), 0.05, 1e-6
    scores = scored(GateSlope(Data(batches()), steps=steps, rate=rate), model)["inner.weight"]

    def after(channel: int, gate: float) -> float:
        twin = copy.deepcopy(model).train()
        with torch.no_grad():
            twin.get_parameter("inner_norm.weight")[channel] *= gate
            twin.get_parameter("inner_norm.bias")[channel] *= gate
        optimizer = torch.optim.SGD(twin.parameters(), lr=rate)
        for x, y in batches()[:steps]:
            optimizer.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            optimizer.step()
        x, y = batches()[steps]
        return F.cross_entropy(twin(x), y).item()

    for channel in range(len(scores)):
        slope = abs(after(channel, 1 + small) - after(channel, 1 - small)) / (2 * small)
        assert slope == pytest.approx(scores[channel].item(), rel=1e-4, abs=1e-9)


def test_gates_per_mac() -> None:
    plain, per_mac = (scored(GateSlope(Data(batches()), per_mac=one), residual()) for one in (False, True))
    assert torch.allclose(per_mac["inner.weight"] * (4 * 9 * 16), plain["inner.weight"])
    assert torch.allclose(per_mac["stem.weight"] * (3 * 9 * 16 + 6 * 9 * 16), plain["stem.weight"])


class ChannelsLast(nn.Module):
    """A hidden linear layer over places, with the channels in the last dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Linear(3, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(F.relu(self.wide(x.permute(0, 2, 3, 1)))).mean((1, 2))


def test_gates_per_mac_where_channels_come_last() -> None:
    torch.manual_seed(0)
    model = ChannelsLast().double()
    plain, per_mac = (scored(GateSlope(Data(batches()), per_mac=one), model)["wide.weight"] for one in (False, True))
    program, couplings = found(model, batches()[0][0])
    without_the_other = cost(program, couplings.analysis).macs - 16 * 5 * 16
    assert without_the_other == 16 * 3 * 16
    assert torch.allclose(per_mac * (without_the_other / 16), plain)


def test_pools() -> None:
    model = zoo.build("vgg11")
    with torch.no_grad():  # the second half of each layer is worth little, the last layers even less
        for number, module in enumerate(one for one in model.modules() if isinstance(one, nn.Conv2d)):
            module.weight.mul_(0.5**number / module.weight.abs().mean())
    widths = {}
    for pool in ("local", "global", "isomorphic"):
        done = fxprune.compile(
            model, torch.zeros(2, 3, 32, 32), keep_rate=0.5, select="l1", pool=pool, keep_weights=True, proof=False
        )
        widths[pool] = [line.after for line in done.report.groups if line.after < line.before or line.frozen is None]
    dense = [line.before for line in done.report.groups if line.producers and line.frozen is None]
    assert widths["local"] == [width // 2 for width in dense]
    assert sum(widths["global"]) == pytest.approx(sum(dense) / 2, rel=0.02)
    assert widths["global"] != widths["local"]
    assert min(widths["global"]) >= 1
    twins = [k for k, width in enumerate(dense) if width == 512]
    assert sum(widths["isomorphic"][k] for k in twins) == pytest.approx(
        sum(dense[k] for k in twins) / 2, abs=len(twins)
    )


def test_rates_by_pattern() -> None:
    model = zoo.build("vgg11")
    done = fxprune.compile(
        model, torch.zeros(2, 3, 32, 32), keep_rate={"*0": 0.25, "*": 0.5}, select="first", proof=False
    )
    layers = {line.weight: line for line in done.report.layers if "classifier" not in line.weight}
    name = next(iter(layers))
    rates = {line.after / line.before for line in layers.values()}
    assert rates <= {0.25, 0.5, 1.0}
    assert layers[name].after < layers[name].before
    with pytest.raises(OptionError, match="no layer that can lose channels matches 'nothing'"):
        fxprune.compile(model, torch.zeros(2, 3, 32, 32), keep_rate={"nothing": 0.5})
    with pytest.raises(OptionError, match="above 0 and up to 1, not 1.5"):
        fxprune.compile(model, torch.zeros(2, 3, 32, 32), keep_rate={"*": 1.5})


@pytest.mark.parametrize("select", SELECTIONS)
def test_each_selection_cuts_exactly(select: str) -> None:
    data = batches() if select in WITH_DATA else None
    done = fxprune.compile(residual(), batches()[0][0], keep_rate=0.5, select=select, keep_weights=True, data=data)
    assert done.report.proof_error is not None
    assert done.report.proof_error <= 1e-9
    assert not done.report.refused
    assert done.report.after.parameters < done.report.before.parameters
    if select in WITH_DATA:
        with pytest.raises(OptionError, match="needs labelled data"):
            fxprune.compile(residual(), batches()[0][0], keep_rate=0.5, select=select, keep_weights=True)


class PartlyNormalised(nn.Module):
    """One layer with a normalisation behind it, and one without."""

    def __init__(self) -> None:
        super().__init__()
        self.bare, self.inner, self.norm = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 4, 3)
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.inner(self.bare(x).relu())).relu())


@pytest.mark.parametrize("pool", ["local", "global", "isomorphic"])
def test_layers_without_a_scale_keep_their_channels(pool: str) -> None:
    torch.manual_seed(0)
    model = PartlyNormalised()
    report = fxprune.compile(model, torch.zeros(2, 3, 9, 9), keep_rate=0.5, select="bn-scale", pool=pool).report
    assert {line.weight: line.after for line in report.layers} == {
        "bare.weight": 8,
        "inner.weight": 3,
        "head.weight": 4,
    }
    [bare] = [group for group in report.groups if group.producers == ("bare.weight",)]
    assert bare.frozen == "nothing tells its channels apart"
    with pytest.raises(OptionError, match=r"bn-scale needs normalisations with scales; behind bare.weight"):
        fxprune.compile(model, torch.zeros(2, 3, 9, 9), keep_rate=0.5, select="bn-scale", ignore=["inner"])


def test_numbers_that_are_none_are_said() -> None:
    broken = [(images * torch.nan, labels) for images, labels in batches()]
    with pytest.raises(OptionError, match="gate has no number for any channel: gradients or weights may be NaN"):
        fxprune.compile(residual(), batches()[0][0], keep_rate=0.5, select="gate", data=broken)


class SideHead(nn.Module):
    """A second head with a layer of its own, which the default loss does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.side, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.body(x).relu()
        return self.head(x).mean((2, 3)), self.last(self.side(x).relu()).mean((2, 3))


def test_a_feature_map_that_the_loss_leaves_out_is_said() -> None:
    torch.manual_seed(0)
    with pytest.raises(OptionError, match="the loss does not reach the feature map at side"):
        fxprune.compile(
            SideHead().double(), batches()[0][0], keep_rate=0.5, select="taylor", data=batches(), keep_weights=True
        )


# -- Torch-Pruning ---------------------------------------------------------------------------------------------------


def theirs(model: nn.Module, image: Tensor, importance: Any, *, norms_only: bool = False) -> dict[str, list[int]]:
    """Output channels that each layer keeps when Torch-Pruning removes half of every group, locally."""
    pruning = pytest.importorskip("torch_pruning")
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    kept = {name: list(range(one.weight.shape[0])) for name, one in layers(model).items()}
    names = {module: name for name, module in layers(model).items()}
    pruner = pruning.pruner.BasePruner(
        model, image, importance=importance, pruning_ratio=0.5, ignored_layers=linear if norms_only else linear[-1:]
    )
    for group in pruner.step(interactive=True):
        for item in group:
            if item.dep.pruning_fn in (pruning.prune_conv_out_channels, pruning.prune_linear_out_channels):
                gone = set(item.idxs)
                name = names[item.dep.layer]
                kept[name] = [channel for channel in kept[name] if channel not in gone]
    return kept


def layers(model: nn.Module) -> dict[str, nn.Module]:
    return {name: one for name, one in model.named_modules() if isinstance(one, nn.Conv2d | nn.Linear)}


def ours(model: nn.Module, image: Tensor, select: str) -> dict[str, list[int]]:
    hidden = ["classifier.*"] if select == "bn-scale" and hasattr(model, "classifier") else None
    done = fxprune.compile(model, image, keep_rate=0.5, select=select, keep_weights=True, proof=False, ignore=hidden)
    return {
        name: done.recipe.kept.get(f"{name}.weight", {}).get(0, list(range(one.weight.shape[0])))  # type: ignore[arg-type]
        for name, one in layers(model).items()
    }


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = getattr(import_torchvision().models, name)(num_classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.double().eval()  # in float32 two neighbours may change places by how a processor adds up


IMAGE = torch.zeros(1, 3, 64, 64, dtype=torch.float64)


@pytest.mark.parametrize("name", ["resnet18", "vgg16_bn"])
@pytest.mark.parametrize("select", ["group-l1", "group-l2", "bn-scale"])
def test_keeps_what_torch_pruning_keeps(name: str, select: str) -> None:
    pruning = pytest.importorskip("torch_pruning")
    importance = {
        "group-l1": lambda: pruning.importance.GroupMagnitudeImportance(p=1, group_reduction="mean"),
        "group-l2": lambda: pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="mean"),
        "bn-scale": lambda: pruning.importance.BNScaleImportance(group_reduction="mean"),
    }[select]()
    model = network(name)
    assert ours(model, IMAGE, select) == theirs(
        copy.deepcopy(model), IMAGE, importance, norms_only=select == "bn-scale"
    )


def test_fpgm_agrees_with_torch_pruning_where_weights_are_not_negative() -> None:
    pruning = pytest.importorskip("torch_pruning")
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 4)
    )
    with torch.no_grad():
        model[0].weight.abs_()
        model[2].weight.fill_(0.1)  # input slices that are all alike tell their criterion nothing
        model[5].weight.fill_(0.1)
    importance = pruning.importance.FPGMImportance(p=1, group_reduction="mean", normalizer=None)
    expected = theirs(copy.deepcopy(model), torch.zeros(1, 3, 16, 16), importance)["0"]
    assert ours(model, torch.zeros(1, 3, 16, 16), "fpgm")["0"] == expected
    assert np.array_equal(expected, sorted(expected))
