"""The diffusion model in plain PyTorch: Algorithm 1's loss, estimates for samplers, sampling and restoration.

Nothing here knows Lightning: `DiffusionModule` wraps the model with an optimizer, checkpoints, logging and devices.
"""

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from warm_lightning.augment import Augmentation
from warm_lightning.defaults import default
from warm_lightning.errors import check
from warm_lightning.guidance import Guide
from warm_lightning.images import dequantise
from warm_lightning.learning import Learner
from warm_lightning.losses import ClockLaw, LogNormal, Loss, NoiseChoice, SquaredError
from warm_lightning.networks.base import Network
from warm_lightning.parameterizations import DenoiseDeblur, Parameterization
from warm_lightning.preconditioning import Coefficients, EDMPreconditioning, Preconditioning, scaled
from warm_lightning.processes import Process, Warm
from warm_lightning.records import tensors_hash
from warm_lightning.restoration import Start, restore
from warm_lightning.rng import BatchDraws, Draws, SeedStreams, key
from warm_lightning.samplers import Grid, Sampler, StepRule
from warm_lightning.spectral import dct, idct
from warm_lightning.targets import ReferenceBatch, Target
from warm_lightning.types import Batch, Estimate, Estimator, Level, Weights


def one_hot(classes: Tensor, label_dim: int) -> Tensor | None:
    """Class indices [B] below label_dim → one-hot [B, label_dim]; None for a network without classes (label_dim 0)."""
    return torch.nn.functional.one_hot(classes, label_dim) if label_dim else None


