"""Grids of samples while training."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from warm_lightning.callbacks.every import check_every, due
from warm_lightning.errors import check
from warm_lightning.images import quantise
from warm_lightning.model import Weights
from warm_lightning.module import DiffusionModule
from warm_lightning.pictures import grid, trajectory, write_png
from warm_lightning.seeds import parse_seeds
from warm_lightning.strategies import check_unsharded


class SampleGrid(Callback):
    """Samples of the same seeds at intervals and at the end of training, to TensorBoard and as PNG.

    The PNGs are in `samples/` of the run's folder, named by images seen.

    Args:
        every: images between two grids; 0 for only the last.
        seeds: such as "0-63".
        weights: "ema" or "raw".
        batch_size: images to sample at once.
        trajectory: how many seeds to show on their way from noise to image, a row each, the state above
            and the present view of the image (D + R) below; 0 for none.
    """

    def __init__(
        self,
        every: float = 1e6,
        seeds: str = "0-63",
        weights: Weights = "ema",
        batch_size: int = 64,
        trajectory: int = 0,
    ) -> None:
        self.every = check_every(every)
        self.seeds = parse_seeds(seeds)
        check(batch_size > 0, f"batch_size is {batch_size}: it must be at least 1")
        check(
            0 <= trajectory <= len(self.seeds),
            f"trajectory is {trajectory}: there are {len(self.seeds)} seeds",
        )
        self.weights = weights
        self.batch_size = batch_size
        self.trajectory = trajectory

    def setup(self, trainer: Trainer, pl_module: DiffusionModule, stage: str) -> None:
        check_unsharded(trainer.strategy, self.weights)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if due(pl_module, self.every):
            self.draw(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        if not trainer.interrupted and not due(pl_module, self.every):
            self.draw(trainer, pl_module)

    def draw(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Sample, on one device while the others wait at the next step."""
        if not trainer.is_global_zero:
            return
        blocks = [self.seeds[i : i + self.batch_size] for i in range(0, len(self.seeds), self.batch_size)]
        images = quantise(torch.cat([pl_module.sample(seeds, self.weights) for seeds in blocks]))
        pictures = {"samples": grid(images, columns=math.ceil(math.sqrt(len(images))))}
        if self.trajectory:
            pictures["trajectory"] = trajectory(
                pl_module.model(self.weights), pl_module.sampler, self.seeds[: self.trajectory]
            )
        folder = Path(trainer.default_root_dir) / "samples"
        for name, picture in pictures.items():
            write_png(folder / f"{name}-{pl_module.images_seen:09d}.png", picture)
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger):
                    logger.experiment.add_image(f"{name}/{self.weights}", picture, pl_module.images_seen)
