"""StructureLearner under torch.distributed: two real processes with gloo."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, multiprocessing, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from fxprune.learner import StructureLearner

RANKS = 2


def network(norm: str) -> nn.Module:
    torch.manual_seed(0)
    norms = {"batch": lambda: nn.BatchNorm2d(8), "group": lambda: nn.GroupNorm(8, 8)}
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), norms[norm](), nn.ReLU(),
        nn.Conv2d(8, 6, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4),
    )  # fmt: skip


def batch(seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(8, 3, 6, 6, generator=draw), torch.randint(0, 4, (8,), generator=draw)


def learn(norm: str, part: slice, wrap: bool) -> dict[str, Any]:
    """Three epochs on a part of every batch."""
    model = network(norm)
    learner = StructureLearner(model, batch(0)[0], keep_rate=0.5)
    trained = DistributedDataParallel(model) if wrap else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(3):
        for number in range(4):
            optimizer.zero_grad()
            x, y = batch(10 * epoch + number)
            F.cross_entropy(trained(x[part]), y[part]).backward()
            learner.update()
            optimizer.step()
        learner.redistribute()
    done = learner.finish(proof=False)
    return {"widths": learner.widths, "counts": learner.final_widths(), "kept": done.recipe.to_json()}


def one_rank(rank: int, norm: str, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # gloo would look for the host's own name, which may lead nowhere
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=RANKS)
    try:
        torch.save(learn(norm, slice(rank, None, RANKS), wrap=True), Path(folder, f"{rank}.pt"))
    finally:
        distributed.destroy_process_group()


def both_ranks(norm: str, folder: Path) -> list[dict[str, Any]]:
    multiprocessing.spawn(one_rank, (norm, str(folder)), nprocs=RANKS)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]


@pytest.mark.skipif(sys.platform != "linux", reason="gloo over the loopback device")
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_both_ranks_decide_alike(norm: str, tmp_path: Path) -> None:
    first, second = both_ranks(norm, tmp_path)
    assert first == second
    if norm == "group":  # batch statistics of half a batch are others than those of the whole
        alone = learn(norm, slice(None), wrap=False)
        assert first["counts"] == alone["counts"]
        assert first["widths"] == pytest.approx(alone["widths"], rel=1e-4)
