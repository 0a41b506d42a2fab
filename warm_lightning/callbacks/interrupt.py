"""Ctrl-C as a request: finish the step, save, leave."""

import signal
from types import FrameType
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerStatus

from warm_lightning.module import DiffusionModule


class Interrupt(Callback):
    """On SIGINT, ends training after the step in progress, so that what is saved is a step's whole result.

    A second SIGINT interrupts at once. `interrupted` says afterwards whether there was one.
    """

    def __init__(self) -> None:
        self.interrupted = False

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        def request(number: int, frame: FrameType | None) -> None:
            self.interrupted = True
            trainer.state.status = TrainerStatus.INTERRUPTED
            signal.signal(signal.SIGINT, self.previous)
            if trainer.is_global_zero:
                print("\nInterrupted: finishing this step and saving; press Ctrl-C again to leave at once.", flush=True)

        self.previous = signal.signal(signal.SIGINT, request)

    def on_train_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, *args: Any) -> None:
        # All devices must stop after the same whole step, and the signal may reach them in different ones.
        if pl_module.stepped and trainer.strategy.reduce_boolean_decision(self.interrupted, all=False):
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # or a last validation would come first

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        signal.signal(signal.SIGINT, self.previous)

    def on_exception(self, trainer: Trainer, pl_module: DiffusionModule, exception: BaseException) -> None:
        if hasattr(self, "previous"):
            signal.signal(signal.SIGINT, self.previous)
