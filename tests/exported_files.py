"""Exported programs and .pt2 files made of a sound one: changed, hostile, damaged."""

from __future__ import annotations

import functools
import io
import json
import os
import zipfile
from collections.abc import Callable
from typing import Any

import torch
from test_trust import Calls
from torch import nn
from torch.export import Dim, ExportedProgram

from fxprune import zoo


def exported(model: nn.Module, *args: Any, dynamic: Any = None, **kwargs: Any) -> ExportedProgram:
    return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic)


def resnet(dynamic: bool = False) -> ExportedProgram:
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    return exported(zoo.build("resnet8", seed=5).eval(), x, dynamic=({0: Dim("b")},) if dynamic else None)


SHOUT = "__import__('pathlib').Path('canary').touch()"


@functools.cache
def sound() -> dict[str, bytes]:
    """Contents of a sound .pt2 file."""
    stream = io.BytesIO()
    torch.export.save(resnet(True), stream)
    with zipfile.ZipFile(stream) as archive:
        return {info.filename.partition("/")[2]: archive.read(info) for info in archive.infolist()}


def write(change: Callable[[dict[str, Any]], object], records: dict[str, bytes] | None = None) -> None:
    """net.pt2 after a change to its JSON documents, `models/model.json` and others, and with other records in it."""
    members = sound()
    documents = {name: json.loads(content) for name, content in members.items() if name.endswith(".json")}
    change(documents)
    members = {
        **members,
        **{name: json.dumps(content).encode() for name, content in documents.items()},
        **(records or {}),
    }
    with zipfile.ZipFile("net.pt2", "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"net/{name}", content)


def graph(documents: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = documents["models/model.json"]["graph_module"]["graph"]
    return found


def weights(documents: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = documents["data/weights/model_weights_config.json"]["config"]
    return found


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def pickled_weight() -> None:
    def change(documents: dict[str, Any]) -> None:
        weights(documents)["conv1.weight"].update(use_pickle=True, path_name="weight_0")

    write(change, {"data/weights/weight_0": saved(Calls(os.system, "touch canary"))})


def call(target: str, *arguments: dict[str, Any]) -> Callable[[dict[str, Any]], None]:
    """A node before all others that calls something."""
    inputs = [{"name": f"a{position}", "arg": one, "kind": 1} for position, one in enumerate(arguments)]
    node = {"target": target, "inputs": inputs, "outputs": [{"as_none": True}], "metadata": {}, "name": "boom"}
    return lambda documents: graph(documents)["nodes"].insert(0, node)
