"""Writing and comparing saved networks, shared by the tests that load files."""

from __future__ import annotations

import zipfile
from pathlib import Path

import torch
from torch import nn


def assert_same(one: nn.Module, other: nn.Module) -> None:
    assert [(name, type(module)) for name, module in one.named_modules()] == [
        (name, type(module)) for name, module in other.named_modules()
    ]
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    assert all(first[name].dtype == second[name].dtype for name in first)
    assert all(first[name].numpy().tobytes() == second[name].numpy().tobytes() for name in first)
    assert [module.training for module in one.modules()] == [module.training for module in other.modules()]


def write_pickle(path: Path, instructions: bytes) -> None:
    """An archive as torch.save writes it, with a hand-written pickle in it."""
    torch.save(None, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(name, b"\x80\x02" + instructions if name.endswith("data.pkl") else content)


def trusting_load() -> None:
    try:
        torch.load("net.pt", weights_only=False)
    except Exception as error:  # the planted code has run by the time that its result turns out not to be a network
        print(error)
