"""What the outputs of a network mean (Table 5): truth → targets, and outputs → estimate.

Outputs are what the network says after preconditioning, in pixels, a branch each.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from warm_lightning.spectral import dct, idct
from warm_lightning.types import Estimate, Gains


class Parameterization(ABC):
    """The meaning of a network's branches.

    Attributes:
        names: a name for each branch, under which its loss is logged.
        skips: for each branch, 1 where its target contains the signal of the input, so that c_skip applies,
            and 0 where it does not.
    """

    names: tuple[str, ...]
    skips: tuple[float, ...]

    @abstractmethod
    def targets(self, u0: Tensor, gains: Gains) -> Tensor:
        """What the branches should say of clean coefficients [B, C, H, W]: pixels [B, branches, C, H, W]."""

    @abstractmethod
    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        """What branches [B, branches, C, H, W] that saw u [B, C, H, W] believe; in the dtype of u."""


def implied_noise(blurred: Tensor, u: Tensor, gains: Gains) -> Tensor:
    """ε̂ = (u - blurred)/B (Algorithm 2, line 5); 0 where there is no noise, which then moves nothing."""
    silent = gains.noise == 0
    return torch.where(silent, 0.0, (u - blurred) / torch.where(silent, 1.0, gains.noise))


class Denoiser(Parameterization):
    """One branch, D → x0 (EDM; with blur in the process, Table 5a)."""

    names = ("denoise",)
    skips = (1.0,)

    def targets(self, u0: Tensor, gains: Gains) -> Tensor:
        return idct(u0).unsqueeze(1)

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        clean = dct(outputs[:, 0].to(u.dtype))
        return Estimate(clean, implied_noise(gains.signal * clean, u, gains))


class DenoiseDeblur(Parameterization):
    """Two branches, D → M x0 and R → (1-M) x0 = x_res (Eqs. 8 and 9; Table 5d): the paper's choice."""

    names = ("denoise", "deblur")
    skips = (1.0, 0.0)

    def targets(self, u0: Tensor, gains: Gains) -> Tensor:
        return idct(torch.stack([gains.signal * u0, gains.lost * u0], dim=1))

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        blurred, residual = dct(outputs.to(u.dtype)).unbind(1)
        # Where blur takes nothing (DC, and everywhere on the hot axis) R has nothing to say of x0, and D has it all.
        untouched = gains.lost == 0
        clean = torch.where(untouched, blurred, residual / torch.where(untouched, 1.0, gains.lost))
        return Estimate(clean, implied_noise(blurred, u, gains))
