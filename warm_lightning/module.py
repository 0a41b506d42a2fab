"""The LightningModule: Algorithm 1, and what keeps it reproducible. Wiring only."""

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from lightning import LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from warm_lightning.augment import Augmentation
from warm_lightning.checkpoints import FORMAT_VERSION, SECTION, check_same_model, start_from
from warm_lightning.data import ImageDataModule
from warm_lightning.data.image_set import all_images
from warm_lightning.defaults import default
from warm_lightning.ema import EMA
from warm_lightning.errors import check
from warm_lightning.images import dequantise
from warm_lightning.losses import ClockLaw, LogNormal, Loss, SquaredError
from warm_lightning.model import DiffusionModel, TestPlan, Weights, check_data, check_grid, check_labels, one_hot
from warm_lightning.networks.base import Network
from warm_lightning.parameterizations import DenoiseDeblur, Parameterization
from warm_lightning.preconditioning import EDMPreconditioning, Preconditioning
from warm_lightning.processes import Process, Warm
from warm_lightning.records import PACKAGE_VERSION
from warm_lightning.rng import BatchDraws, Draws, SeedStreams, key
from warm_lightning.samplers import Sampler
from warm_lightning.spectral import dct, idct
from warm_lightning.strategies import check_strategy, gathered, local, shard
from warm_lightning.targets import Others, Target
from warm_lightning.types import Batch, Estimate


