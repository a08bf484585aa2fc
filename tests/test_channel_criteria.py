"""Channel criteria against their definitions, by hand and by finite differences."""

from __future__ import annotations

import copy

import pytest
import torch
from channel_networks import batches, residual
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.capture.module import capture
from fxprune.channels.groups import Couplings
from fxprune.cost import cost
from fxprune.errors import OptionError
from fxprune.manager import PassManager
from fxprune.options import Options
from fxprune.pass_lists import finding_passes
from fxprune.program import Program
from fxprune.saliency.channels import ChannelCriterion, ChannelNorm, Fpgm, NormScale
from fxprune.saliency.gates import GateSlope
from fxprune.saliency.taylor import Taylor
from fxprune.saliency.trial import Data


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
