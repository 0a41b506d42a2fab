"""Exponential moving averages of weights with their memory in images, and other averages rebuilt after training.

Libraries for post-hoc EMA (ema-pytorch and its forks) count optimizer steps, copy whole modules and keep their own
files on every process: none is a function of the images seen alone, nor resumes to the bit.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from warm_lightning.errors import UserError, check
from warm_lightning.records import write_file


class Average(ABC):
    """A moving average of weights; a subclass defines the share of it that remains after a step."""

    @abstractmethod
    def decay(self, images_seen: int, batch_size: int) -> float:
        """The share of the old average that remains after a step of `batch_size` images, the last of `images_seen`."""

    @torch.no_grad()
    def update(self, average: nn.Module, network: nn.Module, images_seen: int, batch_size: int) -> None:
        """Move the weights of `average` towards those of `network`, in place."""
        weight = 1 - self.decay(images_seen, batch_size)
        averages: list[Tensor] = list(average.parameters())
        weights: list[Tensor] = list(network.parameters())
        if averages[0].device.type == "cpu":  # where a loop is faster than a grouped call, with the same bits
            for old, new in zip(averages, weights, strict=True):
                old.lerp_(new, weight)
        else:
            torch._foreach_lerp_(averages, weights, weight)


class EMA(Average):
    """EMA by half-life with ramp-up (EDM, Appendix F.2).

    Args:
        half_life: images after which a weight's share of the average has halved, > 0.
        ramp: the half-life is at most this share of the images seen so far, so that the average forgets the
            initialisation quickly; 0.05 is EDM's. None never shortens it.
    """

    def __init__(self, half_life: float, ramp: float | None = 0.05) -> None:
        check(half_life > 0, f"ema_half_life is {half_life}: it is a number of images and must be positive")
        check(ramp is None or ramp > 0, f"ema_ramp is {ramp}: it must be positive, or null for none")
        self.half_life = half_life
        self.ramp = ramp

    def decay(self, images_seen: int, batch_size: int) -> float:
        half_life = self.half_life if self.ramp is None else min(self.half_life, self.ramp * images_seen)
        return 0.5 ** (batch_size / half_life)


class PowerEMA(Average):
    """EMA whose memory grows with training (Karras et al. 2024, "Analyzing and improving the training dynamics of
    diffusion models", Section 3.1): after T images, weights of image τ ≤ T have density p(τ) ∝ τ^γ.

    Args:
        sigma_rel: standard deviation of that density relative to T, in (0, 12^-½]; 0.05 and 0.1 are the paper's.
    """

    LARGEST = 12**-0.5  # all images alike, γ = 0

    def __init__(self, sigma_rel: float) -> None:
        check(
            0 < sigma_rel <= self.LARGEST,
            f"sigma_rel is {sigma_rel}: the relative width of an average is above 0 and at most {self.LARGEST:.4f}",
        )
        self.sigma_rel = sigma_rel
        # σ_rel² = (γ + 1) / ((γ + 2)² (γ + 3)), a cubic in γ + 1 whose largest root is the peaked density.
        roots = np.roots([1, 4, 5 - sigma_rel**-2, 2])
        self.gamma = float(max(roots.real)) - 1

    def decay(self, images_seen: int, batch_size: int) -> float:
        """The remaining share, 1 minus the integral of p over the images of the step: exact at any batch size."""
        return (1 - batch_size / images_seen) ** (self.gamma + 1)


@dataclass(frozen=True)
class Profile:
    """The density p(τ) = (γ + 1) τ^γ / T^(γ + 1) of images τ ≤ T in a `PowerEMA` after T images."""

    gamma: float
    images: float

    def dot(self, other: "Profile") -> float:
        """The inner product ∫ p q dτ of two densities."""
        common = min(self.images, other.images)
        power = (common / self.images) ** self.gamma * (common / other.images) ** other.gamma
        scale = (self.gamma + 1) * (other.gamma + 1) / (self.gamma + other.gamma + 1)
        return scale * power * common / (self.images * other.images)


def combination(stored: Sequence[Profile], wanted: Profile) -> tuple[list[float], float]:
    """The weights of stored averages whose sum is nearest to the wanted profile, by least squares.

    See Karras et al. 2024, Section 3.2. The weights sum to 1, which that paper does not ask, so that a network that
    never changes is not changed.

    Returns:
        The weights, and the distance ‖p - wanted‖/‖wanted‖ that remains.
    """
    unit = Profile(wanted.gamma, 1.0)
    scaled = [Profile(p.gamma, p.images / wanted.images) for p in stored]
    gram = np.array([[a.dot(b) for b in scaled] for a in scaled])
    products = np.array([a.dot(unit) for a in scaled])
    n = len(stored)
    system = np.ones((n + 1, n + 1))  # with a Lagrange multiplier for the sum
    system[:n, :n], system[n, n] = gram, 0
    weights = np.linalg.lstsq(system, np.append(products, 1.0), rcond=1e-14)[0][:n]
    residual = weights @ gram @ weights - 2 * weights @ products + unit.dot(unit)
    return weights.tolist(), float(max(residual, 0) / unit.dot(unit)) ** 0.5


# ---------------------------------------------------------------------- snapshots

SNAPSHOTS = "posthoc"
"""The folder of a run's snapshots for post-hoc EMA."""
SUFFIX = ".safetensors"
METADATA = "average"
"""The entry of a snapshot's metadata with its width and time, as JSON."""


@dataclass(frozen=True)
class Snapshot:
    """A `PowerEMA` of a training, stored as a file of float32 tensors.

    Attributes:
        path: the file.
        sigma_rel: relative width of the average.
        images_seen: number of images after which it was stored.
    """

    path: Path
    sigma_rel: float
    images_seen: int

    @property
    def profile(self) -> Profile:
        """The density of the average over images."""
        return Profile(PowerEMA(self.sigma_rel).gamma, self.images_seen)

    @classmethod
    def write(cls, folder: Path, average: nn.Module, sigma_rel: float, images_seen: int) -> None:
        """Store an average in a folder of snapshots."""
        tensors = {name: p.float().contiguous().cpu() for name, p in sorted(average.named_parameters())}
        # One entry, since safetensors writes several in random order.
        metadata = {METADATA: json.dumps({"sigma_rel": sigma_rel, "images_seen": images_seen})}
        write_file(folder / f"images-{images_seen:09d}-sigma-{sigma_rel}{SUFFIX}", save(tensors, metadata))

    @classmethod
    def read(cls, path: Path) -> "Snapshot":
        """Open a stored snapshot.

        Raises:
            UserError: it is damaged.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads(file.metadata()[METADATA])
            return cls(path, float(about["sigma_rel"]), int(about["images_seen"]))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: damaged or not a snapshot of post-hoc EMA; remove it") from error

    @classmethod
    def all_in(cls, folder: Path) -> list["Snapshot"]:
        """The snapshots in a folder by name; raises as `read` does."""
        return [cls.read(path) for path in sorted(folder.glob(f"images-*{SUFFIX}"))]
