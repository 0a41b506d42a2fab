"""Callbacks around training: intervals in images, the log, progress bars, and signals to stop."""

import math
import signal
import sys
import time
from contextlib import suppress
from types import FrameType
from typing import Any, cast

import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus

from warm_lightning.callbacks.tracking import log_values
from warm_lightning.data.datamodule import VALIDATION_IMAGES
from warm_lightning.errors import check
from warm_lightning.module import DiffusionModule
from warm_lightning.types import Batch


def check_every(every: float) -> int:
    """Check an interval in images, and return it as a whole number; 0 means never.

    Raises:
        UserError: if it is neither 0 nor at least 1.
    """
    check(every == 0 or 1 <= every < math.inf, f"every is {every}: it is a number of images, or 0 for never")
    return int(every)


def due(module: DiffusionModule, every: int) -> bool:
    """Whether the batch that has just ended made an optimizer step past a multiple of `every` images."""
    return module.stepped and passed(module, every)


def passed(module: DiffusionModule, every: int) -> bool:
    """Whether the last optimizer step was one past a multiple of `every` images."""
    seen, batch = module.images_seen, module.batch_size
    return every > 0 and seen // every > (seen - batch) // every


QUARTILES = 4


class TrainingLog(Callback):
    """Logs speed, learning rate and the loss of each branch, over all levels and in quartiles of the training levels.

    Quartile 1 is the quarter of the training levels with the lowest noise. Losses are means over the images since
    the last entry, over all devices; they are logged every `trainer.log_every_n_steps` steps.
    """

    def setup(self, trainer: Trainer, pl_module: DiffusionModule, stage: str) -> None:
        edges = torch.arange(1, QUARTILES) / QUARTILES
        self.edges = pl_module.model().clock_law.quantile(edges).to(pl_module.device)
        self.names = pl_module.model().parameterization.names

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.start(pl_module)

    def start(self, pl_module: DiffusionModule) -> None:
        """Begin a new entry of the log."""
        self.sums = torch.zeros(QUARTILES, len(self.names) + 1, device=pl_module.device)
        self.since, self.images = time.perf_counter(), pl_module.images_seen

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        losses = outputs["losses"]
        quartile = torch.bucketize(outputs["clock"], self.edges.to(outputs["clock"]))
        rows = torch.cat([losses, torch.ones_like(losses[:, :1])], dim=1)
        self.sums = self.sums.index_add(0, quartile, rows.to(self.sums))
        if pl_module.stepped and trainer.global_step % cast(Any, trainer).log_every_n_steps == 0:
            self.write(trainer, pl_module)

    def write(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Write an entry of the log, to the loggers and to the progress bar."""
        sums = trainer.strategy.reduce(self.sums, reduce_op="sum").cpu()
        rate = (pl_module.images_seen - self.images) / (time.perf_counter() - self.since)
        metrics = {
            "train/images_per_second": rate,
            "train/lr": trainer.optimizers[0].param_groups[0]["lr"],
            "train/nonfinite_gradients": float(pl_module.nonfinite_gradients),
            **self.losses(sums.sum(0), "train/loss"),
        }
        for quartile, row in enumerate(sums, start=1):
            if row[-1] > 0:
                metrics |= self.losses(row, f"train_quartile{quartile}/loss")
        log_values(trainer, metrics)
        pl_module.log("loss", metrics["train/loss"], prog_bar=True, logger=False)
        self.start(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        values = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
        log_values(trainer, values)
        if trainer.state.fn == TrainerFn.VALIDATING and trainer.is_global_zero:
            data = pl_module.data
            held_out, limit = data.held_out_images(), trainer.limit_val_batches
            count = min(VALIDATION_IMAGES, len(data.train_images())) if held_out is None else len(held_out)
            share = "" if limit == 1.0 else f"trainer.limit_val_batches {limit} of "
            print(*(f"{name:<20} {value:.5g}" for name, value in values.items()), sep="\n")
            images = "training images, since none are held out" if held_out is None else "held-out images"
            print(f"on {share}{count:,} {images}")

    def losses(self, sums: torch.Tensor, name: str) -> dict[str, float]:
        """The mean loss of each branch and their sum, from sums [branches + 1], the last being the number of images."""
        means = (sums[:-1] / sums[-1]).tolist()
        return {name: sum(means)} | {f"{name}_{n}": mean for n, mean in zip(self.names, means, strict=True)}


class ImageProgressBar(TQDMProgressBar):
    """Lightning's tqdm bars, which count images in training and in each round of `warm test`."""

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        module, bar = cast(DiffusionModule, trainer.lightning_module), self.train_progress_bar
        bar.unit, bar.unit_scale = " images", True
        bar.reset(total=module.last_image)
        bar.initial = bar.n = module.images_seen  # a resumed run goes on where it was, at its own rate
        bar.set_description("Training")

    def on_train_epoch_start(self, *args: Any) -> None:
        """Do nothing: the stream of images has no epochs, and a resumed run does not begin one."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_enabled and (batch_idx + 1) % self.refresh_rate == 0:
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            self.train_progress_bar.n = pl_module.images_seen
            self.train_progress_bar.refresh()

    def on_test_start(self, *args: Any) -> None:
        """Nothing: each round has a bar, from its first batch, when the reference has been measured, to its last."""

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: DiffusionModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        plan = pl_module.seed_plan
        if batch_idx == 0 and dataloader_idx not in plan.done:
            self.test_progress_bar = Tqdm(
                desc=f"Round {dataloader_idx + 1} of {len(plan.rounds)}",
                total=len(plan.rounds[dataloader_idx]),
                unit=" images",
                disable=self.is_disabled,
                dynamic_ncols=True,
                file=sys.stdout,
                bar_format=self.BAR_FORMAT,
            )

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: DiffusionModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs is None:  # a round that was scored before
            return
        bar, count = self.test_progress_bar, len(pl_module.seed_plan.rounds[dataloader_idx])
        bar.update(min(len(batch) * trainer.world_size, count - bar.n))  # the other devices sample as many
        if bar.n == count:
            bar.close()

    def on_test_end(self, *args: Any) -> None:
        """Do nothing: the bars are closed."""

    def get_metrics(self, trainer: Trainer, pl_module: DiffusionModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class Interrupt(Callback):
    """Ends training after the current step on Ctrl-C, SIGTERM and SIGHUP, so that a whole step is saved.

    SIGTERM comes from `kill` and from clusters whose time is over, SIGHUP from a terminal that is closed. A signal that
    this program was started to ignore, as by nohup, stays ignored. A second signal interrupts at once.

    Attributes:
        number: of the signal that has ended the training; 0 if none has.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.number = 0
        self.previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        def request(number: int, frame: FrameType | None) -> None:
            self.number = number
            trainer.state.status = TrainerStatus.INTERRUPTED
            self.restore()
            if trainer.is_global_zero:
                with suppress(OSError):  # the terminal may be gone
                    print("\nInterrupted: finishing this step and saving; press Ctrl-C again to leave now.", flush=True)

        for number in self.SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:
                self.previous[number] = signal.signal(number, request)

    def on_train_batch_end(self, trainer: Trainer, pl_module: DiffusionModule, *args: Any) -> None:
        # All devices must stop after the same whole step, and the signal may reach them during different ones.
        if pl_module.stepped and trainer.strategy.reduce_boolean_decision(bool(self.number), all=False):
            trainer.should_stop = True
            trainer.limit_val_batches = 0  # or a last validation would come first

    def on_train_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.restore()

    def on_exception(self, trainer: Trainer, pl_module: DiffusionModule, exception: BaseException) -> None:
        self.restore()

    def restore(self) -> None:
        """Handle signals as before the training."""
        while self.previous:
            signal.signal(*self.previous.popitem())
