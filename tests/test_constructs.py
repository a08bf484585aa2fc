"""Every coupling construct: what the engine makes of it as text, and that the result is exact by an oracle of its own.

The oracle is in `oracle.py`; where a statistic runs over channels, a forward pass written out here shows it the kept
ones only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import NETWORKS, Case, Net, call, pooled
from oracle import EXACT, difference, halved, zeroed
from torch import Tensor
from torch.utils import _pytree as pytree

import fxprune
from fxprune.capture.module import capture
from fxprune.channels.engine import analyse
from fxprune.channels.groups import couple
from fxprune.printing import groups_text, program_text
from fxprune.program import Program, named_tensors

INEXACT = {name: case for name, case in NETWORKS.items() if case.inexact}
every_network = pytest.mark.parametrize("name", NETWORKS)


# -- text -----------------------------------------------------------------------------------------------------------


@every_network
def test_text(name: str, golden: Callable[[str, str], None]) -> None:
    case = NETWORKS[name]
    before = capture(case.model(), case.example())
    golden(f"construct_{name}", f"BEFORE\n{_text(before)}\n\nAFTER\n{_text(halved(case).program)}")


def _text(program: Program) -> str:
    return f"{program_text(program)}\n{groups_text(couple(analyse(program)))}"


# -- numbers --------------------------------------------------------------------------------------------------------


@every_network
def test_exact(name: str) -> None:
    """Cut and dense network agree in eval mode and, where it draws nothing, in train mode."""
    case = NETWORKS[name]
    done = halved(case)
    assert done.report.refused == {}
    for training in (False,) if case.random else (False, True):
        found = call(done.module.train(training), case.example())
        expected = reference(name, case, done.recipe, training)
        assert difference(expected, found) <= EXACT
        assert difference(call(case.model().train(training), case.example()), found) > 1e-3, "nothing was at stake"


@every_network
def test_widths(name: str) -> None:
    case = NETWORKS[name]
    before, after = named_tensors(case.model()), named_tensors(halved(case).module)
    assert {parameter: tuple(after[parameter].shape) for parameter in case.cut} == case.cut
    assert all(before[parameter].shape != shape for parameter, shape in case.cut.items())


@every_network
def test_down_to_one_channel(name: str) -> None:
    """The narrowest network: what has one channel looks different to the engine, and is still exact."""
    case = NETWORKS[name]
    done = halved(case, keep_rate=0.01)
    rows = {line.index: line.after for line in done.report.groups if line.after < line.before}
    assert rows and all(width <= WIDER.get(name, 1) for width in rows.values())
    found = call(done.module.eval(), case.example())
    assert difference(reference(name, case, done.recipe, training=False), found) <= EXACT


# Conv groups and parts of a normalisation keep one channel each, a normalisation over channels two.
WIDER = {
    "grouped": 2, "transposed_grouped": 2, "group_norm_part": 2, "grouped_becomes_depthwise": 3, "grouped_residual": 3,
    "grouped_and_shuffled": 2, "grouped_over_concat": 2, "grouped_shuffled_grouped": 3, "view_filled": 2,
    "split_by_name": 3, "layer_norm": 2,
}  # fmt: skip


@every_network
def test_drawn_weights(name: str) -> None:
    """The usual way: masks decide, weights are drawn anew. All parts stay sound, and tied ones stay tied."""
    case = NETWORKS[name]
    inputs = pytree.tree_map(Tensor.float, case.example())
    done = fxprune.compile(case.build(), inputs, sparsity=0.6, policy="all", retry=False)
    assert done.report.refused == {}
    outputs = pytree.tree_leaves(call(done.module, inputs))
    torch.stack([output.square().sum() for output in outputs]).sum().backward()
    for parameter_name, parameter in done.module.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), parameter_name
    if name == "tied_weights":
        state = done.state_dict()
        assert torch.equal(state["b.weight"], state["c.weight"])


def test_the_oracle_sees_a_wrong_channel() -> None:
    """A recipe that names one other channel is not the network that was compiled."""
    for name in ("residual", "grouped", "transposed_grouped", "flatten_literal"):
        case = NETWORKS[name]
        done = halved(case)
        kept = copy.deepcopy(dict(done.recipe.kept))
        consumer = next(one for one in case.cut if 1 in kept.get(one, {}) or one.startswith("up."))
        dim = 0 if consumer.startswith("up.") else 1
        width = named_tensors(case.model())[consumer].shape[dim]
        kept[consumer][dim] = [(index + 1) % width for index in kept[consumer][dim]]
        wrong = done.recipe.model_copy(update={"kept": kept})
        found = call(done.module.eval(), case.example())
        assert difference(reference(name, case, wrong, training=False), found) > 1e-3


@every_network
def test_gradients(name: str) -> None:
    case = NETWORKS[name]
    module = halved(case).module.train()
    outputs = pytree.tree_leaves(call(module, case.example()))
    sum(output.square().sum() for output in outputs).backward()
    for parameter_name, parameter in module.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert bool(parameter.grad.isfinite().all()), parameter_name
        assert parameter.grad.shape == parameter.shape


# -- the oracle -----------------------------------------------------------------------------------------------------


def reference(name: str, case: Case, recipe: fxprune.Recipe, training: bool) -> Any:
    twin = zeroed(case.model(), case, recipe).train(training)
    if name in BY_HAND and case.inexact:
        return BY_HAND[name](twin, *case.example(), recipe)
    return call(twin, case.example())


def _standardised(s: Net, x: Tensor, recipe: fxprune.Recipe) -> Tensor:
    kept = recipe.kept["a.weight"][0]
    weight = s.kernel[:, kept]
    mean, deviation = weight.mean((1, 2, 3), keepdim=True), weight.std((1, 2, 3), keepdim=True)
    return s.c(F.conv2d(s.a(x).relu()[:, kept], (weight - mean) / (deviation + 1e-5), padding=1))


def _part_of_a_group(s: Net, x: Tensor, recipe: fxprune.Recipe) -> Tensor:
    kept = recipe.kept["a.weight"][0]
    normal = F.group_norm(s.a(x)[:, kept], s.norm.num_groups, s.norm.weight[kept], s.norm.bias[kept])
    return F.conv2d(normal.relu(), s.c.weight[:, kept], s.c.bias)


def _layer_normalised(s: Net, x: Tensor, recipe: fxprune.Recipe) -> Tensor:
    kept = recipe.kept["a.weight"][0]
    x = s.a(x).permute(0, 2, 3, 1)[..., kept]
    normal = F.layer_norm(x, (len(kept),), s.norm.weight[kept], s.norm.bias[kept])
    return s.down(F.gelu(F.linear(normal, s.up.weight[:, kept], s.up.bias))).permute(0, 3, 1, 2)


def _weighed_by_mean(s: Net, x: Tensor, recipe: fxprune.Recipe) -> Tensor:
    x = s.a(x)
    mean = x[:, recipe.kept["a.weight"][0]].mean(1, keepdim=True)
    return s.fc(pooled(s.c(x * mean).relu()))


def _weighed_by_extremes(s: Net, x: Tensor, recipe: fxprune.Recipe) -> Tensor:
    x = s.a(x)
    kept = x[:, recipe.kept["a.weight"][0]]
    return s.fc(pooled(s.c(x * (kept.amax(1, keepdim=True) - kept.amin(1, keepdim=True))).relu()))


def _gated_by_neighbours(s: Net, x: Tensor, recipe: fxprune.Recipe) -> Tensor:
    kept = recipe.kept["a.weight"][0]
    x = s.a(x)[:, kept]
    gates = s.slide(pooled(x)[:, None]).sigmoid()[:, 0, :, None, None]
    return F.conv2d(x * gates, s.c.weight[:, kept], s.c.bias)


BY_HAND: dict[str, Callable[..., Tensor]] = {
    "weight_standardised": _standardised,
    "group_norm_part": _part_of_a_group,
    "layer_norm": _layer_normalised,
    "mean_over_channels": _weighed_by_mean,
    "extremes_over_channels": _weighed_by_extremes,
    "efficient_channel_attention": _gated_by_neighbours,
    "group_norm_whole": _part_of_a_group,
}


# -- statistics over channels ---------------------------------------------------------------------------------------

REASONS = {
    "weight_standardised": "a mean over channels",
    "group_norm_part": "group normalisation over part of a group",
    "layer_norm": "layer normalisation over channels",
    "mean_over_channels": "a mean over channels",
    "extremes_over_channels": "the extreme one of all channels",
    "efficient_channel_attention": "a convolution over channels",
}


def test_every_inexact_network_has_a_reason() -> None:
    assert set(REASONS) == set(INEXACT)


@pytest.mark.parametrize("name", INEXACT)
def test_inexact_networks_are_reported(name: str) -> None:
    """Cut: the group is named, with what changes value, and the dense network zeroed is indeed another one."""
    case = INEXACT[name]
    done = halved(case)
    lines = {line.index: line for line in done.report.groups}
    (index,) = done.report.approximate
    assert REASONS[name] in done.report.approximate[index]
    assert "a.weight[0]" in lines[index].members
    found = call(done.module.eval(), case.example())
    assert difference(call(zeroed(case.model(), case, done.recipe), case.example()), found) > 1e-3


LEFT = {
    "group_norm_part": {"a.weight": (4, 3, 3, 3), "norm.weight": (4,)},
    "layer_norm": {"a.weight": (8, 3, 3, 3), "up.weight": (7, 8)},
    "mean_over_channels": {"a.weight": (8, 3, 3, 3), "c.weight": (5, 8, 1, 1)},
    "extremes_over_channels": {"a.weight": (8, 3, 3, 3), "c.weight": (5, 8, 1, 1)},
}


@pytest.mark.parametrize("name", LEFT)
def test_exact_by_default_where_weights_are_kept(name: str) -> None:
    """Nothing is cut but what leaves every statistic as it is: other layers, and whole groups of a GroupNorm."""
    case = INEXACT[name]
    done = halved(case, approximate=None)
    assert done.report.approximate == {}
    after = named_tensors(done.module)
    assert {parameter: tuple(after[parameter].shape) for parameter in LEFT[name]} == LEFT[name]
    found = call(done.module.eval(), case.example())
    assert difference(call(zeroed(case.model(), case, done.recipe), case.example()), found) <= EXACT


def test_group_norm_loses_parts_of_groups_when_told_to() -> None:
    """Four groups of three: whole groups when exactness counts, otherwise one channel of each."""
    case = NETWORKS["group_norm_whole"]
    done = halved(case, approximate="cut")
    assert [line.after for line in done.report.groups if line.index in done.report.approximate] == [8]
    expected = _part_of_a_group(case.model(), *case.example(), done.recipe)
    assert difference(expected, call(done.module.eval(), case.example())) <= EXACT
    assert done.module.norm.num_groups == 4
    assert halved(case).module.norm.num_groups == 2


# -- modes ----------------------------------------------------------------------------------------------------------

CHANGES = {
    "residual", "projection_shortcut", "depthwise", "depthwise_multiplier", "grouped", "concat", "transposed",
    "pixel_unshuffle", "conv1d", "conv3d", "instance_norm", "dropout_module", "dropout_function", "stochastic_depth",
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "auxiliary_head"])
def test_train_and_eval_differ_where_they_should(name: str) -> None:
    case = NETWORKS[name]
    module = halved(case).module
    in_train = call(copy.deepcopy(module).train(), case.example())
    in_eval = call(copy.deepcopy(module).eval(), case.example())
    assert (difference(in_eval, in_train) > 1e-3) == (name in CHANGES)


@pytest.mark.parametrize("name", [name for name, case in NETWORKS.items() if case.random])
def test_chance_is_alive_in_train_mode_only(name: str) -> None:
    case = NETWORKS[name]
    module = halved(case).module
    torch.manual_seed(0)
    runs = [call(module.train(mode), case.example()) for mode in (True, True, False, False)]
    assert difference(runs[0], runs[1]) > 1e-3
    assert torch.equal(runs[2], runs[3])


def test_auxiliary_head_speaks_in_train_mode_only() -> None:
    case = NETWORKS["auxiliary_head"]
    module = halved(case).module
    assert [tuple(output.shape) for output in call(module.train(), case.example())] == [(2, 4), (2, 4)]
    assert tuple(call(module.eval(), case.example()).shape) == (2, 4)
    assert tuple(module.aux.weight.shape) == (4, 3)
