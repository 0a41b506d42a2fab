"""The levels and the noise that training images are degraded with, and the loss of a deviation from the target."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from warm_lightning.errors import check
from warm_lightning.rng import Draws
from warm_lightning.spectral import band_index, dct, frequencies, positive_frequencies
from warm_lightning.types import Gains


class ClockLaw(ABC):
    """The distribution of a process's clock in training."""

    @abstractmethod
    def quantile(self, p: Tensor) -> Tensor:
        """The clock reading below which a share p in (0, 1) of the training levels lies; p of any shape."""

    @abstractmethod
    def draw(self, draws: Draws) -> Tensor:
        """One clock reading for each image, [b]."""


class LogNormal(ClockLaw):
    """The log-normal law of noise levels, ln β ~ N(P_mean, P_std²) (Algorithm 1, line 6; EDM, Table 1)."""

    def __init__(self, mean: float = -1.2, std: float = 1.2) -> None:
        check(std > 0, f"std is {std}: the spread of ln β must be positive")
        self.mean = mean
        self.std = std

    def quantile(self, p: Tensor) -> Tensor:
        return (self.mean + self.std * torch.special.ndtri(p)).exp()

    def draw(self, draws: Draws) -> Tensor:
        return (self.mean + self.std * draws.normal()).exp()


