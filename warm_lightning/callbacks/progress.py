"""Progress bars that count images."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm


class ImageProgressBar(TQDMProgressBar):
    """Lightning's tqdm bars, with images seen, of how many, and images per second for training."""

    def init_train_tqdm(self) -> Tqdm:
        bar = super().init_train_tqdm()
        bar.unit, bar.unit_scale = " images", True
        bar.bar_format = None
        return bar

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        module = trainer.lightning_module
        bar = self.train_progress_bar
        steps = trainer.max_steps * module.batch_size if trainer.max_steps > 0 else float("inf")
        bar.reset(total=min(module.duration, steps))
        bar.initial = bar.n = module.images_seen  # a resumed run goes on where it was, at its own rate
        bar.set_description("Training")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._should_update(batch_idx + 1, None):
            self.train_progress_bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)
            self.train_progress_bar.n = min(pl_module.images_seen, self.train_progress_bar.total)
            self.train_progress_bar.refresh()

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics
