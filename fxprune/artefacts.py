"""The folder that a compilation leaves behind, taken up again: as a module to train, or as ONNX with other weights."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from fxprune.capture.checkpoints import compare, put_in, without_wrappers
from fxprune.capture.files import read_weights
from fxprune.emit.source_run import network_from
from fxprune.errors import ExportError, LoadError
from fxprune.example import rebuilt
from fxprune.recipe import Recipe
from fxprune.states import plain_names

if TYPE_CHECKING:
    from fxprune.emit.onnx import OnnxReport

SOURCE, WEIGHTS, RECIPE = "model.py", "model.safetensors", "recipe.json"


def load(folder: str | Path, *, trust: bool = False) -> nn.Module:
    """The network of an artefact folder, trainable, in train mode, on the CPU.

    folder  as `fxprune compile` wrote it: model.py, model.safetensors and recipe.json
    trust   run model.py whatever it says. Otherwise only a text in which there is nothing but what fxprune writes is
            run, so that a folder from a stranger cannot do anything but compute

    Module and parameter names are those of the network that was compiled. Masked weights stay zero in training;
    `state_dict()` has weights and masks under plain names. Raises LoadError when files are missing or are not those
    that recipe.json names, UntrustedError for a model.py that would have to be trusted.
    """
    return _network(Path(folder), trust)[0]


def _network(folder: Path, trust: bool) -> tuple[nn.Module, Recipe]:
    recipe = read_recipe(folder)
    source, weights = (intact(folder, name, recipe) for name in (SOURCE, WEIGHTS))
    state = tensors(weights, folder / WEIGHTS)
    return network_from(text(source, folder / SOURCE), state, str(folder / SOURCE), trust=trust), recipe


def read_recipe(folder: Path) -> Recipe:
    """The recipe of an artefact folder. Raises LoadError."""
    if not folder.is_dir():
        raise LoadError(f"{folder} is no folder that fxprune wrote" if folder.exists() else f"{folder} does not exist")
    return Recipe.from_json(read(folder / RECIPE), str(folder / RECIPE))


def read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise LoadError(f"{path} is missing") from None
    except OSError as error:
        raise LoadError(f"{path} cannot be read: {error.strerror}") from error


def intact(folder: Path, name: Any, recipe: Recipe) -> bytes:
    """The bytes of a file that the recipe names. Raises LoadError where they are others."""
    wanted = recipe.files.get(name)
    if wanted is None:
        raise LoadError(
            f"{folder} was written without {name}: its report.json says why, or it was compiled with an --emit that "
            "leaves it out"
        )
    found = read(folder / name)
    if hashlib.sha256(found).hexdigest() != wanted:
        raise LoadError(f"{folder / name} is damaged or was changed: it is not the file that recipe.json names")
    return found


def tensors(data: bytes, file: Path) -> dict[str, Tensor]:
    try:
        found: dict[str, Tensor] = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise LoadError(f"{file} is damaged or no safetensors file: {error}") from error
    return found


def text(data: bytes, file: Path) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise LoadError(f"{file} is no text") from None


# ---- after training


def export(
    folder: str | Path,
    weights: str | Path | None = None,
    output: str | Path | None = None,
    *,
    opset: int | None = None,
    force: bool = False,
    trust: bool = False,
) -> OnnxReport:
    """Write the network of an artefact folder as ONNX, masks multiplied into the weights, and compare it with torch.

    weights  what was trained: `torch.save(network.state_dict(), weights)`, or .safetensors, of the network in model.py
             or of `Compiled.module`; masks may be missing. None: the numbers in the folder
    output   the file to write; by default beside `weights`, ending in .onnx
    opset    a number from 18 on, None for the default
    force    replace a file that is there
    trust    see `load`

    The file is written at once or not at all. Returns what was written, see `OnnxReport`. Raises LoadError for weights
    that do not fit, ExportError, UntrustedError.
    """
    place, trained = Path(folder), None if weights is None else Path(weights)
    path = _output(trained, output, force)
    network, recipe = _network(place, trust)
    if trained is not None:
        _put_in(network, recipe, trained)
    from fxprune.emit.onnx import export_onnx

    inputs = rebuilt(recipe.inputs, str(place / RECIPE))
    metadata = {"producer": f"fxprune {recipe.versions.get('fxprune', '')}", "seed": str(recipe.options.get("seed"))}
    baked = bake(network, recipe.masks)
    return export_onnx(
        baked, inputs, path, opset=opset, metadata=metadata, dynamic_batch=recipe.dynamic_batch
    )  # fmt: skip


def _output(weights: Path | None, output: str | Path | None, force: bool) -> Path:
    if output is None and weights is None:
        raise ExportError("the folder has its ONNX file already: give trained weights, or name an output file")
    if weights is not None and weights.is_dir():  # which may have no name to make that of a file from: . or /
        raise LoadError(f"{weights} is a folder: give the file with the trained weights")
    path = Path(output) if output is not None else weights.with_suffix(".onnx")  # type: ignore[union-attr]
    if path.is_dir() or not path.parent.is_dir():
        raise ExportError(f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'its folder is missing'}")
    if os.path.lexists(path) and not force:
        raise ExportError(f"{path} exists already: replace it with --force, or name another file with -o")
    if (path.parent / RECIPE).is_file() and _of_a_folder(path.name):
        raise ExportError(
            f"{path} belongs to a folder that fxprune wrote, which would no longer be whole: name another file with -o"
        )
    return path


def _of_a_folder(name: str) -> bool:
    from fxprune.emit.folder import ARTEFACTS  # takes a while, and `load` needs none of it

    return name in ARTEFACTS


def _put_in(network: nn.Module, recipe: Recipe, file: Path) -> None:
    """Trained numbers into the network. Raises LoadError where they do not fit."""
    own = network.state_dict()
    state, _ = without_wrappers(plain_names(read_weights(file)), own)
    masks = {name: own[name].clone() for name in sorted(f"{name}_mask" for name in recipe.masks) if name in own}
    state = {**masks, **state}
    misfit = compare(state, own)
    if misfit:
        raise LoadError(f"{file} does not fit the network in model.py: {misfit}")
    put_in(state, network, str(file))  # first: it looks at what kinds of tensors these are
    changed = [name for name, mask in masks.items() if not torch.equal(mask, own[name])]
    if changed:
        raise LoadError(f"{file} has another {changed[0]} than the folder: it belongs to another compilation")


def bake(network: nn.Module, masked: Iterable[str]) -> nn.Module:
    """The network in eval mode with masks multiplied into the weights, in place. Raises LoadError where one of the
    `masked` weights has no mask of its shape beside it: their names come from recipe.json, the network from model.py.
    """
    state = network.state_dict()
    for name in masked:
        weight, mask = state.get(name), state.get(f"{name}_mask")
        if weight is None or mask is None or weight.shape != mask.shape:
            raise LoadError(f"recipe.json names a mask of {name}, and model.py has none: the folder was changed")
        path, _, leaf = name.rpartition(".")
        owner = network.get_submodule(path)
        with torch.no_grad():
            getattr(owner, leaf).mul_(getattr(owner, f"{leaf}_mask"))
        plain = getattr(nn, type(owner).__name__.removeprefix("Masked"), None)
        if plain in type(owner).__bases__:
            delattr(owner, f"{leaf}_mask")
            owner.__class__ = plain
    return network.eval()
