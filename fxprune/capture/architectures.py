"""--arch: the network that a file with nothing but weights belongs to."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from torch import nn

from fxprune.capture.checkpoints import Misfit, State, compare, put_in, without_wrappers
from fxprune.capture.loaded import Loaded
from fxprune.capture.options import is_dotted, is_script
from fxprune.capture.scripts import run_script, searching
from fxprune.capture.specs import build_spec, built, is_spec, parse_options
from fxprune.errors import LoadError, described


def build_architecture(arch: str, seed: int = 0) -> Loaded:
    """The network that `arch` names, with fresh weights.

    arch  a spec as `build_spec` takes it, or `package.module:factory[?key=value&...]`, or
          `path/to/train.py:factory[?...]`: a class or function that is called with these options and returns a network.
          The module is imported, or the file executed.

    Raises LoadError when there is no such factory, or it fails or returns something else.
    """
    if is_spec(arch):
        return build_spec(arch, seed)
    place, name, query = _parse(arch)
    options = parse_options(query, arch)
    factory = _factory(place, name, arch)
    module = built(arch, seed, lambda: _network(factory(**options), arch))
    notes = (f"the file {place} was executed, as --arch asks",) if is_script(place) else ()
    return Loaded(module, origin=arch, name=name, fresh=True, notes=notes)


def _network(made: object, arch: str) -> nn.Module:
    if not isinstance(made, nn.Module):
        raise LoadError(f"{arch} returned a {type(made).__name__}, not a network")
    return made


def _parse(arch: str) -> tuple[str, str, str]:
    """(module or script, factory, options)."""
    head, _, query = arch.partition("?")
    place, _, name = head.rpartition(":")
    if not is_dotted(name) or not (is_script(place) or is_dotted(place)):
        raise LoadError(
            f"--arch {arch!r} names no network: write torchvision:NAME, timm:NAME, zoo:NAME, package.module:factory or "
            "path/to/train.py:factory"
        )
    return place, name, query


def _factory(place: str, name: str, arch: str) -> Callable[..., object]:
    found: object = run_script(place) if is_script(place) else _import(place, arch)
    for part in name.split("."):
        if not hasattr(found, part):
            raise LoadError(f"--arch {arch}: {place} has no {name}")
        found = getattr(found, part)
    if not callable(found):
        raise LoadError(f"--arch {arch}: {name} is a {type(found).__name__}, not a class or function")
    return found


def _import(place: str, arch: str) -> ModuleType:
    try:
        with searching(Path.cwd()):
            return importlib.import_module(place)
    except Exception as error:  # whatever a user's own package does when it is imported
        raise LoadError(f"--arch {arch}: importing {place} failed: {described(error)}") from error


def load_weights(state: State, arch: str, file: str, seed: int = 0) -> tuple[Loaded, tuple[str, ...]]:
    """The network that `arch` names, holding these weights, and notes on what had to be decided.

    A number of classes that is not the usual one is read off the weights where the network has that option. Raises
    LoadError, listing names, when the weights do not fit.
    """
    made = build_architecture(arch, seed)
    decided: tuple[str, ...] = ()
    state, notes = without_wrappers(state, made.module.state_dict())
    misfit = compare(state, made.module.state_dict())
    if misfit:
        made, decided = _with_classes(state, misfit, arch, file, seed)
    converted = put_in(state, made.module, file)
    return made, (*notes, *decided, *converted)


def _with_classes(state: State, misfit: Misfit, arch: str, file: str, seed: int) -> tuple[Loaded, tuple[str, ...]]:
    """The network once more, with as many classes as the weights have. Raises LoadError."""
    classes = misfit.classes()
    if classes and "num_classes=" not in arch:
        try:
            made = build_architecture(f"{arch}{'&' if '?' in arch else '?'}num_classes={classes}", seed)
        except LoadError:  # it has no such option
            raise LoadError(_refusal(misfit, arch, file)) from None
        if not compare(state, made.module.state_dict()):
            return made, (f"the weights are for {classes} classes: {made.origin} was built",)
    raise LoadError(_refusal(misfit, arch, file))


def _refusal(misfit: Misfit, arch: str, file: str) -> str:
    return (
        f"the weights in {file} do not fit {arch}: {misfit}. Name the network they were trained with; its options go "
        "behind a question mark, as in torchvision:resnet50?num_classes=10"
    )
