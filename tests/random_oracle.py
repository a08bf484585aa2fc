"""What a cut random network must compute, worked out from the recipe alone, and everything that is checked of it.

The dense network runs with the consumers' columns of removed channels zeroed, step by step, and beside each value runs
a mask that says which of its elements are left. Where channels are summed or averaged without a weight, the mask hides
the removed ones. Operands that meet must have the same mask: that finds what numbers would forgive.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from models import Case
from oracle import EXACT, zeroed
from random_networks import Network, RandomNet, Step, part_name, text
from random_steps import OPERATIONS
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import fxprune
from fxprune.channels.groups import Couplings
from fxprune.errors import NothingPrunableError
from fxprune.program import Program

_CONSUMED = {"function_conv": 1, "einsum": 1, "matmul": 0}  # parameters of their own: the dimension summed over
_SMALL = 1e-300


class Disagreement(AssertionError):
    """The compiled network is not what it must be."""


@dataclass(frozen=True)
class Choice:
    """How a network is compiled."""

    keep_rate: float
    approximate: str
    seed: int
    proof: bool = True


def choices(proof: bool = True) -> st.SearchStrategy[Choice]:
    rates = st.sampled_from((0.5, 0.3, 0.01, 0.75))
    return st.builds(Choice, rates, st.sampled_from(("freeze", "cut")), st.integers(0, 2**16), st.just(proof))


def check(network: Network, choice: Choice) -> fxprune.Compiled | None:
    """Compile and compare. None when nothing of the network can be removed. Raises Disagreement with the network."""
    try:
        return _check(network, choice)
    except NothingPrunableError:
        return None
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
        raise Disagreement(f"{fault}\n{choice}\n{text(network)}") from error


def _check(network: Network, choice: Choice) -> fxprune.Compiled:
    model, x = network.build(choice.seed), network.example()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    rows = Rows()
    done = fxprune.compile(
        model, x, keep_rate=choice.keep_rate, select="random", keep_weights=True, approximate=choice.approximate,
        seed=choice.seed, retry=False, proof=choice.proof, observers=(rows,),
    )  # fmt: skip
    assert not done.report.refused
    assert all(bool((model.state_dict()[name] == one).all()) for name, one in before.items()), "the model was changed"
    assert_shrunk(done, choice.keep_rate, rows.count)
    assert_equal(network, model, done)
    assert_applies(model, done, x)
    assert_trains(model, done.module, network.example(4))
    return done


class Rows:
    """An observer that keeps the number of rows of each group, which must keep equally many channels each."""

    def __init__(self) -> None:
        self.count: dict[int, int] = {}

    def __call__(self, name: str, program: Program, _seconds: float) -> None:
        if name == "plan":
            self.count = {group.index: group.row_count for group in program.fact(Couplings).groups}


def assert_shrunk(done: fxprune.Compiled, keep_rate: float, rows: Mapping[int, int]) -> None:
    """Every group that can go has lost channels, where the rate asks for it."""
    for group in done.report.groups:
        if group.producers and not group.frozen:
            each = group.before // rows[group.index]
            stays = math.ceil(round(each * keep_rate, 9)) >= each
            assert stays or group.after < group.before, f"{group.members} keeps all of its {group.before} channels"


def assert_equal(network: Network, model: RandomNet, done: fxprune.Compiled) -> None:
    small = done.module.eval()
    for batch in (2, 3):
        x = network.example(batch)
        with torch.no_grad():
            found, wanted = small(x), reference(network, model, done.recipe, x)
        error = difference(wanted, found)
        assert error <= EXACT, f"outputs differ by {error:.1e} at batch {batch}"


def assert_applies(model: RandomNet, done: fxprune.Compiled, x: Tensor) -> None:
    """The recipe does the same to the user's own class, where no width stands in its source."""
    if done.recipe.patched or done.program.folded:
        return
    with torch.no_grad():
        error = difference(done.module.eval()(x), done.recipe.apply(model).eval()(x))
    assert error <= EXACT, f"the recipe on the network's own class gives another network ({error:.1e})"


