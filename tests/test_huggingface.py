"""The callback for Hugging Face's Trainer, with the real library."""

from __future__ import annotations

import contextlib
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from fxprune.capture.zoo_imports import import_torchvision
from fxprune.errors import LoadError, OptionError
from fxprune.learner import StructureLearner

with contextlib.suppress(LoadError):
    import_torchvision()  # transformers imports it when it is there, and it may need help
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

from fxprune.huggingface import StructureLearning

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore::FutureWarning")]
transformers.logging.set_verbosity_error()
EXAMPLE = torch.zeros(2, 3, 8, 8)


class Classifier(nn.Module):
    """As the Trainer wants it: labels go in, the loss comes out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.network = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.BatchNorm2d(6),
            nn.ReLU(), nn.Flatten(), nn.Linear(6 * 36, 4),
        )  # fmt: skip

    def forward(self, pixel_values: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.network(pixel_values)
        return {"loss": F.cross_entropy(scores, labels), "logits": scores}


class Pictures(Dataset[dict[str, Tensor]]):
    def __init__(self) -> None:
        draw = torch.Generator().manual_seed(1)
        self.pictures = torch.randn(24, 3, 8, 8, generator=draw)
        self.labels = torch.randint(0, 4, (24,), generator=draw)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        return {"pixel_values": self.pictures[number], "labels": self.labels[number]}


def trainer(model: nn.Module, callback: StructureLearning, folder: Path, epochs: int, **options: Any) -> Any:
    given = {"save_strategy": "no", "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0, **options}
    arguments = transformers.TrainingArguments(
        str(folder), num_train_epochs=epochs, per_device_train_batch_size=8, learning_rate=0.05, report_to=[],
        disable_tqdm=True, use_cpu=True, seed=0, dataloader_pin_memory=False,
        logging_strategy="no", **given,
    )  # fmt: skip
    return transformers.Trainer(model, arguments, train_dataset=Pictures(), callbacks=[callback])


def learning(model: Classifier, **options: Any) -> StructureLearning:
    return StructureLearning(model.network, EXAMPLE, **{"max_epochs": 2, **options})


def test_training_stops_when_the_widths_have_settled_and_goes_on_with_the_compact_network(tmp_path: Path) -> None:
    model = Classifier()
    callback = learning(model)
    run = trainer(model, callback, tmp_path, 9, optim="adamw_torch")
    run.train()
    assert callback.learner.converged and run.state.epoch == 2
    done = callback.finish(run.optimizer)
    assert done.report.proof_error is not None and done.report.proof_error < 1e-9
    assert done.report.after.parameters < done.report.before.parameters
    held = run.optimizer.param_groups[0]["params"] + run.optimizer.param_groups[1]["params"]
    assert {id(one) for one in held} == {id(one) for one in done.module.parameters()}
    assert all(one.shape == value.shape for one in held for value in run.optimizer.state[one].values() if value.ndim)
    model.network = done.module
    before = [one.detach().clone() for one in model.parameters()]
    trainer(model, callback, tmp_path / "compact", 1).train()
    assert any(not torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


def test_it_equals_the_plain_loop(tmp_path: Path) -> None:
    model = Classifier()
    callback = learning(model, max_epochs=20, stop=False)
    run = trainer(model, callback, tmp_path, 2)
    run.train()
    again = Classifier()
    learner = StructureLearner(again.network, EXAMPLE)
    optimizer = torch.optim.SGD(again.parameters(), 0.05)
    order = trainer(Classifier(), learning(again), tmp_path, 2)
    transformers.set_seed(0)
    batches = order.get_train_dataloader()
    for epoch in range(2):
        batches.set_epoch(epoch)
        for batch in batches:
            optimizer.zero_grad()
            again(**batch)["loss"].backward()
            learner.update()
            optimizer.step()
        learner.redistribute()
    assert callback.learner.updates == learner.updates == 6
    assert callback.learner.widths == learner.widths
    ours, theirs = callback.finish().state_dict(), learner.finish().state_dict()
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize(("save", "step"), [("epoch", 3), ("steps", 3), ("steps", 4)])
def test_taken_up_again(save: str, step: int, tmp_path: Path) -> None:
    """From the end of an epoch, before and after its redistribution, and from the middle of one."""
    whole, again = Classifier(), Classifier()
    callback, resumed = (learning(one, max_epochs=20, stop=False) for one in (whole, again))
    trainer(whole, callback, tmp_path, 3, save_strategy=save, save_steps=1).train()
    told = json.loads((tmp_path / f"checkpoint-{step}" / "trainer_state.json").read_text())
    assert len(told["stateful_callbacks"]["StructureLearning"]["attributes"]["learner"]["history"]) == (
        save == "epoch" or step > 3
    )
    trainer(again, resumed, tmp_path, 3).train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert callback.learner.widths == resumed.learner.widths
    assert callback.learner.updates == resumed.learner.updates == 9
    assert torch.equal(torch.cat(callback.learner.saliency), torch.cat(resumed.learner.saliency))
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in whole.state_dict().items())


def test_gathered_gradients_count_once_a_step_and_clipping_does_not_matter(tmp_path: Path) -> None:
    found = []
    for clip in (0.0, 1e-3):
        model = Classifier()
        callback = learning(model, stop=False)
        trainer(model, callback, tmp_path, 1, gradient_accumulation_steps=3, max_grad_norm=clip).train()
        assert callback.learner.updates == 1
        found.append(torch.cat(callback.learner.saliency))
    assert torch.allclose(*found)


def test_a_network_of_the_library(tmp_path: Path) -> None:
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=4
    )
    model = transformers.ResNetForImageClassification(config)
    callback = StructureLearning(model, {"pixel_values": torch.zeros(2, 3, 32, 32)}, scope="all", max_epochs=1)
    trainer(model, callback, tmp_path, 1).train()
    done = callback.finish()
    assert done.report.after.parameters < done.report.before.parameters
    assert done.module(pixel_values=torch.zeros(2, 3, 32, 32)).logits.shape == (2, 4)


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    model = Classifier()
    trainer(model, learning(model), tmp_path, 1, save_strategy="epoch").train()
    other = learning(model, scope="all", only=["3"])
    with pytest.raises(OptionError, match="belongs to another network, or to another scope"):
        trainer(model, other, tmp_path, 2).train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
