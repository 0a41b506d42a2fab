"""Scores of samples, in intervals while training and in rounds by `warm test`."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import Tensor
from tqdm import tqdm

from warm_lightning.callbacks.checkpoints import Checkpoints
from warm_lightning.callbacks.expectations import Expected, times_to_go
from warm_lightning.callbacks.rounds import FILE, NONFINITE, Rounds, conditions
from warm_lightning.callbacks.tracking import log_values
from warm_lightning.callbacks.training import check_every, due, passed
from warm_lightning.checkpoints import RESULTS
from warm_lightning.data.datamodule import ImageDataModule
from warm_lightning.distributed import total
from warm_lightning.errors import check
from warm_lightning.images import quantise
from warm_lightning.metrics import (
    BATCH_SIZE,
    NEIGHBOURS,
    Better,
    Evaluation,
    Extraction,
    FeatureExtractor,
    FrechetDistance,
    Reference,
    Score,
    ScoreProtocol,
    default_extractor,
    measure_reference,
    read_statistics,
    summarise_rounds,
)
from warm_lightning.metrics.reference_file import is_folder, kept_reference
from warm_lightning.metrics.scores import all_scores
from warm_lightning.module import DiffusionModule, SeedPlan
from warm_lightning.paths import PathText, expand
from warm_lightning.records import provenance, to_json, write_file
from warm_lightning.rng import SEEDS
from warm_lightning.strategies import check_unsharded
from warm_lightning.types import Weights


class ScoreSamples(Expected):
    """Scores samples against the training images, with one or more feature extractors.

    `warm test` samples `rounds` times `num_images` seeds from `first_seed` on, over all devices, prints a table and
    writes `scores.json` into the run's folder: the scores of each round, their best, mean and standard deviation,
    the scores of halves of the data and of the moment-matched Gaussian, and the protocol. The papers' protocol is three
    rounds of 50,000, of which they report the best (the lowest FID). Each finished round is stored in `rounds.json`;
    the same weights, settings and seeds are not sampled again. Images with pixels that are not finite are counted, and
    scored with black pixels for NaN.

    Args:
        extractors: feature extractors; by default Pixels for images up to 32×32, otherwise InceptionFeatures.
        scores: the scores to compute; by default FrechetDistance, InceptionScore, KernelDistance, Precision, Recall
            and Memorisation, as far as the extractor and the reference allow. Any subclass of `Score` may be named by
            its class path.
        num_images: samples in each round of `warm test`.
        rounds: number of rounds of `warm test`; round r (from 0) has the seeds from first_seed + r·num_images on.
        first_seed: the first seed of the first round.
        every: images between two scorings while training; 0 for none.
        every_num_images: samples in each of these.
        weights: "ema" or "raw".
        batch_size: the largest number of images that a device samples at once.
        reference_stats: files of `warm reference-stats`, or with `mu` and `sigma` alone, one for each extractor in
            order, null for none; a single file is the first extractor's. With a file of `warm reference-stats`, the
            data are not read. With a file of another program, the Fréchet distance is computed from it and the other
            scores from the data. Or a folder, a path without .npz, for all extractors: what is measured of the data is
            kept there, and read again where images, extractor, scores and protocol are the same.
        companions: whether to score halves of the data and the Gaussian, too. Without, a file of `mu` and `sigma`
            alone leaves out all scores that need more, instead of computing them from the data.
        max_neighbours: kernel distance, precision and recall compare the first so many samples with as many
            training images; memorisation is of the first so many samples. A file of `warm reference-stats` has its own.
    """

    def __init__(
        self,
        extractors: list[FeatureExtractor] | None = None,
        scores: list[Score] | None = None,
        num_images: int = 10_000,
        rounds: int = 1,
        first_seed: int = 0,
        every: float = 10e6,
        every_num_images: int = 10_000,
        weights: Weights = "ema",
        batch_size: int = 256,
        reference_stats: list[PathText | None] | PathText | None = None,
        companions: bool = True,
        max_neighbours: int = 10_000,
    ) -> None:
        for name, count in (("num_images", num_images), ("every_num_images", every_num_images)):
            check(count > NEIGHBOURS, f"{name} is {count}: scores need at least {NEIGHBOURS + 1} samples")
        check(rounds >= 1, f"rounds is {rounds}: it must be at least 1")
        check(first_seed >= 0, f"first_seed is {first_seed}: it must be 0 or more")
        last = first_seed + rounds * num_images - 1
        check(last < SEEDS, f"first_seed is {first_seed}: the last seed, {last}, must be below {SEEDS}")
        check(batch_size > 0, f"batch_size is {batch_size}: it must be at least 1")
        frechet, given = FrechetDistance(), extractors or []
        names = [extractor.score_name(frechet.name(extractor), num_images) for extractor in given]
        check(len(set(names)) == len(names), f"extractors give the same names, {', '.join(names)}: name them apart")
        keys = [score.key for score in scores or []]
        check(scores is None or bool(keys), "scores.scores is empty: name a score, or leave it out for all")
        check(
            len(set(keys)) == len(keys), f"scores.scores has the same key twice ({', '.join(keys)}): give one of each"
        )
        count = len(given) or 1
        files = [reference_stats] if isinstance(reference_stats, str) else reference_stats or []
        if isinstance(reference_stats, str) and is_folder(reference_stats):
            files *= count
        check(
            len(files) <= count,
            f"reference_stats has {len(files)} files for {count} extractors: give one each, or null",
        )
        self.given_extractors = given
        self.given_scores = scores
        self.statistics = [*files, *[None] * (count - len(files))]
        self.num_images = num_images
        self.num_rounds = rounds
        self.first_seed = first_seed
        self.every = check_every(every)
        self.every_num_images = every_num_images
        self.weights = weights
        self.batch_size = batch_size
        self.companions = companions
        self.protocol = ScoreProtocol(max_neighbours)
        self.evaluations: list[Evaluation] = []
        self.count = 0  # number of samples in the last scores
        self.scored_at = 0  # images seen at the last scoring while training
        self.nonfinite = 0  # images with pixels that are not finite, on this device

    def extractors(self, data: ImageDataModule) -> list[FeatureExtractor]:
        """The feature extractors, which depend on the data's resolution where none are given."""
        return self.given_extractors or [default_extractor(data.resolution)]

    def plan(self, num_images: int, rounds: int = 1) -> SeedPlan:
        """The seeds to sample for a scoring."""
        starts = [self.first_seed + r * num_images for r in range(rounds)]
        seeds = [range(start, start + num_images) for start in starts]
        return SeedPlan(seeds, self.batch_size, self.weights)

    def prepare(self, pl_module: DiffusionModule) -> None:
        """Set up the scores against the training images, once; all devices take part."""
        if self.evaluations:
            return
        data = pl_module.data
        for score in self.given_scores or ():
            names = [type(extractor).__name__ for extractor in self.extractors(data)]
            check(
                any(score.applies(extractor) for extractor in self.extractors(data)),
                f"scores.scores {type(score).__name__} means nothing on the features of {', '.join(names)}: add an "
                "extractor that it is for, such as Pixels, to scores.extractors",
            )
        for extractor, path in zip(self.extractors(data), self.statistics, strict=True):
            extraction = Extraction(extractor, min(self.batch_size, BATCH_SIZE), pl_module.device)
            reference = self.reference(extraction, path, data)
            shape = data.image_channels, data.resolution, data.resolution
            self.evaluations.append(Evaluation(extraction, reference, shape, self.given_scores))

    def reference(self, extraction: Extraction, path: str | None, data: ImageDataModule) -> Reference:
        """The reference that an extractor's samples are compared with."""
        normal, source, folder = None, "", path if path and is_folder(path) else None
        if path and not folder:
            reference = read_statistics(path, extraction, self.protocol, self.companions)
            if reference.features is not None or not self.companions:
                return reference
            normal, source = reference.normal, f", Fréchet distance: {reference.source}"
        images, held_out = data.train_images(), data.held_out_images()
        measure = partial(
            measure_reference,
            extraction,
            images,
            held_out,
            scores=self.given_scores,
            source=f"{type(data).__name__}: {len(images)} training images{source}",
            protocol=self.protocol,
            normal=normal,
            companions=self.companions,
            samples=self.num_images,
        )
        if not folder:
            return measure()
        scores = all_scores() if self.given_scores is None else self.given_scores
        return kept_reference(folder, extraction, images, held_out, scores, self.protocol, self.companions, measure)

    def update(self, images: Tensor) -> None:
        """Add samples, about -1 to 1, [b, C, H, W]."""
        self.nonfinite += int((~images.isfinite()).flatten(1).any(1).sum())
        for evaluation in self.evaluations:
            evaluation.update(quantise(images.nan_to_num(-1)))

    def compute(self, device: torch.device) -> dict[str, float]:
        """All scores of the samples of all devices, and `NONFINITE`; then forgets the samples."""
        values: dict[str, float] = {NONFINITE: int(total(torch.tensor(self.nonfinite, device=device)))}
        self.nonfinite = 0
        for evaluation in self.evaluations:
            self.count, values_of_extractor = evaluation.compute()
            values |= values_of_extractor
            evaluation.reset()
        return values

    def companion_scores(self, count: int) -> dict[str, float]:
        """The scores of halves of the data and of the Gaussian that stand beside those of `count` samples."""
        return {name: value for evaluation in self.evaluations for name, value in evaluation.companions(count).items()}

    # ------------------------------------------------------------------ while training

    def on_fit_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        # What scores need is missed now, not after the training: also what only `warm test` will need.
        for extractor, path in zip(self.extractors(pl_module.data), self.statistics, strict=True):
            extractor.prepare()
            check(
                path is None or is_folder(path) or expand(path).is_file(),
                f"scores.reference_stats {path}: no such file",
            )

    def expectation(self, module: DiffusionModule) -> str:
        if not times_to_go(module, self.every):
            return ""
        return f"scores of {self.every_num_images:,} samples every {self.every:,} images"

    def samples_to_go(self, module: DiffusionModule) -> int:
        return self.every_num_images * times_to_go(module, self.every)

    def on_train_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        for callback in self.checkpoints(trainer):
            if callback.monitor not in (None, "first") and times_to_go(pl_module, self.every):
                self.prepare(pl_module)  # a score that does not exist is missed now, not after hours
                callback.check_monitor([n for e in self.evaluations for n in e.names(self.every_num_images)])
        # A training that was killed while it scored goes on with the scores.
        if pl_module.images_seen and passed(pl_module, self.every) and self.scored_at != pl_module.images_seen:
            self.score(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: DiffusionModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if due(pl_module, self.every):
            self.score(trainer, pl_module)

    def checkpoints(self, trainer: Trainer) -> list[Checkpoints]:
        """The callbacks of this package that save checkpoints."""
        return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, Checkpoints)]

    def score(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        """Sample and score, and log the scores; all devices must call this."""
        for callback in self.checkpoints(trainer):
            callback.save_before_long_work(trainer)
        self.prepare(pl_module)
        plan = self.plan(self.every_num_images)
        for seeds in plan.batches(0, trainer.global_rank, trainer.world_size):
            self.update(pl_module.sample(seeds, plan.weights))
        values = self.compute(pl_module.device)
        values |= self.companion_scores(self.count)
        self.scored_at = pl_module.images_seen
        pl_module.better = {n: better for e in self.evaluations for n, better in e.better(self.count).items()}
        pl_module.scored = {name: (self.scored_at, values[name]) for name in pl_module.better}
        named = {f"score/{n}": v for n, v in values.items()}
        log_values(trainer, named)
        # For callbacks that watch a metric, such as EarlyStopping and Optuna's.
        pl_module.log_dict(named, logger=False, batch_size=1)

    def state_dict(self) -> dict[str, Any]:
        return {"scored_at": self.scored_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.scored_at = state_dict["scored_at"]

    # ------------------------------------------------------------------ warm test

    def setup(self, trainer: Trainer, pl_module: DiffusionModule, stage: str) -> None:
        check_unsharded(trainer.strategy, self.weights)
        if stage != "test":
            return
        devices = trainer.world_size
        check(self.num_images >= devices, f"num_images is {self.num_images}: each of {devices} devices needs one")
        check(
            isinstance(trainer.limit_test_batches, float) and trainer.limit_test_batches == 1,
            "trainer.limit_test_batches and fast_dev_run would give scores of fewer images under the same name: leave "
            "them out and set scores.num_images instead",
        )
        pl_module.seed_plan = self.plan(self.num_images, self.num_rounds)

    def on_test_start(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        self.prepare(pl_module)
        plan, path = pl_module.seed_plan, Path(trainer.default_root_dir) / FILE
        count = self.num_images
        names = [name for evaluation in self.evaluations for name in evaluation.names(count, spreads=True)]
        undefined = [name for evaluation in self.evaluations for name in evaluation.undefined(count)]
        round_conditions = conditions(pl_module, self.weights, str(trainer.precision), self.evaluations, count)
        self.rounds = Rounds(path, round_conditions, [*names, NONFINITE], undefined)
        message = self.rounds.resume() if trainer.is_global_zero else ""
        # The first process decides, for all must agree.
        self.rounds.finished = trainer.strategy.broadcast(self.rounds.finished)
        plan.done.update(r for r in range(self.num_rounds) if plan.label(r) in self.rounds.finished)
        if plan.done:
            kept = ", ".join(f"{r + 1} (seeds {plan.label(r)})" for r in sorted(plan.done))
            message = f"Scored before, and kept in {path}: round {kept}. Delete that file to sample again."
        if message and trainer.is_global_zero:
            tqdm.write(message)

    def on_test_batch_start(
        self,
        trainer: Trainer,
        pl_module: DiffusionModule,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if batch_idx == 0 and dataloader_idx > 0:
            self.end_round(trainer, pl_module, dataloader_idx - 1)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: DiffusionModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        *args: Any,
    ) -> None:
        if outputs is not None:
            self.update(outputs)

    def end_round(self, trainer: Trainer, pl_module: DiffusionModule, number: int) -> None:
        """Score round `number`, from 0, and store it, unless that was done before."""
        plan = pl_module.seed_plan
        if number in plan.done:
            return
        values = self.compute(pl_module.device)
        check(
            self.count == self.num_images,
            f"{self.count} of {self.num_images} images were sampled: leave out what cuts the Trainer's test short",
        )
        check(
            values[NONFINITE] < self.count,
            f"no image of seeds {plan.label(number)} is finite: use other weights than {self.weights}, another "
            f"trainer.precision than {trainer.precision} or more steps of the sampler",
        )
        if trainer.is_global_zero:
            self.rounds.add(plan.label(number), values)
            if self.num_rounds > 1:
                first = next(name for name in values if name != NONFINITE)
                seeds = plan.label(number)
                tqdm.write(f"Round {number + 1} of {self.num_rounds} (seeds {seeds}): {first} {values[first]:.4g}")

    def on_test_end(self, trainer: Trainer, pl_module: DiffusionModule) -> None:
        plan, count = pl_module.seed_plan, self.num_images
        self.end_round(trainer, pl_module, self.num_rounds - 1)
        if not trainer.is_global_zero:
            return
        better: dict[str, Better] = {}
        for evaluation in self.evaluations:
            better |= evaluation.better(count)
        rounds = [self.rounds.finished[plan.label(r)] for r in range(self.num_rounds)]
        nonfinite = [int(values[NONFINITE]) for values in rounds]
        rounds = [{name: value for name, value in values.items() if name != NONFINITE} for values in rounds]
        values = {**summarise_rounds(rounds, better), **self.companion_scores(count)}
        path, protocol = Path(trainer.default_root_dir) / RESULTS, self.describe(trainer, pl_module)
        protocol |= {"better": better, NONFINITE: nonfinite}
        write_file(path, to_json({**values, "protocol": protocol}).encode())
        log_values(trainer, {f"test/{n}": v for n, v in values.items()})
        tables = [evaluation.table(values, count, self.num_rounds) for evaluation in self.evaluations]
        seeds = ", ".join(plan.label(r) for r in range(self.num_rounds))
        summary = f"{self.weights} weights after {pl_module.images_seen:,} images, NFE {protocol['nfe']}, seeds {seeds}"
        if any(nonfinite):
            bad = ", ".join(f"{number:,}" for number in nonfinite)
            summary += (
                f"\n\nWARNING: NaN OR INFINITE PIXELS IN {bad} OF {count:,} IMAGES (by round), scored all the same"
            )
        print(*tables, summary, f"written to {path}", sep="\n\n")

    def describe(self, trainer: Trainer, pl_module: DiffusionModule) -> dict[str, Any]:
        """The protocol: the facts that scores must share to be comparable, and where these come from."""
        plan, model = pl_module.seed_plan, pl_module.model(self.weights)
        seeds = [plan.label(r) for r in range(self.num_rounds)]
        return {
            "num_images": self.num_images,
            "rounds": self.num_rounds,
            "seeds": seeds[0] if self.num_rounds == 1 else seeds,
            "weights": self.weights,
            "weights_sha256": self.rounds.conditions["weights (sha256)"],
            "ckpt_path": None if trainer.ckpt_path is None else str(trainer.ckpt_path),
            "nfe": model.own_nfe,
            "images_seen": pl_module.images_seen,
            "extractors": [evaluation.describe(self.num_images) for evaluation in self.evaluations],
            "reference": [evaluation.reference.source for evaluation in self.evaluations],
            "resize": pl_module.data.resized.words,
            "reference_moments": [evaluation.reference.moments() for evaluation in self.evaluations],
            "precision": str(trainer.precision),
            "config": pl_module.config,
            **provenance(pl_module.device.type),
            **self.rounds.provenance(seeds),
        }
