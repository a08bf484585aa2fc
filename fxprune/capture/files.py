"""Model files: networks saved whole and weights alone, read without running code that the file chose."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capture.architectures import load_weights
from fxprune.capture.checkpoints import State, find_network, find_state
from fxprune.capture.exported import ExportedNetwork
from fxprune.capture.exported_file import read_exported, read_unrestricted
from fxprune.capture.instructions import check_instructions
from fxprune.capture.loaded import Loaded
from fxprune.capture.options import LoadOptions
from fxprune.capture.trust import Trust, allowed_globals
from fxprune.capture.unrestricted import unpickle_unrestricted
from fxprune.errors import LoadError, OptionError, UntrustedError, described

_SAVE_AGAIN = "load it where it was made and write it with torch.save(model, path)"
_NEEDS_ARCHITECTURE = (
    "holds weights without the network they belong to: name it with --arch torchvision:NAME, timm:NAME, zoo:NAME, "
    "package.module:factory or path/to/train.py:factory"
)
_BY_SUFFIX = {
    ".onnx": "is an ONNX file: give the torch network it was made from",
    ".json": "is JSON: of weights in several files merge the parts into one and give that",
}
_NETWORK_IS_KNOWN = LoadOptions(arch="known")
_PICKLE, _EXPORTED, _SAFETENSORS = "pickle", "exported", "safetensors"


def load_file(path: str | Path, options: LoadOptions | None = None) -> Loaded:
    """Load a network onto the CPU: one that torch.save wrote whole, or weights for the architecture in `options`.

    torch's restricted unpickler does the reading, with exactly the classes allow-listed that the file names and that
    pass `fxprune.capture.trust`. A DataParallel wrapper is taken off, since it would look for its GPUs.

    Raises UntrustedError with the names that are not allowed; LoadError for everything else that is no network:
    missing, empty, damaged, TorchScript, ONNX, weights without an architecture or for another one.
    """
    file, options = Path(path), options or LoadOptions()
    found, notes = _READERS[_check_kind(file, options)](file, options)
    loaded = _with_weights(file, found, options) if options.arch else _whole(file, found)
    return replace(loaded, origin=file.name, name=file.stem, notes=(*notes, *loaded.notes))


def read_weights(path: str | Path) -> State:
    """The weights in a file, for a network that is known; no code of the file is run. Raises LoadError."""
    file = Path(path)
    kind = _check_kind(file, _NETWORK_IS_KNOWN)
    if kind == _EXPORTED:
        raise LoadError(f"{file} is an exported program, not weights: torch.save the network's state_dict()")
    read = _read_safetensors if kind == _SAFETENSORS else _unpickle
    found, _ = read(file, _NETWORK_IS_KNOWN)
    state, _ = find_state(found, str(file))
    return state


def _with_weights(file: Path, found: Any, options: LoadOptions) -> Loaded:
    assert options.arch is not None
    if isinstance(found, nn.Module):
        raise OptionError(f"{file} holds a whole network, and {options.arch} names another one: give one of them")
    state, places = find_state(found, str(file))
    made, notes = load_weights(state, options.arch, str(file), options.seed)
    return replace(made, fresh=False, notes=(*made.notes, *places, *notes))


def _whole(file: Path, found: Any) -> Loaded:
    notes = []
    if isinstance(found, Mapping):
        network, place = find_network(found)
        if network is not None:
            found = network
            notes.append(place)
    if isinstance(found, nn.DataParallel):
        found = vars(found).get("_modules", {}).get("module")
        notes.append("the network was wrapped in DataParallel; the wrapper was taken off")
    if not isinstance(found, nn.Module):
        raise LoadError(f"{file} {_what_it_is(found)}")
    return Loaded(found, origin=file.name, name=file.stem, notes=tuple(notes))


def _check_kind(file: Path, options: LoadOptions) -> str:
    """Tell apart what can be told without unpickling anything. Raises LoadError."""
    start = _first_bytes(file)
    suffix = file.suffix.lower()
    if not start:
        raise LoadError(f"{file} is empty")
    if suffix in _BY_SUFFIX:
        raise LoadError(f"{file} {_BY_SUFFIX[suffix]}")
    if suffix == ".safetensors":
        if options.arch is None:
            raise LoadError(f"{file} {_NEEDS_ARCHITECTURE}")
        return _SAFETENSORS
    if start.startswith(b"\x80") and not options.allow_pickle:
        raise LoadError(
            f"{file} is a bare pickle or older than torch 1.6: {_SAVE_AGAIN}, or give --allow-pickle to read it "
            "unchecked"
        )
    if start.startswith(b"\x80"):
        return _PICKLE
    if start != b"PK\x03\x04":
        raise LoadError(f"{file} is not a file that torch.save wrote")
    return _check_archive(file)


def _first_bytes(file: Path) -> bytes:
    if file.is_dir():
        raise LoadError(f"{file} is a folder: give the file that torch.save wrote")
    try:
        with file.open("rb") as stream:
            return stream.read(4)
    except FileNotFoundError as error:
        raise LoadError(f"{file} does not exist") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise LoadError(f"{file} cannot be read: {getattr(error, 'strerror', None) or error}") from error


def _check_archive(file: Path) -> str:
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
    except Exception as error:  # a damaged directory fails in as many ways as it has fields
        raise LoadError(f"{file} is truncated or damaged") from error
    names = {record.filename for record in records}
    members = {name.partition("/")[2] for name in names}
    if "constants.pkl" in members:
        raise LoadError(f"{file} is a TorchScript archive, whose Python source is gone: {_SAVE_AGAIN}")
    if "models/model.json" in members:
        return _EXPORTED
    if "serialized_exported_program.json" in names:
        raise LoadError(f"{file} was written by torch.export.save of an old torch: export the network again")
    if file.suffix.lower() == ".pt2":  # of a truncated one, the pickle inside may be what is left of the archive
        raise LoadError(f"{file} is truncated, damaged or no exported program")
    if "data.pkl" not in members:
        raise LoadError(f"{file} is a zip archive, but not one that torch.save wrote")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):  # it may hold any number of bytes
        raise LoadError(f"{file} is compressed, which torch.save never does: {_SAVE_AGAIN}")
    return _PICKLE


def _unpickle(file: Path, options: LoadOptions) -> tuple[Any, tuple[str, ...]]:
    """The file's object, made of allowed classes only unless everything is allowed, and notes on what was run."""
    trust = Trust(options.trust)
    if options.allow_pickle:
        return unpickle_unrestricted(file, trust)
    pickled, names = _pickle_in(file)
    allowed = allowed_globals(names, trust, str(file))
    try:
        check_instructions(pickled, {name: value for value, name in allowed}, str(file))
        with torch.serialization.safe_globals([*allowed]), warnings.catch_warnings(action="ignore"):
            found = torch.load(file, map_location="cpu", weights_only=True)
    except UntrustedError:
        raise
    except Exception as error:  # as above, and whatever a class says about a state that is not its own
        detail = "" if isinstance(error, UnpicklingError) else f": {described(error)}"  # torch's is about its options
        raise LoadError(
            f"{file} is damaged, or was saved with an incompatible version of torch or of the network's package{detail}"
        ) from error
    return found, trust.notes()


