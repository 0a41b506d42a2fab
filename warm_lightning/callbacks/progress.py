"""Progress bars that count images."""

from typing import Any, cast

from lightning import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar

from warm_lightning.module import DiffusionModule


class ImageProgressBar(TQDMProgressBar):
    """Lightning's tqdm bars, with images seen, of how many, and images per second for training."""

    def on_train_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        module, bar = cast(DiffusionModule, trainer.lightning_module), self.train_progress_bar
        steps = trainer.max_steps * module.batch_size if trainer.max_steps > 0 else float("inf")
        bar.unit, bar.unit_scale = " images", True
        bar.reset(total=min(module.duration, steps))
        bar.initial = bar.n = module.images_seen  # a resumed run goes on where it was, at its own rate
        bar.set_description("Training")

    def on_train_epoch_start(self, *args: Any) -> None:
        """Nothing: the stream of images has no epochs, and a resumed run does not begin one."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.is_enabled and (batch_idx + 1) % self.refresh_rate == 0:
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            self.train_progress_bar.n = pl_module.images_seen
            self.train_progress_bar.refresh()

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: DiffusionModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        super().on_test_batch_start(trainer, pl_module, batch, batch_idx, dataloader_idx)
        if batch_idx == 0 and self.is_enabled:
            self.test_progress_bar.set_description(f"Round {dataloader_idx + 1} of {len(pl_module.test_plan.rounds)}")

    def get_metrics(self, trainer: Trainer, pl_module: DiffusionModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