class Uniform(ClockLaw):
    """The uniform law t ~ U(low, high), for processes in continuous time."""

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        check(0 <= low < high, f"clock readings from {low} to {high}: need 0 <= low < high")
        self.low = low
        self.high = high

    def quantile(self, p: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * p

    def draw(self, draws: Draws) -> Tensor:
        return self.quantile(draws.uniform())


class LogitNormal(LogNormal):
    """The logit-normal law of times t = β/(1 + β) of log-normal noise levels β (Esser et al. 2024), for flow matching.

    With a location of 0 and a scale of 1, its default there, it has more times in the middle than the uniform law. They
    are mean and std of ln β = ln(t/(1 - t)) under other names, so that --model.clock_law=LogitNormal does not take over
    what was meant for EDM's noise levels.
    """

    def __init__(self, location: float = 0.0, scale: float = 1.0) -> None:
        super().__init__(location, scale)

    def quantile(self, p: Tensor) -> Tensor:
        return super().quantile(p).log().sigmoid()

    def draw(self, draws: Draws) -> Tensor:
        return super().draw(draws).log().sigmoid()


class UniformSteps(ClockLaw):
    """The uniform law over the steps 1 … K, for processes in discrete time."""

    def __init__(self, steps: int = 1000) -> None:
        check(steps >= 1, f"steps is {steps}: there must be at least 1")
        self.steps = steps

    def quantile(self, p: Tensor) -> Tensor:
        return (p * self.steps).ceil().clamp(1, self.steps)

    def draw(self, draws: Draws) -> Tensor:
        return (1 + (draws.uniform() * self.steps).floor()).clamp(max=self.steps)


class NoiseChoice(ABC):
    """A choice of the noise for each training image, which may depend on the image."""

    @abstractmethod
    def __call__(self, x0: Tensor, draws: Draws) -> Tensor:
        """The noise in pixels for images x0, both [B, C, H, W]; it is to be standard normal, at least nearly."""


class NearestNoise(NoiseChoice):
    """The nearest of k noises that are drawn for each image (improved immiscible diffusion; Li et al. 2025).

    The distance is that of all pixels between the clean image and the noise. Chosen noise is not quite normal: it is
    correlated with its image, by less for larger images, and its norm is a little smaller.

    Args:
        candidates: k; 8 is best for CIFAR-10 there, 4 with flow matching, and 1 is no choice.
    """

    def __init__(self, candidates: int = 8) -> None:
        check(candidates >= 1, f"candidates is {candidates}: there must be at least 1 noise to choose from")
        self.candidates = candidates

    def __call__(self, x0: Tensor, draws: Draws) -> Tensor:
        noises = draws.normal(self.candidates, *x0.shape[1:], dtype=x0.dtype)
        nearest = (noises - x0.unsqueeze(1)).flatten(2).square().sum(2).argmin(1)
        return noises[torch.arange(len(x0), device=x0.device), nearest]


class Loss(ABC):
    """The loss of outputs against targets, for each image and branch.

    Attributes:
        branches: the names of a parameterization's branches that it is for; None for any.
        outputs: the number of branches that it is for; None for any.
    """

    branches: tuple[str, ...] | None = None
    outputs: int | None = None

    @abstractmethod
    def __call__(self, errors: Tensor, gains: Gains) -> Tensor:
        """The loss of each image and branch, [B, branches], summed over pixels.

        Args:
            errors: (output - target)/c_out in pixels, [B, branches, C, H, W]; see `Preconditioning.errors`.
            gains: at the level of each image.
        """


class SquaredError(Loss):
    """The squared error λ‖output - target‖² with λ = 1/c_out² (Algorithm 1, line 13).

    With EDM's c_out, λ(β) = (β²+σ_d²)/(βσ_d)²; without preconditioning, c_out = 1 and λ = 1. In all cases the raw
    output of the network has unit weight at every level.
    """

    def __call__(self, errors: Tensor, gains: Gains) -> Tensor:
        return errors.square().sum(dim=(2, 3, 4))


class AbsoluteError(Loss):
    """The absolute error ‖output - target‖₁/c_out; with c_out = 1 that of Bansal et al. 2022, Eq. 1."""

    def __call__(self, errors: Tensor, gains: Gains) -> Tensor:
        return errors.abs().sum(dim=(2, 3, 4))


class SoftScoreMatching(Loss):
    """The squared error after degradation, ‖A∘(output - target)‖²/c_out²; with c_out = 1 the soft score matching of
    Daras et al. 2022."""

    def __call__(self, errors: Tensor, gains: Gains) -> Tensor:
        return (gains.signal.unsqueeze(1) * dct(errors)).square().sum(dim=(2, 3, 4))


class LearnedUncertainty(Loss, nn.Module):
    """The squared error over a learned estimate of itself (EDM2; Karras et al. 2024, Eq. 21, Appendix B.2).

    A small head gives u for each branch and each band of frequencies at a level, and the loss is L/e^u + u for each
    coefficient, with L its squared error λ(output - target)². The best u is ln L, so that all levels come to weigh the
    same. The head is one linear layer on Fourier features cos(2π(f c_noise + φ)), with f ~ N(0, 1), φ ~ U(0, 1) and
    c_noise = ln(noise)/4. It begins with u = 0, which is the squared error. It is trained with the network, and is in
    checkpoints. Losses in the log have u in them, and may be negative.

    Args:
        branches: number of the network's outputs.
        bands: number of bands of frequencies, of the same width in √λ; 1 in EDM2.
        features: number of Fourier features; EDM2 does not print its own.
    """

    frequency: Tensor
    phase: Tensor

    def __init__(self, branches: int = 1, bands: int = 1, features: int = 128) -> None:
        nn.Module.__init__(self)
        for name, value in {"branches": branches, "bands": bands, "features": features}.items():
            check(value >= 1, f"{name} is {value}: it must be at least 1")
        self.bands = bands
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("frequency", torch.randn(features, generator=generator))
        self.register_buffer("phase", torch.rand(features, generator=generator))
        self.head = nn.Linear(features, branches * bands, bias=False)
        nn.init.zeros_(self.head.weight)
        self.outputs = branches

    def __call__(self, errors: Tensor, gains: Gains) -> Tensor:
        u = self.uncertainty(gains, errors)
        return (dct(errors).square() / u.exp() + u).sum(dim=(2, 3, 4))

    def uncertainty(self, gains: Gains, like: Tensor) -> Tensor:
        """u at each frequency, [B, branches, 1, H, W]; `like` is [B, branches, C, H, W]."""
        c_noise = gains.noise_scale.to(self.frequency).clamp(min=1e-9).log().view(-1, 1) / 4
        features = torch.cos(2 * math.pi * (self.frequency * c_noise + self.phase))
        u = self.head(features).view(-1, self.outputs, self.bands).to(like)
        return u[:, :, band_index(like, self.bands)].unsqueeze(2)


class Whitened(Loss):
    """The squared error in which each frequency counts by the noise that it has, ‖(output - target)/b‖²/c_out².

    b is the colour of the noise (`Gains.colour`), so that the error of an estimate of coloured noise is measured as
    that of white noise (Flicker-DDPM, Mao 2026), and that of an image by the spectrum of the data, if the noise has it
    (EqualSNR, Falck et al. 2025). Frequencies without noise do not count.
    """

    def __call__(self, errors: Tensor, gains: Gains) -> Tensor:
        b = gains.colour.unsqueeze(1)
        whitened = dct(errors) / torch.where(b > 0, b, 1.0)
        return torch.where(b > 0, whitened, 0.0).square().sum(dim=(2, 3, 4))


class StepWeighted(Loss):
    """The squared error in which each frequency of R counts by what a sampling step uses of it; for Table 5d.

    A step dα of the blur moves u by dA∘x̂0 = -λα M dα ∘ R/(1-M). The error of R enters it, relative to dα/α, by the
    factor λα²M/(1-M), which falls from 2 where blur has taken nothing to 0 where it has taken all. The weight is half
    of that, w = -ln M · M/(1-M), and at least `floor`; the loss is ‖D - M x0‖²/c_out² + ‖w∘(R - x_res)‖²/c_out².

    Args:
        floor: the least weight, in [0, 1]; 1 is the squared error.
    """

    branches = ("denoise", "deblur")

    def __init__(self, floor: float = 0.0) -> None:
        check(0 <= floor <= 1, f"floor is {floor}: it is a weight from 0 to 1")
        self.floor = floor

    def __call__(self, errors: Tensor, gains: Gains) -> Tensor:
        blurred, residual = dct(errors).unbind(1)
        lost = gains.lost > 0
        used = -gains.log_signal * gains.signal / torch.where(lost, gains.lost, 1.0)
        weight = torch.where(lost, used, 1.0).clamp(min=self.floor)
        return torch.stack([blurred, weight * residual], dim=1).square().sum(dim=(2, 3, 4))


class SpectrumWeighted(Loss):
    """The squared error in which frequencies weigh as with EDM's preconditioning, for `SpectralPreconditioning`.

    Preconditioning per frequency divides an error by the c_out of its frequency, so that all frequencies weigh the
    same. EDM's c_out is that of S = σ_d² at all frequencies, so that all weigh the same in pixels. The squared ratio of
    the two is, by the formula for c_out in `warm_lightning.preconditioning`,

        w = (A² + B²/σ_d²)/(A² + B²/S),

    which is 1 without noise and S/σ_d² in noise alone. The loss is w^power times the squared error, with S = c/λ^s.
    Under a blur EDM's c_out has A = 1, and w has the blur's A.

    Args:
        power: 1 for EDM's weights, 0 for `SquaredError`.
        c: the power at λ = 1; `warm spectrum` fits it and s.
        s: the exponent of the law.
        sigma_data: σ_d, the standard deviation of the data's pixels in [-1, 1].
    """

    def __init__(self, power: float = 1.0, c: float = 0.4, s: float = 1.0, sigma_data: float = 0.5) -> None:
        check(c > 0 and sigma_data > 0, f"c is {c} and sigma_data {sigma_data}: both must be positive")
        self.power = power
        self.c = c
        self.s = s
        self.sigma_data = sigma_data

    def __call__(self, errors: Tensor, gains: Gains) -> Tensor:
        inverse = positive_frequencies(errors) ** self.s / self.c
        signal, noise = gains.signal.square(), gains.noise.square()
        nothing_left = torch.finfo(errors.dtype).tiny  # where a blur has taken all and there is no noise
        weight = (signal + noise / self.sigma_data**2) / (signal + noise * inverse).clamp(min=nothing_left)
        return (weight.pow(self.power).unsqueeze(1) * dct(errors).square()).sum(dim=(2, 3, 4))


class HeatVelocityError(Loss):
    """The squared error of the velocity of heat dissipation flow matching (Ma et al. 2026), for x0-prediction.

    Per frequency, the velocity that follows from x̂0 has the error (1/t + λ) M (x̂0 - x0), where A = (1 - t) M and B = t.
    Their program counts λ once, where the path's derivative has λ/2; that changes the weight only. It is for
    `FlowMatching` with `HeatDissipation`, and for outputs without scaling (c_out = 1).

    Args:
        least_time: the time below which 1/t does not grow.
    """

    branches = ("denoise",)

    def __init__(self, least_time: float = 0.05) -> None:
        check(0 < least_time < 1, f"least_time is {least_time}: it is a time between 0 and 1")
        self.least_time = least_time

    def __call__(self, errors: Tensor, gains: Gains) -> Tensor:
        blur = gains.signal / (1 - gains.noise).clamp(min=torch.finfo(errors.dtype).eps)
        weight = (1 / gains.noise.clamp(min=self.least_time) + frequencies(errors)) * blur
        return (weight.unsqueeze(1) * dct(errors)).square().sum(dim=(2, 3, 4))
