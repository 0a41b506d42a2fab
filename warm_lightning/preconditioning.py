"""Scalings around the network and the scalars it is conditioned on, as functions of the level."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.types import Level

NO_NOISE = 1e-5
"""Stands for β = 0 in c_noise, where ln β is infinite; far below all noise levels in use."""


@dataclass(frozen=True)
class Coefficients:
    """What a preconditioning puts around the network F; all in the dtype of the level.

    A denoised image is `skip · x + out · F(input · x, noise, blur)`.

    Attributes:
        skip: c_skip; [B, 1, 1, 1].
        out: c_out; [B, 1, 1, 1].
        input: c_in; [B, 1, 1, 1].
        noise: c_noise, what tells the network the noise level; [B].
        blur: c_blur ≥ 0, what tells the network the blur level, 0 for no blur; [B].
    """

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor
    blur: Tensor


class Preconditioning(ABC):
    """Level → coefficients.

    Attributes:
        time: whether c_noise is a time from 0 to 1,000, which networks whose embedding has another range scale.
    """

    time: bool = False

    @abstractmethod
    def __call__(self, level: Level) -> Coefficients:
        """Coefficients for each image; the caller casts them to the network's dtype."""


class EDMPreconditioning(Preconditioning):
    """EDM's preconditioning (Karras et al. 2022, Table 1), with the blur level as a second signal.

    The loss weight λ(β) = (β² + σ_d²)/(β·σ_d)² that makes all levels count alike is c_out⁻².
    The blur signal is ln(1 + α/β), and ln(1 + α) where β = 0; it is ours (the paper prints none).

    Args:
        sigma_data: σ_d, the standard deviation of the data's pixels in [-1, 1].
    """

    def __init__(self, sigma_data: float = 0.5) -> None:
        check(sigma_data > 0, f"sigma_data must be positive, not {sigma_data}")
        self.sigma_data = sigma_data

    def __call__(self, level: Level) -> Coefficients:
        alpha, beta = torch.broadcast_tensors(level.alpha, level.beta)
        variance = (beta**2 + self.sigma_data**2)[:, None, None, None]
        noiseless = beta == 0
        return Coefficients(
            skip=self.sigma_data**2 / variance,
            out=beta[:, None, None, None] * self.sigma_data / variance.sqrt(),
            input=variance.rsqrt(),
            noise=beta.masked_fill(noiseless, NO_NOISE).log() / 4,
            blur=torch.log1p(alpha / beta.masked_fill(noiseless, 1)),
        )


class Unscaled(Preconditioning):
    """No scaling: the network sees the degraded image as it is, and its output is what it says (DDPM and its kin).

    It is told the clock, and of blur nothing more, a process's clock saying it all.

    Args:
        conditioning: c_noise for a unit of the clock; it is to go from 0 to 1,000 or so.
        residual: whether the network says what is to be added to the image that it sees, where the parameterization
            allows it.
    """

    time = True

    def __init__(self, conditioning: float = 1.0, residual: bool = False) -> None:
        check(conditioning > 0, f"conditioning is {conditioning}: it must be positive")
        self.conditioning = conditioning
        self.residual = residual

    def __call__(self, level: Level) -> Coefficients:
        one = torch.ones_like(level.clock)[:, None, None, None]
        return Coefficients(
            skip=one * float(self.residual),
            out=one,
            input=one,
            noise=self.conditioning * level.clock,
            blur=torch.zeros_like(level.clock),
        )
