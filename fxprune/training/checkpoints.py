"""Checkpoints of a training run: written at once or not at all, read without running code, refused for another run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxprune.emit.atomic import flush_entry
from fxprune.errors import ExportError, LoadError, OptionError

CHECKPOINT, AT_THE_CUT = "checkpoint.pt", "structure.pt"
_FORMAT = 1
_OPTIONS = {"rate": "lr", "drops": "drop"}  # that are called otherwise on the command line
_HINT = "--no-resume starts anew"


class Checkpoints:
    """Files in the folder of a run.

    folder    where they are; made when the first one is written
    identity  what decides the result: command, options, and fingerprints of network and data. Only a checkpoint with
              the same is read
    machine   what the last bits depend on: threads, device, version of torch. Another one is allowed, and noted
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], machine: Mapping[str, Any] | None = None) -> None:
        self.folder, self.identity, self.machine = folder, dict(identity), dict(machine or {})
        self.notes: list[str] = []

    def read(self, name: str = CHECKPOINT) -> dict[str, Any] | None:
        """The state that was written last, None without any. Raises OptionError for that of a run with other options,
        LoadError for a damaged file.
        """
        path = self.folder / name
        if not path.exists():
            return None
        found = _read(path)
        self._check(found["identity"], path)
        self._note(found.get("machine", {}))
        state: dict[str, Any] = found["state"]
        return state

    def write(self, state: Mapping[str, Any], name: str = CHECKPOINT) -> None:
        """Replace the checkpoint. Raises ExportError."""
        path = self.folder / name
        draft = path.with_name(f"{name}.part")  # always the same: what a killed run left is written over
        content = {"format": _FORMAT, "identity": self.identity, "machine": self.machine, "state": dict(state)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as file:
                torch.save(content, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, path)
            flush_entry(self.folder)
        except (OSError, RuntimeError) as error:  # torch says nothing more than that a write failed
            raise ExportError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error

    def remove(self) -> None:
        """Start anew."""
        for name in (CHECKPOINT, AT_THE_CUT):
            (self.folder / name).unlink(missing_ok=True)

    def _note(self, machine: Mapping[str, Any]) -> None:
        for name, ours in self.machine.items():
            theirs = machine.get(name)
            if theirs not in (None, ours):
                self.notes.append(
                    f"the run began with {name} {theirs} and goes on with {ours}: the last bits of its weights may be "
                    "others than without an interruption"
                )

    def _check(self, identity: Mapping[str, Any], path: Path) -> None:
        for name in (*self.identity, *identity):
            theirs, ours = identity.get(name), self.identity.get(name)
            if theirs == ours:
                continue
            if str(name).endswith("fingerprint"):
                what = str(name).removesuffix(" fingerprint")
                raise OptionError(f"{path} was made with another {what}: give the same again, or {_HINT}")
            option = f"--{_OPTIONS.get(name, str(name).replace('_', '-'))}"
            what = "fxprune" if name == "command" else option
            raise OptionError(f"{path} was made with {what} {theirs}, not {ours}: give the same options, or {_HINT}")


def fingerprint(network: nn.Module) -> str:
    """Tells the numbers of a network from others."""
    found = hashlib.sha256()
    for name, one in network.state_dict().items():
        found.update(f"{name} {one.dtype} {tuple(one.shape)}".encode())
        found.update(one.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _read(path: Path) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle fails in as many ways as there are opcodes
        raise LoadError(f"{path} is damaged or no checkpoint: remove it, or {_HINT}") from error
    if not isinstance(found, dict) or not {"format", "identity", "state"} <= set(found):
        raise LoadError(f"{path} is not a checkpoint that fxprune wrote: move it away")
    if found["format"] != _FORMAT:
        raise LoadError(f"{path} has format {found['format']!r} and this fxprune reads {_FORMAT}: {_HINT}")
    return found
