"""The meaning of a network's outputs (Table 5 and others): from the truth to targets, from outputs to an estimate.

Outputs are in pixels and preconditioned, one image for each branch.
"""

import math
from abc import ABC, abstractmethod
from itertools import pairwise

import torch
from torch import Tensor

from warm_lightning.defaults import default
from warm_lightning.errors import check
from warm_lightning.spectral import dct, idct
from warm_lightning.types import Estimate, Gains

Mixture = tuple[Tensor | float, Tensor | float]
"""The factors a and b of a target a∘u_0 + b∘z, numbers or over frequencies."""


class Parameterization(ABC):
    """The meaning of a network's branches.

    Attributes:
        names: a name for each branch, under which its loss is logged.
        skips: for each branch, 1 where its target contains the signal of the input, so that EDM's c_skip applies, and 0
            where it does not.
        max_stride: the longest step of the clock for which the estimate is valid; a longer one amplifies errors.
            1 for an estimate of the next image only, infinite for one of x0 itself.
    """

    names: tuple[str, ...]
    skips: tuple[float, ...]
    max_stride: float = math.inf

    @abstractmethod
    def mixtures(self, gains: Gains) -> list[Mixture]:
        """The target of each branch, as its factors of image and noise."""

    def targets(self, truth: Estimate, gains: Gains) -> Tensor:
        """The correct outputs of the branches for a given image and noise, pixels [B, branches, C, H, W]."""
        return idct(torch.stack([mixed(mixture, truth) for mixture in self.mixtures(gains)], dim=1))

    @abstractmethod
    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        """The estimate that follows from outputs [B, branches, C, H, W] for u [B, C, H, W], in the dtype of u."""


def mixed(mixture: Mixture, truth: Estimate) -> Tensor:
    """The target a∘clean + b∘noise, as DCT coefficients."""
    parts = zip(mixture, (truth.clean, truth.noise), strict=True)
    products = [factor * part for factor, part in parts if isinstance(factor, Tensor) or factor != 0]
    return sum(products[1:], products[0])


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

    def mixtures(self, gains: Gains) -> list[Mixture]:
        return [(1.0, 0.0)]

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        clean = dct(outputs[:, 0].to(u.dtype))
        return consistent(clean, u, gains)


class DenoiserWithoutSkip(Denoiser):
    """Table 5a without c_skip: the network must output x0 itself at every level."""

    skips = (0.0,)


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

    def mixtures(self, gains: Gains) -> list[Mixture]:
        return [(gains.signal, 0.0)]

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        blurred = dct(outputs[:, 0].to(u.dtype))
        clean = blurred / (1 - (1 - self.d_min) * gains.lost) if self.d_min else undo(blurred, gains.log_signal)
        return Estimate(clean, implied_noise(blurred, u, gains))


class DenoiseRestore(Parameterization):
    """Two branches, D → M x0, the blurred image, and R → x0, the clean one (Table 5c)."""

    names = ("denoise", "restore")
    skips = (1.0, 1.0)

    def mixtures(self, gains: Gains) -> list[Mixture]:
        return [(gains.signal, 0.0), (1.0, 0.0)]

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        blurred, clean = dct(outputs.to(u.dtype)).unbind(1)
        return Estimate(clean, implied_noise(blurred, u, gains))


class DenoiseRestoreWithoutSkip(DenoiseRestore):
    """Table 5c without c_skip for R: the network must output x0 itself at every level."""

    skips = (1.0, 0.0)


# ---------------------------------------------------------------------- combinations of D and R


class Combination(ABC):
    """An estimate x̂0 = a∘D + b∘R from the branches of Table 5d, exact if both are: a·M + b·(1-M) = 1.

    D/M and R/(1-M) both estimate x0, and x̂0 is their mean with the weights a·M and b·(1-M). If D and R have
    independent errors of variances v_D and v_R, in each frequency, then x̂0 has an error of variance

        a² v_D + b² v_R,

    and among all a and b with a·M + b·(1-M) = 1 the least one (Lagrange) is that of

        a = M/(M² + κ(1-M)²),   b = κ(1-M)/(M² + κ(1-M)²),   κ = v_D/v_R.

    Eq. 7 is the limit κ → ∞, and D + R the case κ = M/(1-M). The errors are the network's own, which are distances
    from the posterior mean: the variance of x0 about that mean is in both estimates alike.
    """

    @abstractmethod
    def __call__(self, blurred: Tensor, residual: Tensor, gains: Gains) -> Tensor:
        """The estimate x̂0 from D and R, as DCT coefficients [B, C, H, W]."""


