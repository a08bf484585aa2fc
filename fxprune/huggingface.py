"""StructureLearner as a callback of Hugging Face's Trainer: `pip install transformers[torch]`.

trainer = Trainer(model, arguments, train_dataset=data, callbacks=[StructureLearning(model, example_inputs)])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from fxprune.compiled import Compiled
from fxprune.errors import OptionError
from fxprune.learner import StructureLearner


class StructureLearning(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Learns the widths of a network while a Trainer trains it. `finish()` gives the compact one, for a next Trainer.

    network         what is trained, or the part of it that is to become narrower
    example_inputs  as for `fxprune.compile`; a dict of keyword arguments for most models of transformers
    keep_rate       and `options`: see `fxprune.StructureLearner`
    stop            end the training once the widths have settled. False: train all epochs, and finish as they end

    `learner` holds what was learned. It is part of the Trainer's checkpoints; `resume_from_checkpoint` goes on with it.
    Saliency is read before each step of the optimizer, however many batches gradients are gathered over; clipping does
    not matter, because only ratios within a layer count.

    `restore_callback_states_from_checkpoint` stays off: it would make a new callback, without a network.

    Raises what StructureLearner raises, and OptionError for a checkpoint of another network.
    """

    def __init__(
        self,
        network: nn.Module,
        example_inputs: Any = None,
        keep_rate: float = 0.5,
        *,
        stop: bool = True,
        **options: Any,
    ) -> None:
        self.learner = StructureLearner(network, example_inputs, keep_rate, **options)
        self.stop = stop

    def finish(self, optimizer: torch.optim.Optimizer | None = None) -> Compiled:
        """The compact network for the widths as they are now; see `StructureLearner.finish`. `trainer.optimizer` may be
        given as it is: its parameters become those of the compact network, with their momentum.
        """
        return self.learner.finish(getattr(optimizer, "optimizer", optimizer))

    # ---- called by the Trainer

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_given: Any
    ) -> None:
        held = (state.stateful_callbacks or {}).get(type(self).__name__)
        if state.global_step and isinstance(held, list):
            raise OptionError("the checkpoint is of several StructureLearning callbacks: which is whose is not told")
        if state.global_step and isinstance(held, Mapping) and "learner" in held.get("attributes", {}):
            self.learner.load_state_dict(_with_tensor(held["attributes"]["learner"]))
            if state.epoch and state.epoch.is_integer() and len(self.learner.history) < state.epoch:
                self._end_epoch()  # the checkpoint was written between the last step of an epoch and its end

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_given: Any
    ) -> None:
        if not self.learner.converged:
            self.learner.update()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_given: Any
    ) -> None:
        self._end_epoch()
        control.should_training_stop = control.should_training_stop or (self.stop and self.learner.converged)

    def _end_epoch(self) -> None:
        if not self.learner.converged:
            self.learner.redistribute()

    def state(self) -> dict[str, Any]:
        """For the Trainer's checkpoint, which is JSON."""
        return {"args": {}, "attributes": {"learner": _without_tensor(self.learner.state_dict())}}


def _without_tensor(state: Mapping[str, Any]) -> dict[str, Any]:
    saliency = state["saliency"]
    return {**state, "saliency": {"dtype": str(saliency.dtype).removeprefix("torch."), "values": saliency.tolist()}}


def _with_tensor(state: Mapping[str, Any]) -> dict[str, Any]:
    held = state["saliency"]
    return {**state, "saliency": torch.tensor(held["values"], dtype=getattr(torch, held["dtype"]))}
