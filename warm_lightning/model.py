"""A network, and what makes a diffusion model of it: the `Estimator` that samplers ask."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from warm_lightning.data import ImageDataModule
from warm_lightning.errors import check
from warm_lightning.losses import ClockLaw
from warm_lightning.networks.base import Network
from warm_lightning.parameterizations import Parameterization
from warm_lightning.preconditioning import Preconditioning
from warm_lightning.processes import Process
from warm_lightning.restoration import Start, restore
from warm_lightning.rng import SeedStreams
from warm_lightning.samplers import Grid, Sampler
from warm_lightning.spectral import idct
from warm_lightning.types import Estimate, Estimator, Level

Weights = Literal["ema", "raw"]
"""The averaged weights, or those being trained."""


@dataclass(frozen=True)
class TestPlan:
    """What `warm test` generates; the callback that scores it says so.

    Attributes:
        rounds: of each round the seeds, one an image.
        batch_size: images a device samples at once, at most.
        weights: "ema" or "raw".
        done: numbers of the rounds, from 0, that need not be sampled.
    """

    rounds: Sequence[range]
    batch_size: int = 256
    weights: Weights = "ema"
    done: set[int] = field(default_factory=set)

    def label(self, number: int) -> str:
        """The seeds of a round as people write them."""
        return f"{self.rounds[number][0]}-{self.rounds[number][-1]}"

    def batches(self, number: int, rank: int = 0, world_size: int = 1) -> list[range]:
        """Every `world_size`-th seed of a round, from `rank`, in batches."""
        mine = self.rounds[number][rank::world_size]
        return [mine[i : i + self.batch_size] for i in range(0, len(mine), self.batch_size)]


def one_hot(classes: Tensor, label_dim: int) -> Tensor | None:
    """Class indices [B] → one-hot [B, label_dim]; None for a network without classes (label_dim 0).

    Raises:
        UserError: for a class that the network has not.
    """
    if label_dim == 0:
        return None
    wrong = classes[(classes < 0) | (classes >= label_dim)].tolist()
    check(not wrong, f"class {wrong[:1]} is not one of the model's, which are 0 to {label_dim - 1}")
    return torch.nn.functional.one_hot(classes, label_dim)


def check_data(network: Network, data: ImageDataModule) -> None:
    """Raise UserError unless the network takes the data's images and classes."""
    for name in ("resolution", "image_channels"):
        ours, theirs = getattr(network, name), getattr(data, name)
        check(ours == theirs, f"model.network.{name} is {ours}, but the images have {theirs}: set it to that")
    classes, labels = data.num_classes, network.label_dim
    check(
        labels in (0, classes),
        f"model.network.label_dim is {labels}, but the data has {classes} classes: set it to that, or to 0",
    )


def check_labels(network: Network, augment_dim: int, label_dropout: float, guidance: float) -> None:
    """Raise UserError where the network cannot be told what it must be told."""
    check(
        augment_dim in (0, network.augment_dim),
        f"model.network.augment_dim is {network.augment_dim}, but model.augment gives {augment_dim} numbers: set the "
        "former to that",
    )
    check(
        label_dropout == 0 or network.label_dim > 0,
        "model.label_dropout hides classes, of which the network has none: set model.network.label_dim too",
    )
    check(
        guidance == 1 or label_dropout > 0,
        f"guidance {guidance} needs a model trained with model.label_dropout above 0, 0.1 for instance",
    )


def check_grid(process: Process, parameterization: Parameterization, grid: Grid, law: ClockLaw | None = None) -> None:
    """Raise UserError where training or sampling would not begin where the process does, or a sampler would take steps
    that are longer than what the network says reaches."""
    clocks = grid.clocks()
    first, stride = clocks[0].item(), (clocks[:-1] - clocks[1:]).max().item()
    trained = law.quantile(torch.tensor(1 - 1e-6)).item() if law else process.last
    for name, end in {"model.sampler.grid": first, "model.clock_law": trained}.items():
        check(
            process.last == math.inf or abs(end - process.last) <= 0.002 * process.last,
            f"{name} begins at {end:g} of model.process's clock, which goes to {process.last:g}: make them agree",
        )
    check(
        stride <= 1.1 * parameterization.reach,
        f"{type(parameterization).__name__} says what is {parameterization.reach:g} step ahead, but the sampler's grid "
        f"has steps of {stride:.3g}: set the grid's steps to {process.last:g}, the whole chain",
    )


