"""Loaded: a network as its source gave it, before anything has looked inside."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Loaded:
    """One network and where it came from.

    module      the network, on the CPU, in the mode (train or eval) its source left it in
    origin      what was loaded, for the report: a spec or a file name, never a folder
    name        file stem or name within the spec, for the default output folder
    input_hint  shape it was made for, batch first, where the source knows one
    fresh       the weights were drawn here and have never been trained
    notes       what loading had to decide, for the report
    """

    module: nn.Module
    origin: str
    name: str
    input_hint: tuple[int, ...] | None = None
    fresh: bool = False
    notes: tuple[str, ...] = ()
