"""Model files: a network saved whole with `torch.save(model, path)`, read without running code that the file chose."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.loaded import Loaded
from fxprune.capture.trust import allowed_globals
from fxprune.errors import LoadError

_SAVE_AGAIN = "load it where it was made and write it with torch.save(model, path)"
_NEEDS_ARCHITECTURE = (
    "holds weights without the network they belong to. The coming option --arch will name it; until then build the "
    "network in Python, load the weights into it and hand it over, or write it with torch.save(model, path)"
)
_BY_SUFFIX = {
    ".safetensors": _NEEDS_ARCHITECTURE,
    ".pt2": f"is an exported program, which cannot be read yet: {_SAVE_AGAIN}",
    ".onnx": "is an ONNX file: give the torch network it was made from",
}


def load_file(path: str | Path, trust: Sequence[str] = ()) -> Loaded:
    """Load a pickled nn.Module onto the CPU.

    trust  packages whose nn.Module subclasses and plain records the file may use, besides torch, torchvision, timm and
           the zoo. Naming a package allows importing it, nothing else in it can be called by the file.

    torch's restricted unpickler does the reading, with exactly the classes allow-listed that the file names and that
    pass `fxprune.capture.trust`. A DataParallel wrapper is taken off, since it would look for its GPUs.

    Raises UntrustedError with the names that are not allowed; LoadError for everything else that is no whole network:
    missing, empty, damaged, TorchScript, exported programs, ONNX, state dicts and other checkpoints.
    """
    file = Path(path)
    _check_kind(file)
    found = _unpickle(file, [trust] if isinstance(trust, str) else trust)
    notes = []
    if isinstance(found, nn.DataParallel):
        found = vars(found).get("_modules", {}).get("module")
        notes.append("the network was wrapped in DataParallel; the wrapper was taken off")
    if not isinstance(found, nn.Module):
        raise LoadError(f"{file} {_what_it_is(found)}")
    return Loaded(found, origin=file.name, name=file.stem, notes=tuple(notes))


def _check_kind(file: Path) -> None:
    """Tell apart what can be told without unpickling anything. Raises LoadError."""
    start = _first_bytes(file)
    if not start:
        raise LoadError(f"{file} is empty")
    if file.suffix.lower() in _BY_SUFFIX:
        raise LoadError(f"{file} {_BY_SUFFIX[file.suffix.lower()]}")
    if start.startswith(b"\x80"):
        raise LoadError(f"{file} is a bare pickle or older than torch 1.6: {_SAVE_AGAIN}")
    if start != b"PK\x03\x04":
        raise LoadError(f"{file} is not a file that torch.save wrote")
    _check_archive(file)


def _first_bytes(file: Path) -> bytes:
    if file.is_dir():
        raise LoadError(f"{file} is a folder: give the file that torch.save wrote")
    try:
        with file.open("rb") as stream:
            return stream.read(4)
    except FileNotFoundError as error:
        raise LoadError(f"{file} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise LoadError(f"{file} cannot be read: {error}") from error


def _check_archive(file: Path) -> None:
    try:
        with zipfile.ZipFile(file) as archive:
            members = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise LoadError(f"{file} is truncated or damaged") from error
    if "constants.pkl" in members:
        raise LoadError(f"{file} is a TorchScript archive, whose Python source is gone: {_SAVE_AGAIN}")
    if members & {"archive_format", "models/model.json"}:
        raise LoadError(f"{file} {_BY_SUFFIX['.pt2']}")
    if "data.pkl" not in members:
        raise LoadError(f"{file} is a zip archive, but not one that torch.save wrote")


def _unpickle(file: Path, trust: Sequence[str]) -> Any:
    """The file's object, made of allowed classes only."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise LoadError(f"{file} is damaged or not a pickle that torch.save wrote") from error
    allowed = allowed_globals(names, trust, str(file))
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # as above, and whatever a constructor says about wrong arguments
        raise LoadError(
            f"{file} is damaged, or was saved with an incompatible version of torch or of the network's package "
            f"({type(error).__name__})"
        ) from error


def _what_it_is(found: object) -> str:
    """The rest of a sentence about a readable file that is no network."""
    if not isinstance(found, Mapping):
        return f"holds a {type(found).__name__}, not a network"
    networks = [repr(key) for key, value in found.items() if isinstance(value, nn.Module)]
    if networks:
        return f"holds a checkpoint with a network under {', '.join(networks)}: save that one alone"
    if any(isinstance(value, Tensor) for value in _values(found)):
        return _NEEDS_ARCHITECTURE
    return f"holds a {type(found).__name__} without tensors, not a network"


def _values(checkpoint: Mapping[Any, Any]) -> Iterator[Any]:
    """Values of a checkpoint and of the dictionaries in it, as in {"epoch": 3, "state_dict": {...}}."""
    for value in checkpoint.values():
        yield from value.values() if isinstance(value, Mapping) else [value]