@dataclass(frozen=True)
class DiffusionModel:
    """A network with the process it works in, what its outputs mean and how they are scaled.

    `guidance` is the weight w of classifier-free guidance in `estimate`; 1 is the class's own estimate.
    """

    network: Network
    process: Process
    parameterization: Parameterization
    preconditioning: Preconditioning
    guidance: float = 1.0

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        return self.network.image_channels, self.network.resolution, self.network.resolution

    def nfe(self, sampler: Sampler) -> int:
        """Network calls for an image: guidance doubles the sampler's."""
        return sampler.nfe * self.calls

    @property
    def calls(self) -> int:
        """Network calls for an estimate."""
        return 2 if self.guidance != 1 and self.network.label_dim else 1

    def outputs(
        self,
        x: Tensor,
        level: Level,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """What the branches say of a degraded image: c_skip x + c_out F(c_in x; c_noise, c_blur).

        Args:
            x: degraded pixels [B, C, H, W].
            level: of x, [B] or [1].
            class_labels: one-hot classes [B, label_dim]; zeros mean no class.
            augment_labels: [B, augment_dim]; zeros mean none.

        Returns:
            [B, branches, C, H, W] in the dtype of x, whatever the precision of the network.
        """
        c = self.preconditioning(level.to(x))
        weights = next(self.network.parameters())
        own = weights.device, weights.dtype
        raw = self.network(
            (c.input * x).to(*own),
            (c.noise * (self.network.time_scale if self.preconditioning.time else 1)).expand(len(x)).to(*own),
            c.blur.expand(len(x)).to(*own),
            None if class_labels is None else class_labels.to(*own),
            None if augment_labels is None else augment_labels.to(*own),
        )
        skips = torch.tensor(self.parameterization.skips, dtype=x.dtype, device=x.device).view(1, -1, 1, 1, 1)
        return skips * (c.skip * x).unsqueeze(1) + c.out.unsqueeze(1) * raw.to(x)

    def estimate(self, u: Tensor, level: Level, class_labels: Tensor | None = None) -> Estimate:
        """What the model believes about u [B, C, H, W]: the `Estimator` that samplers ask, once labels are bound.

        With guidance w, every output is (1 - w) of what it is without a class and w of what it is with it (Ho
        and Salimans 2022, Eq. 6, with their w + 1 as w), at the cost of two network calls.
        """
        x = idct(u)
        outputs = self.outputs(x, level, class_labels)
        if self.guidance != 1 and class_labels is not None:
            outputs = torch.lerp(self.outputs(x, level), outputs, self.guidance)
        return self.parameterization.estimate(outputs, u, self.process.gains(level, u))

    @torch.no_grad()
    def sample(
        self,
        sampler: Sampler,
        seeds: Sequence[int],
        classes: Sequence[int] | None = None,
        watch: Callable[[Tensor, Level], None] | None = None,
    ) -> Tensor:
        """Images of some seeds, a pure function of (weights, seed, class, sampler).

        Args:
            sampler: how to sample.
            seeds: one an image.
            classes: one an image, for a class-conditional model; each seed draws its own where not given.
            watch: see `Sampler`.

        Returns:
            Pixels [B, C, H, W], about [-1, 1], float64 on the CPU.

        Raises:
            UserError: for classes, levels or steps that the model does not know.
        """
        check_grid(self.process, self.parameterization, sampler.grid)
        streams = SeedStreams(seeds, self.state_device)
        start = streams.normal(*self.image_shape, dtype=torch.float64)
        if self.network.label_dim:  # drawn in any case, so that what follows does not depend on who chose the class
            own = streams.integers(self.network.label_dim).tolist()
            classes = own if classes is None else classes
        with self.told(classes) as ask:
            return idct(sampler(ask, self.process, start, streams, watch)).cpu()

    def restore(
        self,
        sampler: Sampler,
        start: Start,
        y: Tensor,
        seeds: Sequence[int],
        classes: Sequence[int] | None = None,
        mean: bool = False,
    ) -> Tensor:
        """Clean images for degraded ones, a pure function of (weights, image, seed, class, sampler).

        Args:
            sampler: how to sample.
            start: where the images are; see `restoration.find_start`.
            y: degraded pixels, [B, C, H, W].
            seeds: one an image.
            classes: one an image, for a class-conditional model; none where not given.
            mean: whether to return the estimate of one network call instead of a sample.

        Returns:
            As `sample` does.
        """
        check(
            not mean or self.parameterization.reach == math.inf,
            f"{type(self.parameterization).__name__} says what is a step ahead, which makes no mean of clean images: "
            "leave --mean out",
        )
        y = y.to(self.state_device, torch.float64)
        with replace(self, process=start.process).told(classes) as ask:
            return restore(ask, sampler, start, y, SeedStreams(seeds, self.state_device), mean).cpu()

    @property
    def state_device(self) -> torch.device:
        """Where the sampler's state is: the CPU for devices without float64 (Apple's)."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    @contextmanager
    def told(self, classes: Sequence[int] | None) -> Iterator[Estimator]:
        """The model as samplers ask it, having been told the class of each image."""
        labels = one_hot(torch.tensor(classes), self.network.label_dim) if classes is not None else None
        training = self.network.training
        self.network.eval()  # weights in training have dropout on, which is no function of the seed
        try:
            yield partial(self.estimate, class_labels=labels)
        finally:
            self.network.train(training)
