"""The meaning of a network's outputs (Table 5 and others): from the truth to targets, from outputs to an estimate.

Outputs are in pixels and preconditioned, one image for each branch.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.spectral import dct, idct
from warm_lightning.types import Estimate, Gains


class Parameterization(ABC):
    """The meaning of a network's branches.

    Attributes:
        names: a name for each branch, under which its loss is logged.
        skips: for each branch, 1 where its target contains the signal of the input, so that c_skip applies,
            and 0 where it does not.
        max_stride: the longest step of the clock for which the estimate is valid; a longer one amplifies errors.
            1 for an estimate of the next image only, infinite for one of x0 itself.
    """

    names: tuple[str, ...]
    skips: tuple[float, ...]
    max_stride: float = math.inf

    @abstractmethod
    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        """The correct outputs of the branches for a given image and noise, pixels [B, branches, C, H, W]."""

    @abstractmethod
    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        """The estimate that follows from outputs [B, branches, C, H, W] for u [B, C, H, W], in the dtype of u."""


def implied_noise(blurred: Tensor, u: Tensor, gains: Gains) -> Tensor:
    """The noise ε̂ = (u - blurred)/B (Algorithm 2, line 5); 0 where B = 0, since no step uses it there."""
    return gains.over_noise(u - blurred)


def consistent(clean: Tensor, u: Tensor, gains: Gains) -> Estimate:
    """The estimate with a given x̂0 whose two parts agree: A∘clean + B∘noise = u."""
    return Estimate(clean, implied_noise(gains.signal * clean, u, gains))


def denoised_image(u: Tensor, estimate: Estimate, gains: Gains) -> Tensor:
    """The estimated clean image x̂0 = u - B∘noise + (1-A)∘clean as DCT coefficients: D + R for Table 5d."""
    return u - gains.noise * estimate.noise + gains.lost * estimate.clean


def undo(blurred: Tensor, log_gain: Tensor) -> Tensor:
    """The image blurred/exp(log_gain); 0 where the gain is so small that the quotient would be rounding error.

    Below the square root of the smallest number, the gain has erased the frequency; samplers multiply the estimate
    by the gain again, so that its value there does not matter.
    """
    gone = log_gain < math.log(torch.finfo(log_gain.dtype).tiny) / 2
    return torch.where(gone, 0.0, blurred * torch.where(gone, 0.0, -log_gain).exp())


class Denoiser(Parameterization):
    """One branch → x0, the clean image: EDM's D; with blur R of Table 5a; also Soft Diffusion and Cold Diffusion."""

    names = ("denoise",)
    skips = (1.0,)

    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        return idct(truth.clean).unsqueeze(1)

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        clean = dct(outputs[:, 0].to(u.dtype))
        return consistent(clean, u, gains)


class InvertedBlur(Parameterization):
    """One branch D → M x0, the blurred image, which is divided by the blur to give x0 (Table 5b).

    The paper does not say how M is inverted; 1/M is infinite on the first steps. Here M̃ = (1-d_min)·M + d_min is
    inverted.

    Args:
        d_min: the inversion amplifies by at most 1/d_min; 0 for no limit.
    """

    names = ("denoise",)
    skips = (1.0,)

    def __init__(self, d_min: float = 0.001) -> None:
        check(0 <= d_min < 1, f"d_min is {d_min}: it must be 0 or more, and less than 1")
        self.d_min = d_min

    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        return idct(gains.signal * truth.clean).unsqueeze(1)

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        blurred = dct(outputs[:, 0].to(u.dtype))
        clean = blurred / (1 - (1 - self.d_min) * gains.lost) if self.d_min else undo(blurred, gains.log_signal)
        return Estimate(clean, implied_noise(blurred, u, gains))


class DenoiseRestore(Parameterization):
    """Two branches, D → M x0, the blurred image, and R → x0, the clean one (Table 5c)."""

    names = ("denoise", "restore")
    skips = (1.0, 1.0)

    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        return idct(torch.stack([gains.signal * truth.clean, truth.clean], dim=1))

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        blurred, clean = dct(outputs.to(u.dtype)).unbind(1)
        return Estimate(clean, implied_noise(blurred, u, gains))


class DenoiseDeblur(Parameterization):
    """Two branches, D → M x0, the blurred image, and R → x_res = (1-M) x0, the residual (Eqs. 8, 9; Table 5d).

    This is the paper's choice.
    """

    names = ("denoise", "deblur")
    skips = (1.0, 0.0)

    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        return idct(torch.stack([gains.signal * truth.clean, gains.lost * truth.clean], dim=1))

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        blurred, residual = dct(outputs.to(u.dtype)).unbind(1)
        # Without blur (at DC, and everywhere on the hot axis) the residual is 0 and D is the clean image.
        sharp = gains.lost == 0
        clean = torch.where(sharp, blurred, residual / torch.where(sharp, 1.0, gains.lost))
        return Estimate(clean, implied_noise(blurred, u, gains))


class Epsilon(Parameterization):
    """One branch, the noise ε, in pixels (Ho et al. 2020, Eq. 12; Hoogeboom & Salimans 2022, Eq. 21)."""

    names = ("noise",)
    skips = (0.0,)

    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        return idct(truth.noise).unsqueeze(1)

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        noise = dct(outputs[:, 0].to(u.dtype))
        return Estimate(undo(u - gains.noise * noise, gains.log_signal), noise)


class LessBlurred(Parameterization):
    """One branch, the image one step less blurred, A_{k-1} x0 (heat dissipation; Rissanen et al. 2023, Eq. 9)."""

    names = ("deblur",)
    skips = (1.0,)
    max_stride = 1.0

    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        return idct(self._next(gains).signal * truth.clean).unsqueeze(1)

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        clean = undo(dct(outputs[:, 0].to(u.dtype)), self._next(gains).log_signal)
        return consistent(clean, u, gains)

    def _next(self, gains: Gains) -> Gains:
        check(
            gains.next_gains is not None,
            "model.parameterization LessBlurred needs a process in discrete steps, such as IHDM: choose another one",
        )
        assert gains.next_gains is not None
        return gains.next_gains
