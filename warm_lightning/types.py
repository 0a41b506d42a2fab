"""The vocabulary that processes, parameterizations, samplers and oracles share.

Everything is diagonal in frequency: with `u = Vᵀx` the orthonormal DCT-II of an image,

    u_t = A_t ∘ u_0 + B_t ∘ z,      z ~ N(0, I).      (F)

`Level` says where on the blur-noise plane an image is, `Gains` what A_t and B_t are there, and
`Estimate` what somebody (a network, an oracle) believes about u_0 and z.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Level:
    """Where each image of a batch is: on the blur-noise plane, and on its process's clock.

    Attributes:
        alpha: blur level α ≥ 0, the standard deviation of the Gaussian blur in pixels; [B] or [1].
        beta: noise level β ≥ 0, the standard deviation of the noise where the image, apart from its blur, is in
            [-1, 1]; [B] or [1].
        clock: the process's own measure of progress, 0 at the last level; [B] or [1].
    """

    alpha: Tensor
    beta: Tensor
    clock: Tensor

    def to(self, like: Tensor) -> "Level":
        """The same in the dtype and on the device of another tensor."""
        return Level(self.alpha.to(like), self.beta.to(like), self.clock.to(like))


@dataclass(frozen=True)
class Gains:
    """Signal gain A and noise gain B of formula F at a level, over frequencies.

    A is carried as its logarithm: a blur mask underflows long before the last level, and the ratio
    A_t/A_s of two gains must then still be finite.

    Attributes:
        log_signal: ln A ≤ 0; broadcastable to [B, C, H, W].
        noise: B ≥ 0; broadcastable to [B, C, H, W].
        ahead: the gains one step nearer to the data, of a process that goes there in steps of its own.
    """

    log_signal: Tensor
    noise: Tensor
    ahead: "Gains | None" = None

    @property
    def signal(self) -> Tensor:
        """A."""
        return self.log_signal.exp()

    @property
    def lost(self) -> Tensor:
        """1 - A, without the cancellation that would make it 0 for a small blur."""
        return -torch.expm1(self.log_signal)


@dataclass(frozen=True)
class Estimate:
    """A belief about what formula F mixed: `clean` is x̂0 and `noise` is ε̂, as DCT coefficients [B, C, H, W].

    The two may come from separate branches of a network and then need not agree:
    A∘clean + B∘noise is in general not the u they were made from.
    """

    clean: Tensor
    noise: Tensor

    def mean(self, other: "Estimate") -> "Estimate":
        """The average of two beliefs."""
        return Estimate((self.clean + other.clean) / 2, (self.noise + other.noise) / 2)


Estimator = Callable[[Tensor, Level], Estimate]
"""What a sampler asks: (u [B, C, H, W] as DCT coefficients, its level) → estimate. A network or an oracle."""


class Batch(NamedTuple):
    """What a data loader hands to the training step.

    Attributes:
        images: uint8 [b, C, H, W].
        labels: class indices, int64 [b]; zeros where the data has no classes.
        positions: where each image stands in the training stream, int64 [b]: image k of optimizer step n
            of a global batch of B images has position n·B + k, on whatever device it lands.
    """

    images: Tensor
    labels: Tensor
    positions: Tensor
