"""What the outputs of a network mean (Table 5 and others): truth → targets, and outputs → estimate.

Outputs are what the network says after preconditioning, in pixels, a branch each.
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
        max_stride: the longest step on the process's clock that its estimate serves; a longer one amplifies errors.
    """

    names: tuple[str, ...]
    skips: tuple[float, ...]
    max_stride: float = math.inf

    @abstractmethod
    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        """What the branches should say of what is true: pixels [B, branches, C, H, W]."""

    @abstractmethod
    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        """What branches [B, branches, C, H, W] that saw u [B, C, H, W] believe; in the dtype of u."""


def implied_noise(blurred: Tensor, u: Tensor, gains: Gains) -> Tensor:
    """ε̂ = (u - blurred)/B (Algorithm 2, line 5); 0 where there is no noise, which then moves nothing."""
    silent = gains.noise == 0
    return torch.where(silent, 0.0, (u - blurred) / torch.where(silent, 1.0, gains.noise))


def undo(blurred: Tensor, log_gain: Tensor) -> Tensor:
    """blurred/exp(log_gain); 0, the mean of all images, where the gain is so small that this means nothing.

    A gain below the square root of the smallest number leaves nothing to see, and what is believed of such a
    frequency is multiplied with it again.
    """
    gone = log_gain < math.log(torch.finfo(log_gain.dtype).tiny) / 2
    return torch.where(gone, 0.0, blurred * torch.where(gone, 0.0, -log_gain).exp())


class Denoiser(Parameterization):
    """One branch, D → x0 (EDM; with blur in the process, Table 5a; Soft Diffusion; Cold Diffusion)."""

    names = ("denoise",)
    skips = (1.0,)

    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        return idct(truth.clean).unsqueeze(1)

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        clean = dct(outputs[:, 0].to(u.dtype))
        return Estimate(clean, implied_noise(gains.signal * clean, u, gains))


class InvertedBlur(Parameterization):
    """One branch, D → M x0, and x0 is what must have been blurred (Table 5b).

    The paper is silent on how M is inverted, which is infinite on the first steps; here M̃ = (1-d_min)·M + d_min is.

    Args:
        d_min: limits what the inversion amplifies to 1/d_min; 0 for no limit.
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
    """Two branches, D → M x0 and R → x0 (Table 5c)."""

    names = ("denoise", "restore")
    skips = (1.0, 1.0)

    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        return idct(torch.stack([gains.signal * truth.clean, truth.clean], dim=1))

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        blurred, clean = dct(outputs.to(u.dtype)).unbind(1)
        return Estimate(clean, implied_noise(blurred, u, gains))


class DenoiseDeblur(Parameterization):
    """Two branches, D → M x0 and R → (1-M) x0 = x_res (Eqs. 8 and 9; Table 5d): the paper's choice."""

    names = ("denoise", "deblur")
    skips = (1.0, 0.0)

    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        return idct(torch.stack([gains.signal * truth.clean, gains.lost * truth.clean], dim=1))

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        blurred, residual = dct(outputs.to(u.dtype)).unbind(1)
        # Where blur takes nothing (DC, and everywhere on the hot axis) R has nothing to say of x0, and D has it all.
        untouched = gains.lost == 0
        clean = torch.where(untouched, blurred, residual / torch.where(untouched, 1.0, gains.lost))
        return Estimate(clean, implied_noise(blurred, u, gains))


class Epsilon(Parameterization):
    """One branch, the noise ε in pixel space (Ho et al. 2020, Eq. 12; Hoogeboom & Salimans 2022, Eq. 21)."""

    names = ("noise",)
    skips = (0.0,)

    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        return idct(truth.noise).unsqueeze(1)

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        noise = dct(outputs[:, 0].to(u.dtype))
        return Estimate(undo(u - gains.noise * noise, gains.log_signal), noise)


class LessBlurred(Parameterization):
    """One branch, the image a step less blurred, A_{k-1} x0 (inverse heat dissipation; Rissanen et al. 2023, Eq. 9)."""

    names = ("deblur",)
    skips = (1.0,)
    max_stride = 1.0

    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        return idct(self._ahead(gains).signal * truth.clean).unsqueeze(1)

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        clean = undo(dct(outputs[:, 0].to(u.dtype)), self._ahead(gains).log_signal)
        return Estimate(clean, implied_noise(gains.signal * clean, u, gains))

    def _ahead(self, gains: Gains) -> Gains:
        check(
            gains.ahead is not None,
            "model.parameterization LessBlurred needs a process in steps of its own, such as IHDM: choose another one",
        )
        assert gains.ahead is not None
        return gains.ahead


def consistent(clean: Tensor, u: Tensor, gains: Gains) -> Estimate:
    """The estimate of somebody whose two beliefs agree: A∘clean + B∘noise = u."""
    return Estimate(clean, implied_noise(gains.signal * clean, u, gains))
