"""Pictures of samples during training: grids, and trajectories from noise to image."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from tqdm import tqdm

from warm_lightning.callbacks.expectations import Expected, times_to_go
from warm_lightning.callbacks.tracking import log_picture, takes_pictures
from warm_lightning.callbacks.training import check_every, due
from warm_lightning.errors import check
from warm_lightning.images import grid, quantise, write_png
from warm_lightning.model import DiffusionModel
from warm_lightning.module import DiffusionModule
from warm_lightning.parameterizations import denoised_image
from warm_lightning.processes.base import per_image
from warm_lightning.rng import parse_seeds
from warm_lightning.samplers import Sampler
from warm_lightning.spectral import idct
from warm_lightning.strategies import check_unsharded
from warm_lightning.types import Level, Weights

SAMPLES = "samples"
"""The folder of a run's pictures."""


class SampleGrid(Expected):
    """Samples of the same seeds at intervals and at the end of training, as PNG and to the loggers.

    The PNGs are in `samples/` of the run's folder, named by images seen.

    Args:
        every: images between two grids; 0 for only the last.
        seeds: such as "0-63".
        weights: "ema" or "raw".
        batch_size: images to sample at once.
        trajectory: number of seeds whose trajectories are drawn: the states in one row, and below them the denoised
            images x̂0 = D + R; 0 for none.
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
        if stage == "fit" and trainer.is_global_zero:
            for logger in trainer.loggers:
                if not takes_pictures(logger):
                    folder = Path(trainer.default_root_dir) / SAMPLES
                    tqdm.write(f"{type(logger).__name__} takes no pictures: they are in {folder} only.")

    def samples_to_go(self, module: DiffusionModule) -> int:
        return len(self.seeds) * (times_to_go(module, self.every) + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if due(pl_module, self.every):
            self.draw(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        if not trainer.interrupted and not due(pl_module, self.every):
            self.draw(trainer, pl_module)

    def draw(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Sample on the first device and write the pictures; the other devices wait at the next step."""
        if not trainer.is_global_zero:
            return
        blocks = [self.seeds[i : i + self.batch_size] for i in range(0, len(self.seeds), self.batch_size)]
        images = quantise(torch.cat([pl_module.sample(seeds, self.weights) for seeds in blocks]))
        pictures = {"samples": grid(images, columns=math.ceil(math.sqrt(len(images))))}
        if self.trajectory:
            model = pl_module.model(self.weights)
            pictures["trajectory"] = trajectory(model, model.sampler, self.seeds[: self.trajectory])
        folder = Path(trainer.default_root_dir) / SAMPLES
        for name, picture in pictures.items():
            path = folder / f"{name}-{pl_module.images_seen:09d}.png"
            write_png(path, picture)
            log_picture(trainer, f"{name}/{self.weights}", picture, path)


def trajectory(model: DiffusionModel, sampler: Sampler, seeds: Sequence[int], columns: int = 10) -> Tensor:
    """A picture of trajectories: for each seed a row of states above a row of denoised images.

    States are divided by √(1 + β²) and the process's scale, so that image and pure noise both fit the range. The
    denoised images are x̂0 = D + R, from one more network call at each level that is shown.

    Returns:
        One picture, uint8 [3, height, width].
    """
    shown = torch.linspace(0, len(sampler.grid.clocks()) - 1, columns).round().unique().long().tolist()
    states: list[Tensor] = []
    views: list[Tensor] = []
    met = 0

    def watch(u: Tensor, level: Level) -> None:
        nonlocal met
        met += 1
        if met - 1 not in shown:
            return
        scale = per_image(model.process.scale(level), u)
        spread = (scale.square() + model.process.gains(level, u).noise_scale.square()).sqrt()
        states.append(idct(u) / spread)
        if model.process.ends(level):
            views.append(idct(u))
        else:
            estimate = estimator(u, level)
            views.append(idct(denoised_image(u, estimate, model.process.gains(level, u))))

    with model.conditioned(model.start(seeds)[2]) as estimator:
        model.sample(sampler, seeds, watch=watch)
    rows = [torch.stack(frames, dim=1) for frames in (states, views)]  # [B, columns, C, H, W]
    return grid(quantise(torch.stack(rows, dim=1).flatten(0, 2)).cpu(), columns=len(shown))