class Residual(Combination):
    """Eq. 7: x̂0 = R/(1-M); D where there is no blur, since the residual is 0 there and D is the clean image."""

    def __call__(self, blurred: Tensor, residual: Tensor, gains: Gains) -> Tensor:
        sharp = gains.lost == 0  # at DC, and everywhere on the hot axis
        return torch.where(sharp, blurred, residual / torch.where(sharp, 1.0, gains.lost))


class Sum(Combination):
    """The sum x̂0 = D + R."""

    def __call__(self, blurred: Tensor, residual: Tensor, gains: Gains) -> Tensor:
        return blurred + residual


class LeastSquares(Combination):
    """The combination of least error where D and R have independent errors, of variances in a known ratio.

    Args:
        ratio: κ = v_D/v_R > 0, of the variance of D's error to that of R's.
    """

    def __init__(self, ratio: float = 1.0) -> None:
        check(0 < ratio < math.inf, f"ratio is {ratio}: a ratio of variances is above 0")
        self.ratio = ratio

    def __call__(self, blurred: Tensor, residual: Tensor, gains: Gains) -> Tensor:
        return _least_squares(blurred, residual, gains, self.ratio)


class MeasuredLeastSquares(Combination):
    """The combination of least error for the ratios of variances that `warm branches` has measured, level by level.

    Between the levels and the shares, ln κ is interpolated linearly; beyond them it is constant.

    Args:
        noise: the noise gains B of the levels, rising.
        share: the values of M, rising, at which κ is known.
        ratios: κ for each level, a row, and each share, a column.
    """

    def __init__(self, noise: list[float], share: list[float], ratios: list[list[float]]) -> None:
        for name, values in {"noise": noise, "share": share}.items():
            rising = all(a < b for a, b in pairwise(values))
            check(bool(values) and rising, f"{name} is {values}: give rising numbers, as `warm branches` writes them")
        check(min(noise) > 0, f"noise is {noise}: levels of a measurement have noise above 0")
        check(
            len(ratios) == len(noise) and all(len(row) == len(share) and min(row) > 0 for row in ratios),
            f"ratios must be {len(noise)} rows of {len(share)} positive numbers, as `warm branches` writes them",
        )
        self.noise, self.share, self.ratios = (torch.tensor(x, dtype=torch.float64) for x in (noise, share, ratios))

    def ratio(self, gains: Gains) -> Tensor:
        """κ over frequencies, broadcastable to [B, C, H, W]."""
        row, up = _position(gains.noise.log(), self.noise.to(gains.noise).log())
        column, right = _position(gains.signal, self.share.to(gains.noise))
        table = self.ratios.to(gains.noise).log()
        above, beside = (row + 1).clamp(max=len(self.noise) - 1), (column + 1).clamp(max=len(self.share) - 1)
        low = torch.lerp(table[row, column], table[row, beside], right)
        return torch.lerp(low, torch.lerp(table[above, column], table[above, beside], right), up).exp()

    def __call__(self, blurred: Tensor, residual: Tensor, gains: Gains) -> Tensor:
        return _least_squares(blurred, residual, gains, self.ratio(gains))


def _least_squares(blurred: Tensor, residual: Tensor, gains: Gains, ratio: Tensor | float) -> Tensor:
    """The estimate a∘D + b∘R of least error for a ratio κ; see `Combination`."""
    kept, lost = gains.signal, ratio * gains.lost
    return (kept * blurred + lost * residual) / (kept.square() + lost * gains.lost)


