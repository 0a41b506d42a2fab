"""The scaling of the network's input and outputs, and its conditioning scalars, as functions of the level."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.types import Level

NO_NOISE = 1e-5
"""The value that replaces β = 0 in c_noise, where ln β would be infinite; far below all noise levels in use."""


@dataclass(frozen=True)
class Coefficients:
    """The coefficients around a network F, in the dtype of the level.

    The output of a branch is `out · F(input · x, noise, blur)`, plus `skip · x` where its target contains the signal of
    the input (`Parameterization.skips`).

    Attributes:
        skip: c_skip; [B, 1, 1, 1].
        out: c_out; [B, 1, 1, 1].
        input: c_in; [B, 1, 1, 1].
        noise: c_noise, the network's conditioning on the noise level; [B].
        blur: c_blur ≥ 0, its conditioning on the blur level, 0 for no blur; [B].
    """

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor
    blur: Tensor


class Preconditioning(ABC):
    """A map from levels to coefficients.

    Attributes:
        time: whether c_noise is a time from 0 to 1,000 as in DDPM, which is then multiplied by `Network.time_scale`.
    """

    time: bool = False

    @abstractmethod
    def __call__(self, level: Level) -> Coefficients:
        """The coefficients for each image; the caller casts them to the network's dtype."""


class EDMPreconditioning(Preconditioning):
    """EDM's preconditioning (Karras et al. 2022, Table 1), with the blur level as a second signal.

    The loss weight λ(β) = (β² + σ_d²)/(β·σ_d)² is c_out⁻².
    The blur signal is ln(1 + α/β), and ln(1 + α) where β = 0; it is our choice (the paper prints none).

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
    """No scaling: the network sees the degraded image and its raw output is used, as in DDPM.

    The network is conditioned on the clock, which also determines the blur.

    Args:
        conditioning: c_noise per unit of the clock, such that c_noise goes from 0 to about 1,000.
        residual: whether the degraded image is added to the output (c_skip = 1), in branches that use a skip.
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
