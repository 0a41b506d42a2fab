"""The LightningModule around a diffusion model: optimizer, averages, checkpoints, logging and devices."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from warm_lightning.checkpoints import FORMAT_VERSION, SECTION, check_same_model, start_from, with_own_loss
from warm_lightning.data.datamodule import ImageDataModule
from warm_lightning.data.image_set import dequantised_batches
from warm_lightning.distributed import strided_batches
from warm_lightning.ema import EMA
from warm_lightning.errors import UserError, check
from warm_lightning.model import DiffusionModel, check_data
from warm_lightning.networks.base import Network
from warm_lightning.paths import CheckpointText
from warm_lightning.records import PACKAGE_VERSION
from warm_lightning.rng import BatchDraws, SeedStreams, key
from warm_lightning.strategies import check_precision, check_steps, check_strategy, gathered, local, shard
from warm_lightning.targets import ReferenceBatch
from warm_lightning.types import Batch, Weights

NONFINITE_STEPS = 100
"""Steps in a row without finite gradients after which training ends: more than the loss scale of 16-mixed needs."""
LOST_STEPS = 10
"""Steps in a row without finite gradients after which `last.ckpt` is kept as it is; EDM's recipe mends single ones."""


@dataclass(frozen=True)
class SeedPlan:
    """The seeds that `warm test` samples in each round.

    Attributes:
        rounds: the seeds of each round, one per image.
        batch_size: the largest number of images that a device samples at once.
        weights: "ema" or "raw".
        done: numbers of the rounds, from 0, whose scores are already stored.
    """

    rounds: Sequence[range] = ()
    batch_size: int = 256
    weights: Weights = "ema"
    done: set[int] = field(default_factory=set)

    def label(self, number: int) -> str:
        """The seeds of a round as text, such as 0-49999."""
        return f"{self.rounds[number][0]}-{self.rounds[number][-1]}"

    def batches(self, number: int, rank: int = 0, world_size: int = 1) -> list[range]:
        """Split a device's share of a round, which is every `world_size`-th seed from `rank` on, into batches."""
        return strided_batches(self.rounds[number], self.batch_size, rank, world_size)