def _pickle_in(file: Path) -> tuple[bytes, list[str]]:
    """The pickle, and the names in it that torch does not know as harmless. Raises LoadError."""
    try:
        pickled = torch._C.PyTorchFileReader(str(file)).get_record("data.pkl")
        if pickled[:1] == b"\x80" and pickled[1] in (4, 5):
            raise LoadError(f"{file} has pickle protocol {pickled[1]}: save it again without pickle_protocol")
        return pickled, torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except LoadError:
        raise
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise LoadError(f"{file} is damaged or not a pickle that torch.save wrote") from error


def _read_exported(file: Path, options: LoadOptions) -> tuple[ExportedNetwork, tuple[str, ...]]:
    if not options.allow_pickle:
        return read_exported(file), ()
    network, note = read_unrestricted(file)
    return network, (note,)


def _read_safetensors(file: Path, _options: LoadOptions) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file as read

    try:
        return read(file), ()
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise LoadError(f"{file} is damaged or no safetensors file: {described(error)}") from error


_READERS: dict[str, Callable[[Path, LoadOptions], tuple[Any, tuple[str, ...]]]] = {
    _PICKLE: _unpickle,
    _EXPORTED: _read_exported,
    _SAFETENSORS: _read_safetensors,
}


def _what_it_is(found: object) -> str:
    """The rest of a sentence about a readable file that is no network."""
    if not isinstance(found, Mapping):
        return f"holds a {type(found).__name__}, not a network"
    try:
        find_state(found, "")
    except LoadError:
        return f"holds a {type(found).__name__} without tensors, not a network"
    return _NEEDS_ARCHITECTURE
