"""--allow-pickle: the one place where a file may run whatever it wants, because the user said so."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fxprune.capture.scripts import searching
from fxprune.capture.trust import Trust
from fxprune.capture.zoo_imports import import_torchvision
from fxprune.errors import LoadError, described

_NOTE = "the file was unpickled without any check, as --allow-pickle asks: whatever code it holds has run"


def unpickle_unrestricted(file: Path, trust: Trust) -> tuple[Any, tuple[str, ...]]:
    """The file's object, and notes on what was run. Classes of `__main__` are looked for in the trusted scripts."""
    try:
        with searching(Path.cwd()):
            found = torch.load(file, map_location="cpu", weights_only=False, pickle_module=_pickle_for(trust))
    except LoadError:
        raise
    except Exception as error:  # it may do anything, so it may fail in any way
        raise LoadError(f"{file} cannot be unpickled: {described(error)}") from error
    return found, (_NOTE, *trust.notes())


def _pickle_for(trust: Trust) -> ModuleType:
    """Python's pickle with another idea of where the classes of a program are."""

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            if module.partition(".")[0] in ("torchvision", "timm"):
                import_torchvision()
            for script in trust.scripts_named(module):
                if hasattr(script, name):
                    return getattr(script, name)
            return super().find_class(module, name)

    changed = ModuleType("pickle")
    own = {name: value for name, value in vars(pickle).items() if not name.startswith("__")}
    changed.__dict__.update(own, Unpickler=Unpickler)
    return changed