class DiffusionModule(LightningModule):
    """Trains, validates and samples a `DiffusionModel`; every schedule is in images.

    Args:
        network: makes the network for a number of output branches.
        duration: images to train on.
        lr: Adam's learning rate after its ramp.
        lr_ramp: images over which the learning rate rises linearly from 0.
        lr_decay: images after which it falls as 1/√images (EDM2; Karras et al. 2024, Eq. 67); None for a constant rate.
        betas: Adam's.
        eps: Adam's.
        ema_half_life: images, see `EMA`.
        ema_ramp: see `EMA`.
        channels_last: whether to keep the network's tensors in channels-last order, faster on GPUs with half precision.
        compile: whether to compile the network with torch.compile; worth its minutes on a GPU.
        seed: of initialisation, image order, noise and dropout: training is a pure function of the
            configuration, this seed and the images seen.
        init_from: checkpoint whose averaged weights training starts from; see `checkpoints.start_from`.
        **kwargs: the other arguments of `DiffusionModel`.

    Attributes:
        network: the network that is trained.
        ema_network: the average of its weights.
        images_seen: number of images that it has been trained on.
        stepped: whether the last micro-batch completed an optimizer step.
        nonfinite_gradients: number of gradients that were replaced because they were not finite.
        nonfinite_steps: number of the last steps whose gradients were not finite; training ends after
            `NONFINITE_STEPS`, and is taken for lost after `LOST_STEPS`.
        step_images: number of this device's images since the last optimizer step.
        initial_batch_size: `batch_size` at the start of the training.
        source: the origin of weights that were not trained here.
        config: the resolved configuration, from which `load_checkpoint` makes the model again; None if the module was
            made in Python.
        scored: the latest scores by name, each with the images seen by then.
        better: the direction of these scores, "lower", "higher" or "near 1".
    """

    def __init__(
        self,
        network: Callable[[int], Network],
        *,
        duration: float = 200e6,
        lr: float = 1e-3,
        lr_ramp: float = 10e6,
        lr_decay: float | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        ema_half_life: float = 0.5e6,
        ema_ramp: float | None = 0.05,
        channels_last: bool = False,
        compile: bool = False,
        seed: int = 0,
        init_from: CheckpointText | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        check(1 <= duration < math.inf, f"duration is {duration}: it is a number of images and must be positive")
        check(0 < lr < math.inf, f"lr is {lr}: it must be positive and finite")
        check(all(0 <= beta < 1 for beta in betas), f"betas are {list(betas)}: they must be from 0 to below 1")
        check(0 <= eps < math.inf, f"eps is {eps}: it must be 0 or more")
        check(0 <= lr_ramp < math.inf, f"lr_ramp is {lr_ramp}: it is a number of images, 0 for no ramp")
        check(lr_decay is None or lr_decay > 0, f"lr_decay is {lr_decay}: it is a number of images, null for no decay")
        self.duration = int(duration)
        self.lr, self.lr_ramp, self.lr_decay, self.betas, self.eps = lr, lr_ramp, lr_decay, betas, eps
        self.ema = EMA(ema_half_life, ema_ramp)
        self.seed = seed
        model = DiffusionModel(network=network, seed=seed, **kwargs)
        if init_from:
            learned = start_from(init_from, model.network)
            model.accept(learned, model.preconditioning.learners)  # which the meaning of the weights depends on
        if channels_last:
            model.network.to(memory_format=torch.channels_last)
        # Checkpoints name the weights by these two attributes; the models around them hold no weights of their own.
        self.network = model.network
        self.ema_network = copy.deepcopy(model.network).requires_grad_(False).eval()
        self.cost = model.cost  # so that the weights of a loss that learns are trained and saved
        self.models: dict[Weights, DiffusionModel] = {"raw": model, "ema": model.replaced(network=self.ema_network)}
        if compile:
            self.network.compile()
        self.images_seen = 0
        self.stepped = False
        self.nonfinite_gradients = 0
        self.nonfinite_steps = 0
        self.step_images = 0
        self.initial_batch_size = 0
        self.source: dict[str, Any] | None = None
        self.config: dict[str, Any] | None = None
        self.seed_plan = SeedPlan()
        self.better: dict[str, str] = {}
        self.scored: dict[str, tuple[int, float]] = {}

    # ------------------------------------------------------------------ the model

    def model(self, weights: Weights = "ema") -> DiffusionModel:
        """The diffusion model with the averaged weights ("ema") or with those being trained ("raw")."""
        return self.models[weights]

    def setup(self, stage: str) -> None:
        """Check strategy, precision and data against the network, before anything is computed."""
        check_strategy(self.trainer.strategy, self.network, bool(self.loss_parameters))
        model = self.model("raw")
        if model.guide and not model.guide.needs and model.guidance != 1:
            model.guide.model(model)  # reads a checkpoint: raises now, and not at the first samples
        if stage == "fit":
            check_steps(self.trainer)
            check_precision(str(self.trainer.precision), self.trainer.strategy.root_device)
            self.initial_batch_size = self.data.batch_size
        check(
            str(self.trainer.precision) not in ("bf16-true", "16-true"),
            f"trainer.precision {self.trainer.precision} would round the average of the weights: use 32-true, 64-true, "
            "bf16-mixed or 16-mixed",
        )
        check_data(self.network, self.data)

    def configure_model(self) -> None:
        """Shard the network over the devices if the strategy is fsdp2; the averaged network stays whole on each."""
        if self.device_mesh is not None:
            shard(self.network, self.device_mesh)

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step of Algorithm 1; "losses" [b, branches] and "clock" [b] are for the log."""
        self.step_images = 0 if self.stepped else self.step_images
        self.stepped = False
        position = int(batch.positions[0])
        self._check_batch(position, len(batch.positions))
        self.step_images += len(batch.positions)
        rows = batch.positions - self.images_seen
        draws = BatchDraws(self.seed, self.images_seen, self.batch_size, rows)
        torch.manual_seed(key(self.seed, "dropout", position))
        losses, clock = self.model("raw").loss(batch, draws)
        return {"loss": losses.sum(1).mean(), "losses": losses.detach(), "clock": clock}

    def _check_batch(self, position: int, size: int) -> None:
        """Check that a batch is the next of the stream, whatever callbacks of the Trainer have done.

        Raises:
            UserError: it is not.
        """
        if self._trainer is None:  # a step without a Trainer, such as a benchmark's
            return
        self._check_step(self.step_images + size)
        first = self.images_seen + self.step_images * self.trainer.world_size + self.global_rank * size
        check(
            position == first and self.batch_size == self.initial_batch_size,
            f"a callback has changed batch_size (now {self.batch_size}, at the start {self.initial_batch_size}) or the "
            f"order of the images (now {position}, expected {first}): leave it out",
        )

    def _check_step(self, images: int, exactly: bool = False) -> None:
        """Check that this many images on each device are a step, or a part of one.

        Raises:
            UserError: they are not.
        """
        images *= self.trainer.world_size
        check(
            images == self.initial_batch_size if exactly else images <= self.initial_batch_size,
            f"a step on {images} images instead of {self.initial_batch_size}: leave out the callback that changes "
            "trainer.accumulate_grad_batches",
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, fused into one kernel where that is possible."""
        parameters = [*self.network.parameters(), *self.loss_parameters]
        # With 16-mixed precision a fused step undoes the loss scale itself, after gradients were looked at for
        # non-finite ones; parameters that are sharded have no fused step.
        scaled = self._trainer is not None and str(self.trainer.precision) == "16-mixed"
        sharded = any(local(p) is not p for p in parameters)
        fused = parameters[0].device.type in ("cpu", "cuda") and not scaled and not sharded
        return torch.optim.Adam(parameters, lr=self.lr, betas=self.betas, eps=self.eps, fused=fused or None)

    def on_fit_start(self) -> None:
        self._follow_average()  # raises now where the checkpoint lacks it
        model = self.model("raw")
        if model.target:
            model.reference_batch = ReferenceBatch(
                self.data.train_images(), self.data.xflip, self.seed, model.target.references
            )

    def on_train_start(self) -> None:
        # A finished run that is started again has nothing to do.
        self.trainer.should_stop = self.ended
        model, images = self.model(), self.data.train_images()
        if any(part.learned is None for part in model.learners):  # and no checkpoint has brought it
            if self.trainer.is_global_zero:
                model.learn(partial(dequantised_batches, images))
            model.accept(self.trainer.strategy.broadcast(model.learned))

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace non-finite gradients and count them (EDM's recipe).

        With 16-mixed precision the loss scaler has seen them by now and skips Adam's step all the same; it
        causes some itself, on purpose, while it looks for its scale.

        Raises:
            UserError: gradients are of another number of images than `batch_size`, or none has been finite for long.
        """
        if self._trainer is not None:
            self._check_step(self.step_images, exactly=True)
        parameters = [*self.network.parameters(), *self.loss_parameters]
        gradients = [local(p.grad) for p in parameters if p.grad is not None]
        if torch.stack(torch._foreach_norm(gradients)).isfinite().all():
            self.nonfinite_steps = 0
            return
        self.nonfinite_steps += 1
        check(
            self.nonfinite_steps < NONFINITE_STEPS,
            f"gradients have not been finite for {NONFINITE_STEPS} steps, at {self.images_seen:,} images: lower "
            "model.lr or raise model.lr_ramp; the last checkpoint is of before",
        )
        for gradient in gradients:
            self.nonfinite_gradients += int((~gradient.isfinite()).sum())
            gradient.nan_to_num_(nan=0.0, posinf=1e5, neginf=-1e5)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        """A step of Adam and of the average, so that all that is saved moves on together."""
        images_seen = self.images_seen + self.batch_size
        for group in optimizer.param_groups:
            # Betas and eps too, or those of a checkpoint would beat what was asked for when it is resumed.
            group.update(lr=self.learning_rate(images_seen), betas=self.betas, eps=self.eps)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.images_seen = images_seen
        self.stepped = True
        with gathered(self.network):
            self.ema.update(self.ema_network, self.network, images_seen, self.batch_size)
        self._follow_average()
        if self.ended:
            self.trainer.should_stop = True

    def _follow_average(self) -> None:
        """Let a guide that is made in this training take the average."""
        if guide := self.model().guide:
            guide.follow(self.ema_network, self.images_seen, self.duration, self.batch_size)

    def learning_rate(self, images_seen: int) -> float:
        """The learning rate of the step after which so many images have been seen."""
        decay = 1.0 if self.lr_decay is None else max(images_seen / self.lr_decay, 1.0) ** -0.5
        return self.lr * min(1.0, images_seen / max(self.lr_ramp, 1)) * decay

    @property
    def loss_parameters(self) -> list[torch.nn.Parameter]:
        """The parameters of a loss that learns; none for most."""
        return list(self.cost.parameters()) if isinstance(self.cost, torch.nn.Module) else []

    @property
    def ended(self) -> bool:
        """Whether there are no images left to train on."""
        return self.images_seen >= self.last_image

    @property
    def lost(self) -> bool:
        """Whether the training seems lost, so that its last checkpoint is worth more than a new one."""
        return self.nonfinite_steps >= LOST_STEPS

    @property
    def last_image(self) -> int:
        """Images seen at the end of the training: `duration`, or fewer where trainer.max_steps ends it before."""
        if self.trainer.max_steps < 0:  # no limit
            return self.duration
        steps = max(0, self.trainer.max_steps - self.trainer.global_step)
        return min(self.duration, self.images_seen + steps * self.batch_size)

    @property
    def batch_size(self) -> int:
        """Global batch size: images per optimizer step, over all devices."""
        return self.data.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        raise UserError(f"a callback changes batch_size to {value}: leave it out, and set data.batch_size")

    @property
    def data(self) -> ImageDataModule:
        """The data set that the Trainer works on."""
        return cast(Any, self.trainer).datamodule

    # ------------------------------------------------------------------ validation and test

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The training loss with averaged weights, on noise that depends on the image alone."""
        draws = SeedStreams([key(self.seed, "validate", p) for p in batch.positions.tolist()], self.device)
        model = self.model("ema")
        losses, _ = model.loss(batch, draws, training=False)
        for name, loss in zip(model.parameterization.names, losses.mean(0), strict=True):
            self.log(f"val/loss_{name}", loss, sync_dist=True, batch_size=len(losses), logger=False)
        self.log("val/loss", losses.sum(1).mean(), sync_dist=True, batch_size=len(losses), logger=False)

    def test_dataloader(self) -> list[DataLoader]:
        """Loaders of batches of seeds to sample, one for each round of `seed_plan`; each device gets its share."""
        trainer, plan = self.trainer, self.seed_plan
        rounds = [plan.batches(r, trainer.global_rank, trainer.world_size) for r in range(len(plan.rounds))]
        return [DataLoader(cast(Dataset, [torch.tensor(b) for b in batches]), batch_size=None) for batches in rounds]

    def test_step(self, seeds: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor | None:
        """Images of the seeds, about -1 to 1, [b, C, H, W]; None in rounds that are done."""
        plan = self.seed_plan
        return None if dataloader_idx in plan.done else self.sample(seeds.tolist(), plan.weights)

    def sample(self, seeds: Sequence[int], weights: Weights = "ema") -> Tensor:
        """Images of seeds with this module's sampler in the Trainer's precision, about -1 to 1, [B, C, H, W]."""
        with self.trainer.precision_plugin.forward_context():
            model = self.model(weights)
            return model.sample(model.sampler, seeds)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[SECTION] = {
            "format_version": FORMAT_VERSION,
            "package_version": PACKAGE_VERSION,
            "config": self.config,
            "images_seen": self.images_seen,
            "nonfinite_gradients": self.nonfinite_gradients,
            "source": self.source,
            "learned": self.model().learned,
            "data": self.data.identity(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # the strategy fsdp2 has taken it out and filled the weights by now
            if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
                checkpoint["state_dict"] = with_own_loss(checkpoint["state_dict"], self.state_dict())
            check_same_model(checkpoint["state_dict"], self.state_dict())
            # Lightning fills the weights before it turns them into the Trainer's precision: float64 must fit in.
            self.to(next(iter(checkpoint["state_dict"].values())).dtype)
        checkpoint.get("callbacks", {}).pop(Timer().state_key, None)  # trainer.max_time counts from each start
        section = checkpoint[SECTION]
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self.data.check_same(section.get("data"))
        self.images_seen = section["images_seen"]
        self.nonfinite_gradients = section["nonfinite_gradients"]
        self.source = section["source"]
        self.model().accept(section["learned"])
