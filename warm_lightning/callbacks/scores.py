"""Scores of samples: now and then while training, and thoroughly in `warm test`."""

import json
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, Trainer
from torch import Tensor

from warm_lightning import __version__
from warm_lightning.callbacks.every import check_every, due
from warm_lightning.errors import check
from warm_lightning.metrics import NEIGHBOURS, FeatureExtractor, Scores
from warm_lightning.model import TestPlan, Weights
from warm_lightning.module import DiffusionModule
from warm_lightning.pictures import write_file

RESULTS = "scores.json"


class ScoreSamples(Callback):
    """Scores samples against the training images with each of some feature extractors.

    `warm test` samples `num_images` seeds from `first_seed` on, over all devices, prints a table and writes
    `scores.json` into the run's folder: the scores, each beside what halves of the data and the moment-matched
    Gaussian get, and the protocol they were measured by.

    Args:
        extractors: feature extractors; the first score of the first is what checkpoints may go by.
        num_images: samples in `warm test`.
        first_seed: seeds are first_seed … first_seed + num_images - 1.
        every: images between two scorings while training; 0 for none.
        every_num_images: samples in those.
        weights: "ema" or "raw".
        batch_size: images a device samples at once.
    """

    def __init__(
        self,
        extractors: list[FeatureExtractor],
        num_images: int = 10_000,
        first_seed: int = 0,
        every: float = 0,
        every_num_images: int = 1_000,
        weights: Weights = "ema",
        batch_size: int = 256,
    ) -> None:
        for name, count in (("num_images", num_images), ("every_num_images", every_num_images)):
            check(count > NEIGHBOURS, f"{name} is {count}: scores need at least {NEIGHBOURS + 1} samples")
        check(first_seed >= 0, f"first_seed is {first_seed}: it must be 0 or more")
        check(batch_size > 0, f"batch_size is {batch_size}: it must be at least 1")
        self.extractors = extractors
        self.num_images = num_images
        self.first_seed = first_seed
        self.every = check_every(every)
        self.every_num_images = every_num_images
        self.weights = weights
        self.batch_size = batch_size
        self.scores: list[Scores] = []

    def plan(self, num_images: int) -> TestPlan:
        """What to sample for a scoring."""
        return TestPlan(range(self.first_seed, self.first_seed + num_images), self.batch_size, self.weights)

    def prepare(self, pl_module: DiffusionModule) -> None:
        """Set up the scores against the training images, once."""
        if self.scores:
            return
        data = pl_module.data
        held_out = data.held_out_images()
        self.scores = [
            Scores(
                extractor.to(pl_module.device),
                data.train_images().images,
                held_out.images if held_out else None,
                device=pl_module.device,
            )
            for extractor in self.extractors
        ]

    def update(self, images: Tensor) -> None:
        """Take in samples, uint8 [b, C, H, W]."""
        for scores in self.scores:
            scores.update(images)

    # ------------------------------------------------------------------ while training

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not due(pl_module, self.every):
            return
        self.prepare(pl_module)
        plan = self.plan(self.every_num_images)
        mine = list(plan.seeds)[trainer.global_rank :: trainer.world_size]
        for i in range(0, len(mine), plan.batch_size):
            self.update(pl_module.sample(mine[i : i + plan.batch_size], plan.weights))
        values = self.compute()
        pl_module.scored = {name: (pl_module.images_seen, value) for name, value in values.items()}
        for logger in trainer.loggers:
            logger.log_metrics({f"score/{n}": v for n, v in values.items()}, step=pl_module.images_seen)

    def compute(self) -> dict[str, float]:
        """All scores of what was taken in, over all devices; then forgets the samples."""
        values: dict[str, float] = {}
        for scores in self.scores:
            values |= scores.compute()
            scores.reset()
        return values

    # ------------------------------------------------------------------ warm test

    def setup(self, trainer: Trainer, pl_module: DiffusionModule, stage: str) -> None:
        if stage == "test":
            pl_module.test_plan = self.plan(self.num_images)

    def on_test_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.prepare(pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: DiffusionModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *args: Any,
    ) -> None:
        self.update(outputs)

    def on_test_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        values = self.compute()
        if not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / RESULTS
        write_file(path, json.dumps({**values, "protocol": self.protocol(trainer, pl_module)}, indent=2).encode())
        print(*(scores.table(values) for scores in self.scores), f"written to {path}", sep="\n\n")

    def protocol(self, trainer: Trainer, pl_module: DiffusionModule) -> dict[str, Any]:
        """What one has to know to compare the scores with others."""
        data = pl_module.data
        return {
            "num_images": self.scores[0].describe()["samples"] if self.scores else 0,
            "seeds": f"{self.first_seed}-{self.first_seed + self.num_images - 1}",
            "weights": self.weights,
            "nfe": pl_module.sampler.nfe,
            "images_seen": pl_module.images_seen,
            "extractors": [scores.describe() for scores in self.scores],
            "reference": f"{type(data).__name__}: {len(data.train_images().images)} training images",
            "precision": str(trainer.precision),
            "device": pl_module.device.type,
            "config": pl_module.config,
            "package_version": __version__,
            "torch_version": torch.__version__,
        }