class DiffusionModule(LightningModule):
    """Trains, validates and samples a diffusion model; every schedule is in images.

    Args:
        network: makes the network for a number of output branches.
        process: the forward process.
        parameterization: what the network's branches mean.
        preconditioning: how its input and outputs are scaled.
        clock_law: the distribution of the process's clock in training.
        loss: the cost of a deviation.
        target: what counts as the truth about a degraded image, if not the image that it was made from.
        sampler: how to sample while training and in `warm test`, and by default in `warm generate`.
        duration: images to train on.
        lr: Adam's learning rate after its ramp.
        lr_ramp: images over which the learning rate rises linearly from 0.
        betas: Adam's.
        eps: Adam's.
        ema_half_life: images, see `EMA`.
        ema_ramp: see `EMA`.
        label_dropout: probability with which an image's class is hidden from the network in training, so that
            samples can be guided.
        guidance: weight of classifier-free guidance in sampling, 1 for none; needs label dropout in training.
        augment: augmentation of training images that the network is told of; None for none.
        channels_last: whether to keep the network's tensors in channels-last order, faster on GPUs with half precision.
        compile: whether to compile the network with torch.compile; worth its minutes on a GPU.
        seed: of initialisation, image order, noise and dropout: training is a pure function of the
            configuration, this seed and the images seen.
        init_from: checkpoint whose averaged weights training starts from; see `checkpoints.start_from`.
    """

    def __init__(
        self,
        network: Callable[[int], Network],
        process: Process = default(Warm),
        parameterization: Parameterization = default(DenoiseDeblur),
        preconditioning: Preconditioning = default(EDMPreconditioning),
        clock_law: ClockLaw = default(LogNormal),
        loss: Loss = default(SquaredError),
        target: Target | None = None,
        sampler: Sampler = Sampler(),
        duration: float = 200e6,
        lr: float = 1e-3,
        lr_ramp: float = 10e6,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        ema_half_life: float = 0.5e6,
        ema_ramp: float | None = 0.05,
        label_dropout: float = 0.0,
        guidance: float = 1.0,
        augment: Augmentation | None = None,
        channels_last: bool = False,
        compile: bool = False,
        seed: int = 0,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        check(duration >= 1, f"duration is {duration}: it is a number of images and must be positive")
        check(lr > 0, f"lr is {lr}: it must be positive")
        check(lr_ramp >= 0, f"lr_ramp is {lr_ramp}: it is a number of images, 0 for no ramp")
        check(0 <= label_dropout < 1, f"label_dropout is {label_dropout}: it is a probability below 1")
        self.process = process
        self.parameterization = parameterization
        self.preconditioning = preconditioning
        self.clock_law = clock_law
        self.loss = loss
        self.target = target
        self.sampler = sampler
        self.duration = int(duration)
        self.lr, self.lr_ramp, self.betas, self.eps = lr, lr_ramp, betas, eps
        self.ema = EMA(ema_half_life, ema_ramp)
        self.label_dropout = label_dropout
        self.guidance = guidance
        self.augment = augment
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(seed, "network"))
            self.network = network(len(self.parameterization.names))
        check_labels(self.network, augment.dim if augment else 0, label_dropout, guidance)
        check_grid(process, parameterization, sampler.grid, clock_law)
        if init_from:
            start_from(init_from, self.network)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        self.ema_network = copy.deepcopy(self.network).requires_grad_(False).eval()
        if compile:
            self.network.compile()
        self.images_seen = 0
        self.stepped = False  # whether the batch that has just ended was the last of an optimizer step
        self.nonfinite_gradients = 0
        self.source: dict[str, Any] | None = None  # of weights that were not trained here
        self.exported: Weights | None = None  # which weights there are, where these came from an exported model
        self.config: dict[str, Any] | None = None  # plain data that makes this module again; see config.py
        self.test_plan = TestPlan(rounds=())
        self.scored: dict[str, tuple[int, float]] = {}  # the latest scores, and the images seen by then

    # ------------------------------------------------------------------ the model

    def model(self, weights: Weights = "ema") -> DiffusionModel:
        """The diffusion model with the averaged weights ("ema") or with those being trained ("raw")."""
        held = self.exported or weights
        check(held == weights, f"the model was exported with its {held} weights only: ask for weights {held}")
        network = self.ema_network if weights == "ema" else self.network
        return DiffusionModel(network, self.process, self.parameterization, self.preconditioning, self.guidance)

    def setup(self, stage: str) -> None:
        """Check that the network takes the data's images and classes, before anything is computed."""
        check_strategy(self.trainer.strategy, self.network)
        check(
            str(self.trainer.precision) not in ("bf16-true", "16-true"),
            f"trainer.precision {self.trainer.precision} would round the average of the weights: use 32-true, 64-true, "
            "bf16-mixed or 16-mixed",
        )
        check_data(self.network, self.data)

    def configure_model(self) -> None:
        """With the strategy fsdp2, spread what is trained over the devices; the averages are whole on each."""
        if self.device_mesh is not None:
            shard(self.network, self.device_mesh)

    # ------------------------------------------------------------------ training

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Tensor]:
        """One step of Algorithm 1; "losses" [b, branches] and "clock" [b] are for the log."""
        self.stepped = False
        rows = batch.positions - self.images_seen
        draws = BatchDraws(self.seed, self.images_seen, self.batch_size, rows)
        torch.manual_seed(key(self.seed, "dropout", int(batch.positions[0])))
        losses, clock = self.losses(self.model("raw"), batch, draws, training=True)
        return {"loss": losses.sum(1).mean(), "losses": losses.detach(), "clock": clock}

    def losses(
        self, model: DiffusionModel, batch: Batch, draws: Draws, training: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Lines 4 to 13 of Algorithm 1: the loss of each image and branch [b, branches], and its clock [b].

        With label dropout, augmentation and targets of other images in training alone.
        """
        x0 = dequantise(batch.images, torch.promote_types(cast(torch.dtype, self.dtype), torch.float32))
        x0, augment_labels = self.augment(x0, draws) if self.augment and training else (x0, None)
        epsilon = self.process.noise(draws.normal(*x0.shape[1:], dtype=x0.dtype), draws)
        clock = self.clock_law.draw(draws).to(x0.dtype)
        level = self.process.draw_level(clock, draws)
        truth = Estimate(dct(x0), dct(epsilon))
        gains = self.process.gains(level, truth.clean)
        u = self.process.degrade(truth, gains)
        class_labels = self.class_labels(batch, draws, self.label_dropout if training else 0.0)
        if self.target and training:
            others, allowed = self.others(batch, cast(BatchDraws, draws), class_labels, augment_labels, u)
            truth = self.target(truth, u, others, allowed, self.process, gains)
        targets = self.parameterization.targets(truth, gains)
        outputs = model.outputs(idct(u), level, class_labels, augment_labels)
        return self.loss(outputs, targets, self.preconditioning(level).out, gains), clock

    def class_labels(self, batch: Batch, draws: Draws, dropout: float) -> Tensor | None:
        """One-hot classes, all zeros for the share `dropout` of the images; None for a network without classes."""
        labels = one_hot(batch.labels, self.network.label_dim)
        if labels is None or dropout == 0:
            return labels
        return labels * (draws.uniform(1) >= dropout)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.network.parameters(), lr=self.lr, betas=self.betas, eps=self.eps)

    def on_fit_start(self) -> None:
        if self.target:
            self.others = Others(self.data, self.seed, self.target.references)

    def on_train_start(self) -> None:
        # A finished run that is started again has nothing to do.
        self.trainer.should_stop = self.images_seen >= self.duration
        if self.process.learned is None:  # and no checkpoint has brought it
            first = self.trainer.is_global_zero
            images = all_images(self.data.train_images(), "Learning where to start") if first else ()
            self.process.learned = self.trainer.strategy.broadcast(self.process.learn(images) if first else None)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Non-finite gradients are replaced and counted (EDM's recipe).

        With 16-mixed precision the loss scaler has seen them by now and skips Adam's step all the same; it
        causes some itself, on purpose, while it looks for its scale.
        """
        gradients = [local(p.grad) for p in self.network.parameters() if p.grad is not None]
        if torch.stack(torch._foreach_norm(gradients)).isfinite().all():
            return
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
            group.update(lr=self.lr * min(1.0, images_seen / max(self.lr_ramp, 1)), betas=self.betas, eps=self.eps)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self.images_seen = images_seen
        self.stepped = True
        with gathered(self.network):
            self.ema.update(self.ema_network, self.network, images_seen, self.batch_size)
        if images_seen >= self.duration:
            self.trainer.should_stop = True

    @property
    def batch_size(self) -> int:
        """Global batch size: images an optimizer step, over all devices."""
        return self.data.batch_size

    @property
    def data(self) -> ImageDataModule:
        """The data set that the Trainer works on."""
        return cast(Any, self.trainer).datamodule

    # ------------------------------------------------------------------ validation and test

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """The training loss with averaged weights, on noise that depends on the image alone."""
        draws = SeedStreams([key(self.seed, "validate", p) for p in batch.positions.tolist()], self.device)
        losses, _ = self.losses(self.model("ema"), batch, draws)
        for name, loss in zip(self.parameterization.names, losses.mean(0), strict=True):
            self.log(f"val/loss_{name}", loss, sync_dist=True, batch_size=len(losses), logger=False)
        self.log("val/loss", losses.sum(1).mean(), sync_dist=True, batch_size=len(losses), logger=False)

    def seed_loader(self) -> list[DataLoader]:
        """Batches of seeds for `test_step`, a loader for each round, of which each device takes its share."""
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        rounds = [self.test_plan.batches(r, rank, world_size) for r in range(len(self.test_plan.rounds))]
        return [DataLoader(cast(Dataset, [torch.tensor(b) for b in batches]), batch_size=None) for batches in rounds]

    def test_step(self, seeds: Tensor, batch_idx: int, dataloader_idx: int = 0) -> Tensor | None:
        """Images of the seeds, about -1 to 1, [b, C, H, W]; nothing in rounds that are done."""
        return None if dataloader_idx in self.test_plan.done else self.sample(seeds.tolist(), self.test_plan.weights)

    def sample(self, seeds: Sequence[int], weights: Weights = "ema") -> Tensor:
        """Images of seeds with this module's sampler in the Trainer's precision, about -1 to 1, [B, C, H, W]."""
        with self.trainer.precision_plugin.forward_context():
            return self.model(weights).sample(self.sampler, seeds)

    # ------------------------------------------------------------------ checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[SECTION] = {
            "format_version": FORMAT_VERSION,
            "package_version": PACKAGE_VERSION,
            "config": self.config,
            "images_seen": self.images_seen,
            "nonfinite_gradients": self.nonfinite_gradients,
            "source": self.source,
            "learned": self.process.learned or {},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "state_dict" in checkpoint:  # the strategy fsdp2 has taken it out and filled the weights by now
            check_same_model(checkpoint["state_dict"], self.state_dict())
            # Lightning fills the weights before it turns them into the Trainer's precision: float64 must fit in.
            self.to(next(iter(checkpoint["state_dict"].values())).dtype)
        section = checkpoint[SECTION]
        self.images_seen = section["images_seen"]
        self.nonfinite_gradients = section["nonfinite_gradients"]
        self.source = section["source"]
        self.exported = section.get("weights")
        self.process.learned = section["learned"] or self.process.learned