class DiffusionModel(nn.Module):
    """A network, the process it works in, the meaning and scaling of its outputs, and how it is trained and sampled.

    Args:
        network: makes the network for a number of output branches.
        process: the forward process.
        parameterization: the meaning of the network's branches.
        preconditioning: the scaling of its input and outputs.
        clock_law: the distribution of the process's clock in training.
        loss: the loss function of outputs and targets; an attribute under the name `cost`, since `loss` is a method.
        target: replaces the image by another target, such as a posterior mean; None for the image itself.
        noise_choice: chooses the noise for each image in training; None for the first that is drawn.
        sampler: how to sample where nothing else is asked for.
        label_dropout: probability with which an image's class is hidden from the network in training, so that
            samples can be guided.
        guidance: weight of guidance in sampling, 1 for none; needs label dropout in training, or a guide.
        guidance_interval: noise levels β, above the first and up to the second, with guidance; elsewhere the weight is
            1 (Kynkäänniemi et al. 2024, Eqs. 5 and 6). None for guidance everywhere.
        guide: a weaker model that guidance leads away from; None for the model itself without classes.
        augment: augmentation of training images, described to the network by a vector; None for none.
        seed: of the initial weights.

    Attributes:
        reference_batch: other training images for `target`; set before training, None where there is no target.

    Raises:
        UserError: the parts do not fit together.
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
        noise_choice: NoiseChoice | None = None,
        sampler: Sampler = Sampler(),
        label_dropout: float = 0.0,
        guidance: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guide: Guide | None = None,
        augment: Augmentation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        check(0 <= label_dropout < 1, f"label_dropout is {label_dropout}: it is a probability below 1")
        self.process = process
        self.parameterization = parameterization
        self.preconditioning = preconditioning
        self.clock_law = clock_law
        self.cost = loss
        self.target = target
        self.noise_choice = noise_choice
        self.label_dropout = label_dropout
        self.guidance = guidance
        self.augment = augment
        self.reference_batch: ReferenceBatch | None = None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(key(seed, "network"))
            self.network = network(len(parameterization.names))
        self.sampler = self.fitted(sampler)
        self.guidance_interval = guidance_interval
        self.guide = guide
        low, high = guidance_interval or (0.0, math.inf)
        check(0 <= low < high, f"guidance_interval is from {low} to {high}: need 0 <= low < high")
        check_labels(self.network, augment.dim if augment else 0, label_dropout, 1.0 if guide else guidance)
        check_grid(process, parameterization, self.sampler.grid, clock_law)
        outputs = len(parameterization.names)
        check(
            loss.outputs in (None, outputs),
            f"model.loss.branches is {loss.outputs}, but the network has {outputs} outputs: set it to that",
        )
        check(
            loss.branches in (None, parameterization.names),
            f"model.loss {type(loss).__name__} is for the outputs {', '.join(loss.branches or ())}, and "
            f"{type(parameterization).__name__} has {', '.join(parameterization.names)}: choose another of the two",
        )

    def replaced(self, **changes: Any) -> "DiffusionModel":
        """A shallow copy of the model with other attributes, such as `network` or `guidance`."""
        other = copy.copy(self)
        other._modules = dict(self._modules)  # which a shallow copy would share
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    def fitted(self, sampler: Sampler) -> Sampler:
        """A sampler with a grid for this model, narrowed to what its network knows."""
        sampler = sampler.within(*self.process.known_clocks)
        return replace(sampler, grid=sampler.grid.for_model(self.process, sampler.rule, self.image_shape))

    @property
    def learners(self) -> tuple[Learner, ...]:
        """The parts that may learn tensors from the training images, or from the training."""
        grid = self.sampler.grid
        last = (grid,) if isinstance(grid, Learner) else ()  # which learns for the process
        guide = self.guide.learners if self.guide else ()
        return *self.process.learners, *self.preconditioning.learners, *guide, *last

    @property
    def learned(self) -> dict[str, Tensor]:
        """The tensors that all parts have learned, by name."""
        return {name: tensor for part in self.learners for name, tensor in (part.learned or {}).items()}

    def learn(self, images: Callable[[str], Iterable[Tensor]]) -> None:
        """Let the parts that need tensors of the training images, and have none yet, learn them.

        Args:
            images: the images in batches [b, C, H, W] in [-1, 1], from the first on at each call; given the title of
                the progress.
        """
        if self.guide and self.guide.learned is None:  # in a training without Lightning
            self.guide.follow(self.network, 0, 1, 1)
        for part in self.learners:
            if part.learned is None:
                part.learned = part.learn(images(f"{type(part).__name__} learns from the images"))

    def accept(self, learned: Mapping[str, Tensor], parts: Iterable[Learner] | None = None) -> None:
        """Give parts what was learned in another run; a part that needs more is left as it is.

        Args:
            learned: tensors by name.
            parts: some of `learners`; None for all.
        """
        for part in self.learners if parts is None else parts:
            if part.needs and set(part.needs) <= learned.keys():
                part.learned = {name: learned[name] for name in (*part.needs, *part.keeps) if name in learned}

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.network.parameters()).device

    @property
    def state_device(self) -> torch.device:
        """The device of the sampler's state: the CPU for devices without float64 (Apple's)."""
        return torch.device("cpu") if self.device.type == "mps" else self.device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H, W."""
        return self.network.image_channels, self.network.resolution, self.network.resolution

    def nfe(self, rule: StepRule, levels: Sequence[Level], classes: bool = True) -> int:
        """The NFE, network calls per image, of a rule on levels down to the last: estimates with guidance count twice.

        Without a guide, only images with a class have guidance.
        """
        both = self.guide is not None or (self.network.label_dim > 0 and classes)
        estimates = [0, *(rule.evaluations(steps) for steps in range(1, len(levels)))]
        at_levels = zip(pairwise(estimates), levels, strict=False)
        return sum((b - a) * (2 if both and bool(self.guided(level)) else 1) for (a, b), level in at_levels)

    @property
    def own_nfe(self) -> int:
        """The NFE of the model's own sampler."""
        return self.nfe(self.sampler.rule, [self.process.level(clock) for clock in self.sampler.grid.clocks().split(1)])

    def weights_hash(self) -> str:
        """SHA-256 of the network's tensors that a checkpoint holds; see `tensors_hash`."""
        return tensors_hash(self.network.state_dict().items())

    def guide_hash(self) -> str | None:
        """The `weights_hash` of the guide; None where samples have none."""
        return self.guide.model(self).weights_hash() if self.guide and self.guidance != 1 else None

    # ------------------------------------------------------------------ training

    def loss(self, batch: Batch, draws: Draws, training: bool = True) -> tuple[Tensor, Tensor]:
        """Lines 4 to 13 of Algorithm 1: the loss of each image and branch.

        Args:
            batch: images, classes and positions.
            draws: the random numbers for each image; `BatchDraws` where there is a target of other images.
            training: whether to use label dropout, augmentation and targets of other images; without them, the loss is
                that of validation.

        Returns:
            losses [b, branches], and the clock of each image [b].
        """
        x0 = dequantise(batch.images, torch.promote_types(next(self.network.parameters()).dtype, torch.float32))
        x0, augment_labels = self.augment(x0, draws) if self.augment and training else (x0, None)
        choice = self.noise_choice if training else None
        normal = choice(x0, draws) if choice else draws.normal(*x0.shape[1:], dtype=x0.dtype)
        epsilon = self.process.noise(normal, draws)
        clock = self.clock_law.draw(draws).to(x0.dtype)
        level = self.process.draw_level(clock, draws)
        truth = Estimate(dct(x0), dct(epsilon))
        gains = self.process.gains(level, truth.clean)
        u = self.process.degrade(truth, gains)
        class_labels = self.class_labels(batch, draws, self.label_dropout if training else 0.0)
        if self.target and training:
            assert self.reference_batch is not None
            assert isinstance(draws, BatchDraws)
            others, allowed = self.reference_batch(batch, draws, class_labels, augment_labels, u)
            truth = self.target(truth, u, others, allowed, self.process, gains)
        x, coefficients = idct(u), self.preconditioning(level, gains, self.parameterization)
        raw = self._raw(x, coefficients, class_labels, augment_labels)
        errors = self.preconditioning.errors(raw, x, coefficients, truth, gains, self.parameterization)
        return self.cost(errors, gains), clock

    def class_labels(self, batch: Batch, draws: Draws, dropout: float) -> Tensor | None:
        """One-hot classes, all zeros for the share `dropout` of the images; None for a network without classes."""
        labels = one_hot(batch.labels, self.network.label_dim)
        if labels is None or dropout == 0:
            return labels
        return labels * (draws.uniform(1) >= dropout)

    # ------------------------------------------------------------------ estimates

    def outputs(
        self,
        x: Tensor,
        level: Level,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """The outputs of all branches for a degraded image: c_skip x + c_out F(c_in x; c_noise, c_blur).

        Args:
            x: degraded pixels [B, C, H, W].
            level: of x, [B] or [1].
            class_labels: one-hot classes [B, label_dim]; zeros mean no class.
            augment_labels: [B, augment_dim]; zeros mean none.

        Returns:
            [B, branches, C, H, W] in the dtype of x, whatever the precision of the network.
        """
        gains = self.process.gains(level, x)
        coefficients = self.preconditioning(level.to(x), gains, self.parameterization)
        return coefficients.outputs(x, self._raw(x, coefficients, class_labels, augment_labels))

    def _raw(
        self, x: Tensor, c: Coefficients, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """The raw outputs F(c_in x; c_noise, c_blur) in the dtype of x, whatever the precision of the network."""
        weights = next(self.network.parameters())
        own = weights.device, weights.dtype
        raw: Tensor = self.network(
            scaled(c.input, x).to(*own),
            (c.noise * (self.network.time_scale if self.preconditioning.time else 1)).expand(len(x)).to(*own),
            c.blur.expand(len(x)).to(*own),
            None if class_labels is None else class_labels.to(*own),
            None if augment_labels is None else augment_labels.to(*own),
        )
        return raw.to(x)

    def estimate(self, u: Tensor, level: Level, class_labels: Tensor | None = None) -> Estimate:
        """Estimates of image and noise from u [B, C, H, W]; `conditioned` makes it the `Estimator` that samplers call.

        With guidance w, every output is (1 - w) of the one without a class, or of the guide's, and w of the model's own
        (Ho and Salimans 2022, Eq. 6, with their w + 1 as w), at the cost of two network calls.
        """
        x, gains = idct(u), self.process.gains(level, u)
        coefficients = self.preconditioning(level.to(x), gains, self.parameterization)
        outputs = coefficients.outputs(x, self._raw(x, coefficients, class_labels))
        guided = self.guided(level)
        if guided.any() and (self.guide or class_labels is not None):
            reference = self.guide.model(self) if self.guide else self
            weaker = reference.outputs(x, level, class_labels if self.guide else None)
            weight = torch.where(guided.to(outputs.device), outputs.new_tensor(self.guidance), 1.0).view(-1, 1, 1, 1, 1)
            outputs = torch.lerp(weaker, outputs, weight)
        return self.parameterization.estimate(outputs, u, gains)

    def guided(self, level: Level) -> Tensor:
        """Whether there is guidance at each level, bool [B]."""
        guided = torch.full_like(level.beta, self.guidance != 1, dtype=torch.bool)
        if self.guidance_interval is None:
            return guided
        low, high = self.guidance_interval
        return guided & (level.beta > low) & (level.beta <= high)

    @contextmanager
    def conditioned(self, classes: Sequence[int] | None) -> Iterator[Estimator]:
        """The `Estimator` for images of some classes, one per image, with the network in evaluation mode.

        Raises:
            UserError: for a class that the network does not have.
        """
        label_dim = self.network.label_dim
        wrong = [k for k in classes or () if label_dim and not 0 <= k < label_dim]
        check(not wrong, f"class {wrong[:1]} is not one of the model's, which are 0 to {label_dim - 1}")
        labels = None if classes is None else one_hot(torch.tensor(classes), label_dim)
        training = self.network.training
        self.network.eval()  # in training mode it has dropout, which is no function of the seed
        try:
            yield partial(self.estimate, class_labels=labels)
        finally:
            self.network.train(training)

    # ------------------------------------------------------------------ sampling

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
            sampler: how to sample; the model's own is `self.sampler`.
            seeds: one per image.
            classes: one per image, for a class-conditional model; each seed draws its own where not given.
            watch: see `Sampler`.

        Returns:
            Pixels [B, C, H, W], about [-1, 1], float64 on the CPU.

        Raises:
            UserError: for classes, levels or steps that the model does not know.
        """
        sampler = sampler if sampler is self.sampler else self.fitted(sampler)
        check_grid(self.process, self.parameterization, sampler.grid)
        check(
            self.guidance == 1 or bool(self.guided(self.process.level(sampler.grid.clocks())).any()),
            f"guidance_interval {self.guidance_interval} has none of the sampler's noise levels: give another interval",
        )
        streams, start, drawn = self.start(seeds)
        with self.conditioned(drawn if classes is None else classes) as estimator:
            return idct(sampler(estimator, self.process, start, streams, watch)).cpu()

    def start(self, seeds: Sequence[int]) -> tuple[SeedStreams, Tensor, list[int] | None]:
        """The first draws of some seeds: initial noise and class, in the order that `SeedStreams` fixes.

        The class is drawn even if the caller chooses another one, so that later draws do not depend on that.

        Returns:
            The streams for further draws, standard normal pixels float64 [B, C, H, W], and the classes, None for a
            network without classes.
        """
        streams = SeedStreams(seeds, self.state_device)
        noise = streams.normal(*self.image_shape, dtype=torch.float64)
        label_dim = self.network.label_dim
        return streams, noise, streams.integers(label_dim).tolist() if label_dim else None

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
            start: the level of the images; see `restoration.find_start`.
            y: degraded pixels, [B, C, H, W].
            seeds: one per image.
            classes: one per image, for a class-conditional model; none where not given.
            mean: whether to return the estimate of one network call instead of a sample.

        Returns:
            As `sample` does.
        """
        check(
            not mean or self.parameterization.max_stride == math.inf,
            f"{type(self.parameterization).__name__} estimates the image one step ahead, which gives no mean of clean "
            "images: sample instead (leave mean out)",
        )
        y = y.to(self.state_device, torch.float64)
        sampler = sampler.within(*start.process.known_clocks)
        with self.replaced(process=start.process).conditioned(classes) as estimator:
            return restore(estimator, sampler, start, y, SeedStreams(seeds, self.state_device), mean).cpu()


@dataclass(frozen=True)
class TrainedModel:
    """A model with the averaged and the last weights of its training, and the record of where they come from.

    Attributes:
        networks: the network with each set of weights, "ema" and "raw"; an exported model has one of them.
        template: the model around the networks.
        config: plain data that makes the model again; None where it is not known.
        images_seen: number of images that it was trained on.
        source: the origin of weights that were not trained by this package; plain data.
    """

    networks: Mapping[Weights, Network]
    template: DiffusionModel
    config: dict[str, Any] | None
    images_seen: int
    source: dict[str, Any] | None

    def model(self, weights: Weights = "ema") -> DiffusionModel:
        """The diffusion model with the averaged weights ("ema") or with the last ones ("raw").

        Raises:
            UserError: the model was exported with the other ones only.
        """
        held = ", ".join(self.networks)
        check(weights in self.networks, f"the model was exported with its {held} weights only: ask for weights {held}")
        return self.template.replaced(network=self.networks[weights])

    def record(self, weights: Weights) -> dict[str, Any]:
        """The facts about the model that every measurement of it records; plain data."""
        config = self.config or {}
        return {
            "weights": weights,
            "weights_sha256": self.model(weights).weights_hash(),
            "images_seen": self.images_seen,
            "process": config.get("process"),
            "parameterization": config.get("parameterization"),
            "sampler": config.get("sampler"),
        }

    @property
    def sampler(self) -> Sampler:
        """The sampler of its configuration."""
        return self.template.sampler


# ---------------------------------------------------------------------- checks


class _Images(Protocol):
    """The properties of a data set that a network must match."""

    @property
    def resolution(self) -> int: ...
    @property
    def image_channels(self) -> int: ...
    @property
    def num_classes(self) -> int: ...


def check_data(network: Network, data: _Images) -> None:
    """Check that the network takes the data's images and classes.

    Raises:
        UserError: it does not.
    """
    for name in ("resolution", "image_channels"):
        expected, actual = getattr(network, name), getattr(data, name)
        check(expected == actual, f"model.network.{name} is {expected}, but the images have {actual}: set it to that")
    classes, labels = data.num_classes, network.label_dim
    check(
        labels in (0, classes),
        f"model.network.label_dim is {labels}, but the data has {classes} classes: set it to that, or to 0",
    )


def check_labels(network: Network, augment_dim: int, label_dropout: float, guidance: float) -> None:
    """Check that the network takes the labels that it is to be given.

    Raises:
        UserError: it does not.
    """
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
    """Check that sampling and training reach the largest clock reading, and that no step is longer than `max_stride`.

    Raises:
        UserError: they do not.
    """
    clocks = grid.outline()
    first, stride = clocks[0].item(), (clocks[:-1] - clocks[1:]).max().item()
    trained = law.quantile(torch.tensor(1.0, dtype=torch.float64)).item() if law else process.max_clock
    for name, end in {"model.sampler.grid": first, "model.clock_law": trained}.items():
        check(
            process.max_clock == math.inf or abs(end - process.max_clock) <= 0.002 * process.max_clock,
            f"{name} goes up to {end:g} on the clock of model.process, which goes up to {process.max_clock:g}: make "
            "them agree",
        )
    check(
        stride <= 1.1 * parameterization.max_stride,
        f"{type(parameterization).__name__} estimates the image {parameterization.max_stride:g} step ahead, but the "
        f"sampler's grid has steps of {stride:.3g}: set the grid's steps to {process.max_clock:g}, the whole chain",
    )
