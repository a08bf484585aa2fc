"""Training: one network, its optimizer, its data, and the place in the run. Everything it does can be interrupted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.errors import TrainingError
from fxprune.training.batches import Part, augmented, epoch_order, read_batches
from fxprune.training.randomness import random_state, set_random_state
from fxprune.training.settings import Settings

_EVALUATED = 256  # pictures in a batch without gradients


@dataclass
class Tally:
    """Sums over the pictures that were seen."""

    loss: float = 0.0
    right: int = 0
    seen: int = 0

    def add(self, loss: float, logits: Tensor, labels: Tensor) -> None:
        self.loss += loss * len(labels)
        self.right += int((logits.argmax(1) == labels).sum())
        self.seen += len(labels)

    def means(self) -> tuple[float | None, float | None]:
        """(loss, accuracy) of one picture, None without any."""
        return (self.loss / self.seen, self.right / self.seen) if self.seen else (None, None)


@dataclass
class Training:
    """A run: `train_epoch` until `epoch` has reached `settings.epochs`.

    network      on `device`, trained in place; may be replaced between epochs, with its optimizer
    parts        pictures to train on, and to validate with
    after_step   called after each step, when everything is in a state that can be written down
    after_backward  called when gradients are there and the optimizer has not used them yet
    """

    network: nn.Module
    parts: tuple[Part, Part]
    settings: Settings
    device: torch.device
    workers: int = 0
    after_backward: Callable[[], object] = lambda: None
    after_step: Callable[[], object] = lambda: None
    epoch: int = 0
    step: int = 0  # of this epoch
    tally: Tally = field(default_factory=Tally)
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network.to(self.device)
        self.optimizer = _optimizer(self.network, self.settings)
        self.steps = len(epoch_order(self.parts[0], self.settings.batch, 0, 0))  # in each epoch

    @property
    def finished(self) -> bool:
        return self.epoch >= self.settings.epochs

    @property
    def steps_done(self) -> int:
        """Over all epochs."""
        return self.epoch * self.steps + self.step

    def train_epoch(self) -> dict[str, Any]:
        """What is left of the epoch, then validation. Returns its line of the history. Raises TrainingError."""
        part, seed = self.parts[0], self.settings.seed
        order = epoch_order(part, self.settings.batch, seed, self.epoch)[self.step :]
        self.network.train()
        rate = self._rate(self.epoch * self.steps)
        for pictures, labels in read_batches(part.data, order, self.workers):
            pictures = augmented(pictures, self.settings.augment, seed, self.epoch, self.step)
            self._take_step(pictures.to(self.device), labels.to(self.device))
            self.step += 1
            self.after_step()
        loss, accuracy = self.tally.means()
        line = {"epoch": self.epoch + 1, "rate": rate, "loss": loss, "accuracy": accuracy, **self._validated()}
        self.history.append(line)
        self.epoch, self.step, self.tally = self.epoch + 1, 0, Tally()
        return line

    def _take_step(self, pictures: Tensor, labels: Tensor) -> None:
        rate = self._rate(self.steps_done)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        logits = logits_of(self.network(pictures))
        loss = F.cross_entropy(logits, labels)
        told = loss.item()
        if not math.isfinite(told):
            raise TrainingError(
                f"the loss became {told} in step {self.step + 1} of epoch {self.epoch + 1}: a lower --lr may help "
                f"(it is {rate:g} here)"
            )
        loss.backward()
        self.after_backward()
        self.optimizer.step()
        self.tally.add(told, logits.detach(), labels)

    def _rate(self, step: int) -> float:
        return self.settings.rate_at(step, self.settings.epochs * self.steps)

    def _validated(self) -> dict[str, float | None]:
        loss, accuracy = evaluate(self.network, self.parts[1], self.device, self.workers).means()
        return {"validation_loss": loss, "validation_accuracy": accuracy}

    def state_dict(self) -> dict[str, Any]:
        """Everything that the rest of the run depends on. The learning rate and the order of the pictures are functions
        of the place.
        """
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "step": self.step,
            "tally": asdict(self.tally),
            "history": [dict(line) for line in self.history],
            "random": random_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; network and optimizer have the shape they had then."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.step = state["epoch"], state["step"]
        self.tally = Tally(**state["tally"])
        self.history = [dict(line) for line in state["history"]]
        set_random_state(state["random"])


@torch.no_grad()
def evaluate(network: nn.Module, part: Part, device: torch.device, workers: int = 0) -> Tally:
    """Loss and hits over a part of the data, in eval mode."""
    network.eval()
    found = Tally()
    for pictures, labels in read_batches(part.data, part.numbers.split(_EVALUATED) if len(part) else (), workers):
        logits = logits_of(network(pictures.to(device)))
        labels = labels.to(device)
        found.add(F.cross_entropy(logits, labels).item(), logits, labels)
    return found


def logits_of(output: object) -> Tensor:
    """One row of scores for each picture: the output, or the first of several. Raises TrainingError."""
    if isinstance(output, Mapping):
        output = next(iter(output.values()), None)
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.ndim != 2:
        shape = "x".join(map(str, output.shape)) if isinstance(output, Tensor) else type(output).__name__
        raise TrainingError(f"only classifiers can be trained here, with one row of scores a picture, not {shape}")
    return output


def _optimizer(network: nn.Module, settings: Settings) -> torch.optim.Optimizer:
    parameters = [one for one in network.parameters() if one.requires_grad]
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(parameters, settings.rate, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters, settings.rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )  # fmt: skip
