"""The one place that imports torchvision and timm: both are optional, and torchvision may need help.

torchvision from the package index is built for CUDA. Beside a CPU-only torch its compiled operators cannot be loaded;
the Python code then fails at import, because it registers shapes for operators that nobody has declared ("operator
torchvision::nms does not exist"). No classifier or segmentation network calls them. Declaring the two that are missing
is enough for the import to go through.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

from fxprune.errors import LoadError, described

_MISSING_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_kept_alive: list[torch.library.Library] = []  # a collected Library takes its schemas with it


def import_torchvision() -> ModuleType:
    """torchvision, also beside a torch that cannot load its compiled operators. Raises LoadError when it is missing."""
    try:
        return _import("torchvision")
    except RuntimeError as error:
        if _kept_alive or "torchvision::nms" not in str(error):
            raise LoadError(f"torchvision cannot be imported: {described(error)}") from error
    _declare_missing()
    return import_torchvision()


def import_timm() -> ModuleType:
    """timm, which imports torchvision itself. Raises LoadError when either is missing."""
    import_torchvision()
    return _import("timm")


def _import(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise LoadError(f"{package} cannot be imported: {described(error)}") from error
        raise LoadError(f"{package} is not installed: pip install 'fxprune[zoo]'") from error
    except (ImportError, OSError) as error:
        raise LoadError(f"{package} cannot be imported: {described(error)}") from error


def _declare_missing() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _MISSING_SCHEMAS:
        library.define(schema)
    _kept_alive.append(library)