def _position(x: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """The index of the last node not above x, and the share of the way from it to the next one, within the nodes."""
    x = x.clamp(nodes[0], nodes[-1])
    index = (torch.searchsorted(nodes, x.contiguous(), right=True) - 1).clamp(0, max(0, len(nodes) - 2))
    width = (nodes.diff() if len(nodes) > 1 else torch.ones_like(nodes))[index]
    return index, (x - nodes[index]) / width


# ---------------------------------------------------------------------- two branches, and other meanings


class DenoiseDeblur(Parameterization):
    """Two branches, D → M x0, the blurred image, and R → x_res = (1-M) x0, the residual (Eqs. 8, 9; Table 5d).

    This is the paper's choice.

    Args:
        combination: how both branches give x̂0; it matters for sampling only, so that a trained model may be sampled
            with any. In the paper x̂0 = R/(1-M) (Eq. 7).
        combine_noise: whether ε̂ = (u - M x̂0)/B, with the combination; otherwise (u - D)/B, as in the paper.
    """

    names = ("denoise", "deblur")
    skips = (1.0, 0.0)

    def __init__(self, combination: Combination = default(Residual), combine_noise: bool = False) -> None:
        self.combination = combination
        self.combine_noise = combine_noise

    def mixtures(self, gains: Gains) -> list[Mixture]:
        return [(gains.signal, 0.0), (gains.lost, 0.0)]

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        blurred, residual = dct(outputs.to(u.dtype)).unbind(1)
        clean = self.combination(blurred, residual, gains)
        return Estimate(clean, implied_noise(gains.signal * clean if self.combine_noise else blurred, u, gains))


class Epsilon(Parameterization):
    """One branch, the noise ε, in pixels (Ho et al. 2020, Eq. 12; Hoogeboom & Salimans 2022, Eq. 21)."""

    names = ("noise",)
    skips = (0.0,)

    def mixtures(self, gains: Gains) -> list[Mixture]:
        return [(0.0, 1.0)]

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        noise = dct(outputs[:, 0].to(u.dtype))
        return Estimate(undo(u - gains.noise * noise, gains.log_signal), noise)


class ColouredEpsilon(Parameterization):
    """One branch, the coloured noise b∘ε in pixels, as it is added to the image but for its scale.

    b = B/noise_scale has a mean square of 1. It is the output of SAGD (Scimeca et al. 2025), of Flicker-DDPM (Mao 2026)
    and, up to a factor of time, of whitened score diffusion (Alido et al. 2025, Eq. 12); for white noise that of
    `Epsilon`. Where b is 0, ε̂ is 0.
    """

    names = ("noise",)
    skips = (0.0,)

    def mixtures(self, gains: Gains) -> list[Mixture]:
        return [(0.0, gains.colour)]

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        coloured = dct(outputs[:, 0].to(u.dtype))
        clean = undo(u - gains.noise_scale * coloured, gains.log_signal)
        return Estimate(clean, gains.over_noise(gains.noise_scale * coloured))


class StraightVelocity(Parameterization):
    """One branch, v = ε - x0, the velocity of flow matching (Lipman et al. 2023, Eq. 23, with time reversed).

    For A = 1 - t and B = t it is du/dt, which with blur it is not. Both parts of the estimate follow from u:
    x̂0 = (u - B v)/(A + B) and ε̂ = (u + A v)/(A + B).
    """

    names = ("velocity",)
    skips = (0.0,)

    def mixtures(self, gains: Gains) -> list[Mixture]:
        return [(-1.0, 1.0)]

    def estimate(self, outputs: Tensor, u: Tensor, gains: Gains) -> Estimate:
        velocity = dct(outputs[:, 0].to(u.dtype))
        both = gains.signal + gains.noise
        both = torch.where(both > 0, both, 1.0)  # nothing is left of either at a start without noise in a band
        return Estimate((u - gains.noise * velocity) / both, (u + gains.signal * velocity) / both)


class LessBlurred(Parameterization):
    """One branch, the image one step less blurred, A_{k-1} x0 (heat dissipation; Rissanen et al. 2023, Eq. 9)."""

    names = ("deblur",)
    skips = (1.0,)
    max_stride = 1.0

    def mixtures(self, gains: Gains) -> list[Mixture]:
        return [(self._next(gains).signal, 0.0)]

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
