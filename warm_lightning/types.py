"""The vocabulary that processes, parameterizations, samplers and oracles share.

Everything is diagonal in frequency: with `u = Vᵀx` the orthonormal DCT-II of an image,

    u_t = A_t ∘ u_0 + B_t ∘ z,      z ~ N(0, I).      (F)

`Level` is a point of the blur-noise plane, `Gains` are A_t and B_t at a level, and an `Estimate` is a guess of
u_0 and z, made by a network or an oracle.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Weights = Literal["ema", "raw"]
"""The averaged weights, or the last weights of training."""
Split = Literal["train", "held_out"]
"""The images that a model is trained on, or those set aside."""


@dataclass(frozen=True)
class Level:
    """The level of each image of a batch: its blur, its noise, and the reading of the process's clock.

    Sampling goes from the first level, of the largest clock reading, to the last level, at clock 0. Most formulas need
    noise, and stop at "the last level above 0".

    Attributes:
        alpha: blur level α ≥ 0, the standard deviation of the Gaussian blur in pixels; [B] or [1].
        beta: noise level β ≥ 0, the standard deviation of the noise relative to an image in [-1, 1]; for a process that
            scales image and noise by a factor (`Process.scale`), the value before scaling; [B] or [1].
        clock: the process's own measure of progress, 0 at the last level; [B] or [1].
    """

    alpha: Tensor
    beta: Tensor
    clock: Tensor

    def to(self, like: Tensor) -> "Level":
        """This level in the dtype and on the device of another tensor."""
        return Level(self.alpha.to(like), self.beta.to(like), self.clock.to(like))


@dataclass(frozen=True)
class Gains:
    """Signal gain A and noise gain B of formula F at a level, over frequencies.

    A is stored as its logarithm: at much blur, towards the level where sampling starts, A underflows, and the ratio
    A_t/A_s of two gains must still be finite.

    Attributes:
        log_signal: ln A ≤ 0; broadcastable to [B, C, H, W].
        noise: B ≥ 0; broadcastable to [B, C, H, W].
        next_gains: the gains one step nearer to the data, for a process in discrete steps; otherwise None.
    """

    log_signal: Tensor
    noise: Tensor
    next_gains: "Gains | None" = None

    @property
    def signal(self) -> Tensor:
        """The signal gain A."""
        return self.log_signal.exp()

    @property
    def lost(self) -> Tensor:
        """1 - A, the share of the signal that the blur removes, without the cancellation of digits for a small blur."""
        return -torch.expm1(self.log_signal)

    @property
    def noise_scale(self) -> Tensor:
        """The root mean square of B over channels and frequencies, [B, 1, 1, 1]; for white noise B itself."""
        return self.noise.square().mean(dim=(-3, -2, -1), keepdim=True).sqrt()

    @property
    def colour(self) -> Tensor:
        """The colour b = B/noise_scale of the noise, 1 for white noise and where there is none."""
        scale = self.noise_scale
        return torch.where(scale > 0, self.noise / torch.where(scale > 0, scale, 1.0), 1.0)

    def over_noise(self, numerator: Tensor) -> Tensor:
        """The quotient numerator/B; 0 where B = 0, since no step uses it there."""
        noiseless = self.noise == 0
        return torch.where(noiseless, 0.0, numerator / torch.where(noiseless, 1.0, self.noise))


@dataclass(frozen=True)
class Estimate:
    """An estimate of image and noise, x̂0 (`clean`) and ε̂ (`noise`), as DCT coefficients [B, C, H, W].

    The two may come from separate branches of a network and then need not agree:
    A∘clean + B∘noise is in general not the u that they were estimated from.
    """

    clean: Tensor
    noise: Tensor

    def mean(self, other: "Estimate") -> "Estimate":
        """The average of two estimates."""
        return Estimate((self.clean + other.clean) / 2, (self.noise + other.noise) / 2)


Estimator = Callable[[Tensor, Level], Estimate]
"""The function that samplers call, a network or an oracle: (DCT coefficients u [B, C, H, W], level) → estimate."""


class Batch(NamedTuple):
    """A batch of images as the data loader gives it to the training step.

    Attributes:
        images: uint8 [b, C, H, W].
        labels: class indices, int64 [b]; zeros where the data has no classes.
        positions: the position of each image in the training stream, int64 [b]. Image k of step n has position
            n·B + k for a global batch of B, on any device.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
