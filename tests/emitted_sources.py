"""What tests of model.py share: small compiled networks, and a look at the source of one."""

from __future__ import annotations

from pathlib import Path

import families
import torch
from models import NETWORKS
from torch import nn

import fxprune
from fxprune import Compiled
from fxprune.emit.source_proof import ProvedSource

ROOT = Path(__file__).parents[1]


def compiled(model: nn.Module, example: object, sparsity: float = 0.5) -> Compiled:
    return fxprune.compile(model, example, sparsity=sparsity, proof=False)


def network(name: str) -> Compiled:
    case = NETWORKS[name]
    return compiled(case.model(), case.example())


def family(name: str) -> Compiled:
    return compiled(families.build(name, dtype=torch.float32), families.pictures(name, dtype=torch.float32))


def check(done: Compiled) -> ProvedSource:
    """The source is exact, and looks as it should."""
    proved = done.to_source()
    assert proved.difference == 0.0 and proved.train_difference == 0.0
    text = proved.source.text
    assert max(map(len, text.splitlines())) <= 120
    assert str(ROOT) not in text and not any(line != line.rstrip() for line in text.splitlines())
    assert done.to_source().source.text == text
    return proved
