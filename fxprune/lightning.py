"""StructureLearner as a Lightning callback: `pip install lightning`.

trainer = Trainer(callbacks=[StructureLearning("network", example_inputs, keep_rate=0.5)])
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn

from fxprune.compiled import Compiled
from fxprune.errors import OptionError
from fxprune.learner import StructureLearner
from fxprune.momentum import cut_optimizer


class StructureLearning(Callback):  # type: ignore[misc]
    """Learns the widths of one network of a LightningModule while it trains, then puts the compact one in its place.

    network         name of the module's attribute that holds the network, as "network" or "model.backbone"
    example_inputs  as for `fxprune.compile`
    keep_rate       and `options`: see `fxprune.StructureLearner`
    cut             put the compact network in place once the widths have settled, with weights, statistics and the
                    optimizers' momentum. False: only learn; `finish()` gives the compact network after training

    `learner` holds what was learned, `done` what `StructureLearner.finish` returned, None before the cut. Widths are
    part of Lightning's checkpoints: training that is taken up again goes on with them, after the cut with the compact
    network. Saliency is read before each step of an optimizer, whatever the precision and however many batches
    gradients are gathered over.

    Raises OptionError where the attribute is no module, and for a cut on several devices, whose copies of the network
    nobody would exchange.
    """

    def __init__(
        self, network: str, example_inputs: Any = None, keep_rate: float = 0.5, *, cut: bool = True, **options: Any
    ) -> None:
        super().__init__()
        self.network, self.example_inputs, self.cut = network, example_inputs, cut
        self.options = {"keep_rate": keep_rate, **options}
        self.learner: StructureLearner | None = None
        self.done: Compiled | None = None

    def finish(self) -> Compiled:
        """The compact network for the widths as they are now; with `cut`, the one that is in place already."""
        if self.learner is None:
            raise OptionError("nothing has been learned yet: finish() comes after Trainer.fit")
        return self.done or self.learner.finish()

    # ---- called by Lightning

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.done is None:
            self._ask_for_checkpoint(pl_module)
        if stage != "fit" or self.learner is not None:
            return
        if self.cut and trainer.world_size > 1:
            raise OptionError(
                f"{trainer.world_size} devices train copies of the network, which cannot be exchanged while they do: "
                "give cut=False, and call finish() after training"
            )
        self.learner = self._begun(pl_module)

    def on_before_optimizer_step(self, _trainer: Trainer, _pl_module: LightningModule, _optimizer: Any) -> None:
        if self.done is None and self.learner is not None:
            self.learner.update()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.done is not None or self.learner is None or self.learner.converged:
            return
        self.learner.redistribute()
        if self.cut and self.learner.converged:
            dense, done = self.learner.model, self.learner.finish()
            for optimizer in trainer.optimizers:
                cut_optimizer(optimizer, dense, done.module, done.recipe)
            self._put_in_place(pl_module, done)

    def state_dict(self) -> dict[str, Any]:
        if self.learner is None:
            return {}
        return {"learner": self.learner.state_dict(), "cut": self.done is not None}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        if self.learner is not None and self.done is None and state_dict:
            self.learner.load_state_dict(state_dict["learner"])

    def _begun(self, pl_module: LightningModule) -> StructureLearner:
        return StructureLearner(_network(pl_module, self.network), self.example_inputs, **self.options)

    def _ask_for_checkpoint(self, pl_module: LightningModule) -> None:
        """Lightning hands a checkpoint to callbacks only after it has put the numbers in. After a cut these are numbers
        of the compact network, which has to be there before: the module is told of the checkpoint in time.
        """
        told = pl_module.on_load_checkpoint

        def on_load_checkpoint(checkpoint: dict[str, Any]) -> None:
            del pl_module.on_load_checkpoint  # the class's own comes back
            state = checkpoint.get("callbacks", {}).get(self.state_key, {})
            if state.get("cut"):
                self.learner = self.learner or self._begun(pl_module)
                self.learner.load_state_dict(state["learner"])
                self._put_in_place(pl_module, self.learner.finish(proof=False))
            told(checkpoint)

        pl_module.on_load_checkpoint = on_load_checkpoint

    def on_fit_start(self, _trainer: Trainer, pl_module: LightningModule) -> None:
        vars(pl_module).pop("on_load_checkpoint", None)  # nothing was loaded

    def _put_in_place(self, pl_module: LightningModule, done: Compiled) -> None:
        device = next(pl_module.parameters()).device
        self.done = done
        pl_module.set_submodule(self.network, done.module.to(device))


def _network(pl_module: LightningModule, name: str) -> nn.Module:
    try:
        found: nn.Module = pl_module.get_submodule(name)
    except AttributeError:
        found = pl_module
    if found is pl_module:
        raise OptionError(
            f"{type(pl_module).__name__} has no network called {name!r}: name the attribute that holds it"
        )
    return found
