"""Is an artefact folder whole? Files against their hashes, weights against the recipe, ONNX against torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from fxprune.artefacts import RECIPE, SOURCE, WEIGHTS, bake, intact, read, read_recipe, tensors, text
from fxprune.emit.source_run import network_from
from fxprune.errors import ExportError, LoadError
from fxprune.example import rebuilt
from fxprune.recipe import Recipe
from fxprune.wording import counted


@dataclass(frozen=True)
class Check:
    """One question that was asked of a folder. `detail` says what was found, or what is wrong."""

    name: str
    ok: bool
    detail: str


def verify(folder: str | Path, *, trust: bool = False) -> list[Check]:
    """Check an artefact folder: files against their hashes, weights against the recipe, masks, model.py, and ONNX
    against torch in onnxruntime.

    trust  see `load`

    Every check is made that can be; a check that cannot be made because another one failed is not listed. Raises
    LoadError when there is no recipe to check against.
    """
    place = Path(folder)
    recipe = read_recipe(place)
    found = [_hash_check(place, name, recipe) for name in sorted(recipe.files)]
    state = _loaded_weights(place, recipe, found)
    if state is not None:
        found += [_recipe_check(recipe, state), _mask_check(recipe, state)]
    network = _run_source(place, recipe, state, trust, found)
    if "model.onnx" not in recipe.files:
        return found
    if network is not None:
        found.append(_onnx_check(place, recipe, network))
    elif SOURCE not in recipe.files:
        found.append(Check("onnx", True, "not compared with torch: there is no model.py to run"))
    return found


def _hash_check(folder: Path, name: Any, recipe: Recipe) -> Check:
    try:
        size = len(intact(folder, name, recipe))
    except LoadError as error:
        return Check(name, False, str(error))
    return Check(name, True, f"{size:,} bytes, as recipe.json names them")


def _loaded_weights(folder: Path, recipe: Recipe, found: list[Check]) -> dict[str, Tensor] | None:
    if WEIGHTS not in recipe.files or not (folder / WEIGHTS).exists():
        return None
    try:
        return tensors(read(folder / WEIGHTS), folder / WEIGHTS)
    except LoadError as error:
        found.append(Check("weights", False, str(error)))
        return None


def _recipe_check(recipe: Recipe, state: Mapping[str, Tensor]) -> Check:
    """The weights have the shapes that the recipe leaves of them."""
    for name in recipe.shapes:
        wanted = recipe.small_shape(name)
        if name not in state or tuple(state[name].shape) != wanted:
            there = tuple(state[name].shape) if name in state else "missing"
            return Check("recipe", False, f"{name} is {there}, and the recipe leaves {wanted} of it")
    return Check("recipe", True, f"{len(recipe.shapes)} tensors lost channels, and have the shapes that remain")


def _mask_check(recipe: Recipe, state: Mapping[str, Tensor]) -> Check:
    for name, ones in recipe.masks.items():
        weight, mask = state.get(name), state.get(f"{name}_mask")
        if weight is None or mask is None or weight.shape != mask.shape:
            return Check("masks", False, f"{name} has no mask of its shape")
        if int(mask.count_nonzero()) != ones:
            return Check(
                "masks", False, f"the mask of {name} keeps {int(mask.count_nonzero()):,} weights, not {ones:,}"
            )
        revived = int(weight[~mask.bool()].count_nonzero())
        if revived:
            return Check("masks", False, f"{revived:,} masked weights of {name} are not zero")
    return Check("masks", True, f"{counted(len(recipe.masks), 'mask')}; every masked weight is zero")


def _run_source(
    folder: Path, recipe: Recipe, state: Mapping[str, Tensor] | None, trust: bool, found: list[Check]
) -> nn.Module | None:
    if SOURCE not in recipe.files or state is None or not (folder / SOURCE).exists():
        return None
    try:
        network = network_from(text(read(folder / SOURCE), folder / SOURCE), state, SOURCE, trust=trust)
    except LoadError as error:
        found.append(Check("source", False, str(error)))
        return None
    found.append(Check("source", True, "model.py takes the weights"))
    return network


def _onnx_check(folder: Path, recipe: Recipe, network: nn.Module) -> Check:
    from fxprune.emit.onnx import compare_with_torch
    from fxprune.emit.onnx_rounding import TOLERANCE, allowed

    try:
        inputs = rebuilt(recipe.inputs, str(folder / RECIPE))
        baked = bake(network, recipe.masks)
        gap = compare_with_torch(baked, folder / "model.onnx", inputs)
        limit = TOLERANCE if gap <= TOLERANCE else allowed(baked, inputs)
    except (LoadError, ExportError) as error:
        return Check("onnx", False, str(error))
    return Check("onnx", gap <= limit, f"differs from torch by {gap:.1e} of the largest output")