def assert_trains(model: nn.Module, small: nn.Module, x: Tensor) -> None:
    """Forward and backward in train mode, where the network itself can (an activation may write over what it needs, or
    into one piece of a split, which autograd forbids).
    """
    try:
        _gradients(copy.deepcopy(model), x)
    except RuntimeError:
        with torch.no_grad():
            small.train()(x)
        return
    _gradients(small, x)


def _gradients(model: nn.Module, x: Tensor) -> None:
    outputs = pytree.tree_leaves(model.train()(x))
    assert all(bool(one.isfinite().all()) for one in outputs), "an output in train mode is not finite"
    sum(one.square().mean() for one in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all()), f"{name} has no finite gradient"


def difference(wanted: Any, found: Any) -> float:
    """max|a - b| / max|a| over all outputs, of equal structure and shape."""
    ours, theirs = pytree.tree_flatten(wanted), pytree.tree_flatten(found)
    assert ours[1] == theirs[1], "another structure of outputs"
    worst = 0.0
    for a, b in zip(ours[0], theirs[0], strict=True):
        assert a.shape == b.shape, f"{tuple(b.shape)} instead of {tuple(a.shape)}"
        gap = ((a - b).abs().max() / a.abs().max().clamp(min=_SMALL)).item()
        worst = math.inf if math.isnan(gap) else max(worst, gap)
    return worst


# -- the reference ---------------------------------------------------------------------------------------------------


def reference(network: Network, model: RandomNet, recipe: fxprune.Recipe, x: Tensor) -> Any:
    """The dense network, in which nothing looks at a removed channel."""
    with torch.random.fork_rng(devices=[]):
        dense = network.build()
    dense.load_state_dict(model.state_dict())
    own = {part_name(step): _CONSUMED[step.op] for step in network.steps if step.op in _CONSUMED}
    zeroed(dense, Case(network.build, (), {}, consumers=own), recipe)
    values, masks = [x], [torch.ones_like(x)]
    for step in network.steps:
        given, known = [values[one] for one in step.reads], [masks[one] for one in step.reads]
        found = _run(dense, step, given, known, recipe.options["approximate"] == "freeze")
        try:
            masks += _masks(dense, step, known, found, recipe)
        except AssertionError as error:
            raise AssertionError(f"at x{step.writes[0]}: {error}") from None
        values += found
    outputs = [values[one] for one in network.outputs]
    for one in network.outputs:
        assert bool(masks[one].all()), f"channels of the output x{one} are gone"
    if network.as_dict:
        return {f"out{number}": one for number, one in enumerate(outputs)}
    return outputs[0] if len(outputs) == 1 else tuple(outputs)


def _run(dense: RandomNet, step: Step, given: list[Tensor], masks: list[Tensor], exact: bool) -> list[Tensor]:
    known = OPERATIONS[step.op]
    part = dense.part_of(step)
    if step.op == "standardised_conv" and exact:  # its weight has become a plain one
        return [known.run(part, given[0] * _channels(masks[0]).reshape(1, -1, *[1] * step.numbers[0]), *step.numbers)]
    if known.few is not None:
        return [known.few(part, _channels(masks[0]), *given, *step.numbers)]
    if step.op == "pool" and step.numbers[1] == 2:  # pixels that were features of a linear layer can be gone, too
        pixels, left = tuple(range(2, given[0].ndim)), torch.nan_to_num(masks[0], nan=1.0)
        return [(given[0] * left).sum(pixels, keepdim=True) / left.sum(pixels, keepdim=True).clamp(min=1)]
    if known.alive == "third":
        given = [given[0] * masks[0], given[1] * masks[1], given[2]]
    found = known.run(part, *given, *step.numbers)
    return list(found) if isinstance(found, tuple) else [found]


def _channels(mask: Tensor) -> Tensor:
    """Which channels of a map are left."""
    assert not bool(mask.isnan().any()), "nobody can tell whether a constant channel stays"
    flat = mask.transpose(0, 1).flatten(1) > 0
    assert bool((flat == flat[:, :1]).all())
    return flat[:, 0]


