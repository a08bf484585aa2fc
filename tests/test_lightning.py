"""The Lightning callback, with the real library."""

from __future__ import annotations

import contextlib
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from fxprune.capture.zoo_imports import import_torchvision
from fxprune.errors import LoadError, OptionError
from fxprune.learner import StructureLearner

with contextlib.suppress(LoadError):
    import_torchvision()  # Lightning's metrics import it when it is there, and it may need help
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pl = pytest.importorskip("lightning.pytorch")

from fxprune.lightning import StructureLearning

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]
EXAMPLE = torch.zeros(2, 3, 8, 8)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Classifier(pl.LightningModule):  # type: ignore[name-defined, misc]
    def __init__(self, optimizer: str = "sgd") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.optimizer = optimizer
        self.network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6),
            nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4),
        )  # fmt: skip
        self.seen: list[int] = []

    def training_step(self, batch: Any, _number: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def validation_step(self, batch: Any, _number: int) -> None:
        self.network(batch[0])

    def on_train_epoch_start(self) -> None:
        self.seen.append(sum(one.numel() for one in self.network.parameters()))

    def configure_optimizers(self) -> Any:
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), 0.01)
        optimizer = torch.optim.SGD(self.parameters(), 0.05, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2)]


def data() -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(1)
    pictures, labels = torch.randn(24, 3, 8, 8, generator=draw), torch.randint(0, 4, (24,), generator=draw)
    return DataLoader(TensorDataset(pictures, labels), 8)


def trainer(callback: StructureLearning, folder: Path, epochs: int, **options: Any) -> Any:
    kept = pl.callbacks.ModelCheckpoint(folder, save_top_k=-1, filename="{epoch}")
    return pl.Trainer(
        accelerator="cpu", devices=1, max_epochs=epochs, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[kept, callback], **options,
    )  # fmt: skip


def learning(**options: Any) -> StructureLearning:
    return StructureLearning("network", EXAMPLE, **{"max_epochs": 2, **options})


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_compact_network_takes_the_place_and_goes_on_training(optimizer: str, tmp_path: Path) -> None:
    model, callback = Classifier(optimizer), learning()
    run = trainer(callback, tmp_path, 4)
    run.fit(model, data())
    assert callback.done is not None and callback.done.report.proof_error is not None
    assert callback.done.report.proof_error < 1e-9
    assert callback.finish().module is model.network
    assert model.seen[0] > model.seen[-1] == callback.done.report.after.parameters
    held = run.optimizers[0].param_groups[0]["params"]
    assert [id(one) for one in held] == [id(one) for one in model.network.parameters()]
    assert all(
        one.shape == value.shape for one in held for value in run.optimizers[0].state[one].values() if value.ndim
    )


def test_it_equals_the_plain_loop(tmp_path: Path) -> None:
    callback = learning(cut=False, max_epochs=20)
    trainer(callback, tmp_path, 2).fit(Classifier(), data())
    model = Classifier()
    learner = StructureLearner(model.network, EXAMPLE)
    [optimizer], [schedule] = model.configure_optimizers()
    for _ in range(2):
        for batch in data():
            optimizer.zero_grad()
            model.training_step(batch, 0).backward()
            learner.update()
            optimizer.step()
        learner.redistribute()
        schedule.step()
    assert callback.learner is not None and callback.done is None
    assert callback.learner.widths == learner.widths
    ours, theirs = callback.finish().state_dict(), learner.finish().state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_taken_up_again_before_at_and_after_the_cut(epoch: int, tmp_path: Path) -> None:
    whole, callback = Classifier(), learning()
    trainer(callback, tmp_path, 4).fit(whole, data())
    again, resumed = Classifier(), learning()
    trainer(resumed, tmp_path / "again", 4).fit(again, data(), ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
    assert len(again.seen) == 3 - epoch
    assert callback.learner is not None and resumed.learner is not None
    assert callback.learner.widths == resumed.learner.widths
    for name, value in whole.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name


def test_a_checkpoint_of_the_compact_network_is_validated(tmp_path: Path) -> None:
    whole = Classifier()
    trainer(learning(), tmp_path, 3).fit(whole, data())
    again, run = Classifier(), trainer(learning(), tmp_path / "again", 3)
    run.validate(again, data(), ckpt_path=tmp_path / "epoch=2.ckpt", verbose=False)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_gathered_gradients_count_once_a_step(tmp_path: Path) -> None:
    callback = learning(cut=False)
    trainer(callback, tmp_path, 1, accumulate_grad_batches=3).fit(Classifier(), data())
    assert callback.learner is not None and callback.learner.updates == 1


def test_half_precision(tmp_path: Path) -> None:
    callback = learning()
    trainer(callback, tmp_path, 3, precision="bf16-mixed").fit(Classifier(), data())
    assert callback.learner is not None and callback.learner.updates >= 3
    assert callback.done is not None


def test_what_cannot_be_done_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="Classifier has no network called 'net'"):
        trainer(StructureLearning("net", EXAMPLE), tmp_path, 1).fit(Classifier(), data())
    with pytest.raises(OptionError, match="nothing has been learned yet"):
        learning().finish()

    class Two:
        world_size = 2

    with pytest.raises(OptionError, match="2 devices train copies"):
        learning().setup(Two(), Classifier(), "fit")
