"""What goes to TensorBoard while training, against images seen."""

import time
from typing import Any, cast

import torch
from lightning import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from warm_lightning.module import DiffusionModule
from warm_lightning.types import Batch

QUARTILES = 4


class TrainingLog(Callback):
    """Loss of each branch, over all levels and in each quartile of the training levels; throughput; recipe.

    Quartile 1 holds the quarter of the noise law with the lowest noise. Losses are means over the images since
    the last line, over all devices; they are written every `trainer.log_every_n_steps` steps.
    """

    def setup(self, trainer: Trainer, pl_module: DiffusionModule, stage: str) -> None:
        edges = torch.arange(1, QUARTILES) / QUARTILES
        self.edges = pl_module.clock_law.quantile(edges).to(pl_module.device)
        self.names = pl_module.parameterization.names

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.start(pl_module)

    def start(self, pl_module: DiffusionModule) -> None:
        """Begin a new line of the log."""
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
        """One line of the log: to the logger and to the progress bar."""
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
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=pl_module.images_seen)
        pl_module.log("loss", metrics["train/loss"], prog_bar=True, logger=False)
        self.start(pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        values = {name: float(v) for name, v in trainer.callback_metrics.items() if name.startswith("val/")}
        for logger in trainer.loggers:
            logger.log_metrics(values, step=pl_module.images_seen)
        if trainer.state.fn == TrainerFn.VALIDATING and trainer.is_global_zero:
            print(*(f"{name:<20} {value:.5g}" for name, value in values.items()), sep="\n")

    def losses(self, sums: torch.Tensor, name: str) -> dict[str, float]:
        """Mean losses [branches] and their sum, from sums whose last entry is the number of images."""
        means = (sums[:-1] / sums[-1]).tolist()
        return {name: sum(means)} | {f"{name}_{n}": mean for n, mean in zip(self.names, means, strict=True)}
