"""Selections in a compilation: pools, rates by pattern, exact cuts, and what has no scores."""

from __future__ import annotations

import pytest
import torch
from channel_networks import WITH_DATA, batches, residual
from torch import Tensor, nn

import fxprune
from fxprune import zoo
from fxprune.errors import OptionError
from fxprune.saliency.selections import SELECTIONS


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