def _masks(
    dense: RandomNet, step: Step, given: list[Tensor], found: list[Tensor], recipe: fxprune.Recipe
) -> list[Tensor]:
    kind = OPERATIONS[step.op].alive
    if kind == "all":
        return [torch.ones_like(one) for one in found]
    if kind == "moved":
        return _moved(dense, step, given)
    if kind == "same":
        return [_met(given, found[0])]
    if kind == "folded":
        parts = given[0].chunk(found[0].shape[1] and given[0].shape[1] // found[0].shape[1], dim=1)
        return [_met(list(parts), found[0])]
    if kind == "third":
        _met([given[0], given[1]], given[0])
        return [given[2][:, :1].expand_as(found[0])]
    return [_made(dense, step, given[0], found[0], recipe)]


def _moved(dense: RandomNet, step: Step, given: Sequence[Tensor]) -> list[Tensor]:
    run, part = OPERATIONS[step.op].run, dense.part_of(step)
    if step.op == "repeat" and given[0].shape[1] == 1:  # copies of one channel are as good as constants
        return [run(part, given[0] * math.nan, *step.numbers)]
    if step.op == "pad":
        result = run(part, *given, *step.numbers[:3], math.nan)
    elif step.op == "pad_zeros":
        result = run(part, given[0] + 1, *step.numbers) - 1
        result = torch.where(result < 0, math.nan, result)
    else:
        result = run(part, *given, *step.numbers)
    return list(result) if isinstance(result, tuple) else [result]


def _met(given: list[Tensor], like: Tensor) -> Tensor:
    """The mask that all operands agree on; a mask without channels, or of a constant (NaN), says nothing."""
    result = torch.full_like(like, math.nan)
    for mask in given:
        if mask.shape[1] == 1 < like.shape[1]:
            continue
        mask = _spread(mask, like)
        clash = ~mask.isnan() & ~result.isnan() & (mask != result)
        assert not bool(clash.any()), "channels meet of which one is left and one is gone"
        result = torch.where(mask.isnan(), result, mask)
    return result


def _spread(mask: Tensor, like: Tensor) -> Tensor:
    """A mask over channels on other pixels."""
    for dim in range(2, mask.ndim):
        if mask.shape[dim] != like.shape[dim]:
            mask = mask.narrow(dim, 0, 1)
    return mask.expand_as(like)


def _made(dense: RandomNet, step: Step, given: Tensor, like: Tensor, recipe: fxprune.Recipe) -> Tensor:
    name = part_name(step)
    part = getattr(dense, name)
    name, weight = (name, part) if isinstance(part, Tensor) else (f"{name}.weight", part.weight)
    alive = torch.ones(like.shape[-1] if isinstance(part, nn.Linear) or step.op == "matmul" else like.shape[1])
    if step.op == "up":
        alive = _transposed(name, weight, part.groups, recipe)
    else:
        dim = 1 if step.op == "matmul" else 0
        kept = recipe.kept.get(name, {}).get(dim)
        if kept is not None:
            alive = torch.zeros(weight.shape[dim])
            alive[kept] = 1
    alive = alive.to(like.dtype)
    if isinstance(part, nn.Linear) or step.op == "matmul":
        return alive.expand_as(like)
    return alive.reshape(1, -1, *[1] * (like.ndim - 2)).expand_as(like)


def _transposed(name: str, weight: Tensor, groups: int, recipe: fxprune.Recipe) -> Tensor:
    """Channels that a transposed convolution writes: of its living conv groups the columns that are kept."""
    rows, columns = torch.zeros(weight.shape[0]), torch.ones(groups, weight.shape[1])
    rows[recipe.kept.get(name, {}).get(0, list(range(len(rows))))] = 1
    living = rows.reshape(groups, -1).amax(1) > 0
    columns[~living] = 0
    if 1 in recipe.kept.get(name, {}):
        kept = torch.zeros(weight.shape[1])
        kept[recipe.kept[name][1]] = 1
        columns *= kept
    if 1 in recipe.kept_per_group.get(name, {}):
        columns[living] = 0
        for number, kept in zip(living.nonzero().reshape(-1), recipe.kept_per_group[name][1], strict=True):
            columns[number, kept] = 1
    return columns.reshape(-1)
