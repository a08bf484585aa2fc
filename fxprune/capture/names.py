"""Names that are safe to write into source code.

fx puts the names of modules, parameters and buffers into the code it generates: `self.conv1`, or for anything that is
no identifier, `getattr(self, "...")` with the name unescaped. A name with a quotation mark in it is therefore code that
runs when the traced graph is called, and such names can be in a file that loads without running any.
"""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor, nn

from fxprune.errors import CaptureError, LoadError
from fxprune.program import NO_TENSORS

_REGISTRIES = {"_modules": "module", "_parameters": "parameter", "_buffers": "buffer"}
_PLAIN = re.compile("[A-Za-z0-9_-]+")


def check_names(module: nn.Module) -> None:
    """Raise CaptureError unless every module, parameter and buffer under `module` has a name fit for source code.

    Fit are identifiers and other names of ASCII letters, digits, _ and -, which generated code has to quote: Sequential
    counts in digits, torchvision's RegNet has a `block1-0`. Python's keywords are not (`self.class` does not parse).
    Tensors kept as plain attributes count too, because tracing turns them into graph nodes of that name. No method of
    a module is called: in a module that came from a file, an attribute may stand in a method's place.
    """
    for path, owner in _owners(module):
        for kind, name in _names(path, owner):
            if not _fits_source(name):
                raise CaptureError(_complaint(kind, name, path))


def check_methods(module: nn.Module) -> None:
    """Raise LoadError when an attribute stands in the place of a method: of one of nn.Module's, or one to be called.

    In a module that came from a file, `module.parameters()` would call what the file put there. `forward` is the
    network's own affair. For modules that have passed `check_names`.
    """
    for path, owner in _owners(module):
        hidden = sorted(name for name, value in vars(owner).items() if _stands_for_method(owner, name, value))
        if hidden:
            where = f"in {path}" if path else "at the top of the network"
            raise LoadError(
                f"the attribute {hidden[0]!r} {where} stands in the place of a method: rename it, save again"
            )


def _stands_for_method(owner: object, name: str, value: object) -> bool:
    if name == "forward" or not callable(getattr(type(owner), name, None)):
        return False
    return callable(value) or (name != "type" and hasattr(nn.Module, name))  # detectors call a layer's kind its type


def _owners(module: nn.Module) -> Iterator[tuple[str, object]]:
    """(path, module) of every module, each once. Its names are to be checked before it is asked for its modules."""
    seen: set[int] = set()
    waiting: list[tuple[str, object]] = [("", module)]
    while waiting:
        path, owner = waiting.pop()
        if owner is None or id(owner) in seen:
            continue
        seen.add(id(owner))
        yield path, owner
        waiting += [(f"{path}.{name}".lstrip("."), child) for name, child in vars(owner)["_modules"].items()]


def _names(path: str, owner: object) -> Iterator[tuple[str, object]]:
    """(kind, name) of everything one module holds. Raises CaptureError when it has no registries to look into."""
    state = vars(owner) if isinstance(owner, nn.Module) else {}
    if not all(isinstance(state.get(registry), dict) for registry in _REGISTRIES):
        where = path or "the network itself"
        if isinstance(owner, torch.jit.ScriptModule):
            raise CaptureError(f"{where} is a ScriptModule, which has no Python source to trace: put the module there")
        raise CaptureError(
            f"{where} is a {type(owner).__name__}, not a module that has been set up: "
            "its __init__ has to call super().__init__()"
        )
    for registry, kind in _REGISTRIES.items():
        yield from ((kind, name) for name in state[registry])
    for name, value in state.items():
        if type(value) not in NO_TENSORS and isinstance(value, Tensor):
            yield "tensor attribute", name


@lru_cache(10_000, typed=True)
def _fits_source(name: object) -> bool:
    """Python reads identifiers in their NFKC form: one that is written otherwise would name another attribute."""
    if not isinstance(name, str) or keyword.iskeyword(name):
        return False
    return bool(_PLAIN.fullmatch(name)) or (name.isidentifier() and unicodedata.normalize("NFKC", name) == name)


def _complaint(kind: str, name: object, path: str) -> str:
    where = f"in {path}" if path else "at the top of the network"
    return (
        f"the {kind} {name!r} {where} cannot be written into source code: "
        "rename it to letters, digits, _ and -, and not to a word that Python keeps for itself"
    )
