"""load(): whatever names a network on the command line, a spec or a file, becomes a Loaded."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch

from fxprune import zoo
from fxprune.capture.exported import ExportedNetwork
from fxprune.capture.files import load_file
from fxprune.capture.loaded import Loaded
from fxprune.capture.names import check_methods, check_names
from fxprune.capture.options import LoadOptions
from fxprune.capture.specs import build_spec
from fxprune.capture.zoo_imports import import_timm, import_torchvision
from fxprune.errors import LoadError, OptionError
from fxprune.program import named_tensors

_SPEC = re.compile(r"[A-Za-z]\w+:.*", re.DOTALL)  # two letters at least: C:\net.pt is a path
_BARE = re.compile(r"[A-Za-z][\w-]*")  # no dot: a missing net.pt is not worth importing timm for


def load(target: str, options: LoadOptions | None = None) -> Loaded:
    """The network that `target` names.

    target  a spec (`zoo:vgg16`, `torchvision:resnet50`, `timm:ghostnet_100?num_classes=10`), or the path of a file, see
            `load_file`; a path that looks like a spec is written with ./ before it

    A network that came from a file has names that are fit for source code and its class's own methods, and unless it is
    an exported graph, weights in single precision. Raises LoadError, UntrustedError, CaptureError or OptionError. A
    bare name that is no file but a network of one of the sources is answered with its specs.
    """
    options = options or LoadOptions()
    if _SPEC.fullmatch(target):
        if options.arch is not None:
            raise OptionError(f"{target} names a network already: --arch is for files with weights only")
        return build_spec(target, options.seed)
    if _BARE.fullmatch(target) and not Path(target).exists():
        specs = list(_specs_named(target))
        if specs:
            raise LoadError(f"there is no file {target}; for the network of that name give {' or '.join(specs)}")
    loaded = load_file(target, options)
    check_names(loaded.module)  # before anything runs the network
    check_methods(loaded.module)
    return _in_float32(loaded)


def _in_float32(loaded: Loaded) -> Loaded:
    """What was saved in another precision, for a runtime that knows this one best. An exported graph keeps its own."""
    if isinstance(loaded.module, ExportedNetwork):
        return loaded
    found = {one.dtype for one in named_tensors(loaded.module).values() if one.is_floating_point()} - {torch.float32}
    if not found:
        return loaded
    names = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in found))
    note = f"weights are {names} in the file and were converted to float32"
    return replace(loaded, module=loaded.module.float(), notes=(*loaded.notes, note))


def _specs_named(name: str) -> Iterator[str]:
    for source, names in _NAMES.items():
        try:
            known = name.lower() in names()
        except LoadError:  # not installed: it has nothing to offer
            continue
        if known:
            yield f"{source}:{name.lower()}"


def _torchvision_names() -> Iterable[str]:
    names: Iterable[str] = import_torchvision().models.list_models()
    return names


def _timm_names() -> Iterable[str]:
    names: Iterable[str] = import_timm().list_models()
    return names


_NAMES: dict[str, Callable[[], Iterable[str]]] = {
    "zoo": zoo.names,
    "torchvision": _torchvision_names,
    "timm": _timm_names,
}
