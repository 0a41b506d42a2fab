"""The scaling of the network's input and outputs, and its conditioning scalars, as functions of the level.

With the second moment S of the data's coefficients, the best linear estimate of a target a∘u_0 + b∘z from formula F's
u = A∘u_0 + B∘z, its root mean square error and that of u itself are, in each frequency,

    c_skip = (a A S + b B)/(A² S + B²),   c_out = √S |a B - b A|/√(A² S + B²),   1/c_in = √(A² S + B²).

Then the network's input and outputs have unit second moment, and it adds to a Gaussian model what that lacks. EDM's
coefficients are the case S = σ_d², A = 1, B = β of the clean image, a = 1 and b = 0 (Karras et al. 2022, Appendix B.6).

With these coefficients the target of the raw network is

    (a∘u_0 + b∘z - c_skip∘u)/c_out = ± (B/√(A² S + B²) ∘ u_0/√S - A√S/√(A² S + B²) ∘ z),

with the sign of a B - b A. It is a rotation of white image and noise, and the same for all a and b: whatever the
parameterization, the network is asked for one and the same image, where an output has any use for it (c_out > 0).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.learning import Learner
from warm_lightning.parameterizations import Parameterization
from warm_lightning.spectral import dct, idct, positive_frequencies, second_moment
from warm_lightning.types import Estimate, Gains, Level

NO_NOISE = 1e-5
"""The value that replaces β = 0 in c_noise, where ln β would be infinite; far below all noise levels in use."""


@dataclass(frozen=True)
class Coefficients:
    """The coefficients around a network F, in the dtype of the level.

    The output of a branch is `skip · x + out · F(input · x, noise, blur)`, with products as `scaled` takes them.

    Attributes:
        skip: c_skip of each branch, broadcastable to [B, branches, C, H, W]; H = W = 1 where all frequencies are alike.
        out: c_out of each branch, likewise.
        input: c_in, broadcastable to [B, C, H, W]; likewise.
        noise: c_noise, the network's conditioning on the noise level; [B].
        blur: c_blur ≥ 0, its conditioning on the blur level, 0 for no blur; [B].
    """

    skip: Tensor
    out: Tensor
    input: Tensor
    noise: Tensor
    blur: Tensor

    def outputs(self, x: Tensor, raw: Tensor) -> Tensor:
        """The outputs of all branches, [B, branches, C, H, W].

        Args:
            x: the degraded image, [B, C, H, W].
            raw: what the network says, [B, branches, C, H, W].
        """
        return scaled(self.skip, x.unsqueeze(1)) + scaled(self.out, raw)


def scaled(coefficient: Tensor, x: Tensor) -> Tensor:
    """The product of an image in pixels [..., H, W] with a coefficient, which may be one for each frequency."""
    return coefficient * x if coefficient.shape[-2:] == (1, 1) else idct(coefficient * dct(x))


class Preconditioning(Learner, ABC):
    """A map from levels to coefficients.

    Attributes:
        time: whether c_noise is a time from 0 to 1,000 as in DDPM, which is then multiplied by `Network.time_scale`.
    """

    time: bool = False

    @abstractmethod
    def __call__(self, level: Level, gains: Gains, parameterization: Parameterization) -> Coefficients:
        """The coefficients for each image; the caller casts them to the network's dtype.

        Args:
            level: of the images.
            gains: of the process at this level.
            parameterization: the meaning of the branches.
        """

    def errors(
        self, raw: Tensor, x: Tensor, c: Coefficients, truth: Estimate, gains: Gains, parameterization: Parameterization
    ) -> Tensor:
        """The errors (output - target)/c_out of all branches, pixels [B, branches, C, H, W].

        Args:
            raw: what the network says, [B, branches, C, H, W].
            x: the degraded image, [B, C, H, W].
            c: the coefficients of this level.
            truth: the true image and noise.
            gains: of the process at this level.
            parameterization: the meaning of the branches.
        """
        return (c.outputs(x, raw) - parameterization.targets(truth, gains)) / c.out


def log_levels(level: Level) -> tuple[Tensor, Tensor]:
    """c_noise = ln(β)/4 and c_blur = ln(1 + α/β), [B]; c_blur = ln(1 + α) where β = 0.

    The former is EDM's; the latter is our choice (the paper prints none).
    """
    alpha, beta = torch.broadcast_tensors(level.alpha, level.beta)
    noiseless = beta == 0
    return beta.masked_fill(noiseless, NO_NOISE).log() / 4, torch.log1p(alpha / beta.masked_fill(noiseless, 1))


def _of_branches(per_image: Tensor, factors: tuple[float, ...]) -> Tensor:
    """A value of each image [B], times a factor of each branch, as [B, branches, 1, 1, 1]."""
    return per_image.new_tensor(factors).view(1, -1, 1, 1, 1) * per_image[:, None, None, None, None]


def measure_sigma_data(images: Iterable[Tensor]) -> Tensor:
    """The standard deviation of all pixels of batches of images in [-1, 1], a float64 number."""
    sums = torch.zeros(3, dtype=torch.float64)
    for batch in images:
        pixels = batch.double().cpu()
        sums += torch.stack([torch.tensor(pixels.numel()).double(), pixels.sum(), pixels.square().sum()])
    count, total, squares = sums
    return (squares / count - (total / count).square()).sqrt()


class EDMPreconditioning(Preconditioning):
    """EDM's preconditioning (Karras et al. 2022, Table 1), with the blur level as a second signal.

    The loss weight λ(β) = (β² + σ_d²)/(β·σ_d)² is c_out⁻². Branches without the signal of the input in their target
    have no c_skip (`Parameterization.skips`).

    Args:
        sigma_data: σ_d, the standard deviation of the data's pixels in [-1, 1]; "measured" for that of the training
            images, which is measured before training and kept in checkpoints.
    """

    def __init__(self, sigma_data: float | Literal["measured"] = 0.5) -> None:
        check(isinstance(sigma_data, str) or sigma_data > 0, f"sigma_data must be positive, not {sigma_data}")
        self.given = None if isinstance(sigma_data, str) else sigma_data
        if self.given is None:
            self.needs, self.learned = ("sigma_data",), None

    @property
    def sigma_data(self) -> float:
        """σ_d; raises as `checked_learned` does."""
        return self.checked_learned()["sigma_data"].item() if self.given is None else self.given

    def learn(self, images: Iterable[Tensor]) -> dict[str, Tensor]:
        return {"sigma_data": measure_sigma_data(images)}

    def __call__(self, level: Level, gains: Gains, parameterization: Parameterization) -> Coefficients:
        _, beta = torch.broadcast_tensors(level.alpha, level.beta)
        variance = beta**2 + self.sigma_data**2
        noise, blur = log_levels(level)
        return Coefficients(
            skip=_of_branches(self.sigma_data**2 / variance, parameterization.skips),
            out=(beta * self.sigma_data / variance.sqrt())[:, None, None, None, None],
            input=variance.rsqrt()[:, None, None, None],
            noise=noise,
            blur=blur,
        )


class SpectralPreconditioning(Preconditioning):
    """Preconditioning frequency by frequency, by the power spectrum of the data; see the formulas above.

    S is the second moment of the training images' DCT coefficients, measured before training and kept in checkpoints,
    or a power law. A network whose outputs are 0 makes the model a Gaussian one, exactly: the estimate of
    `oracles.GaussianOracle`, for every parameterization whose estimate is linear in its outputs and exact for its
    targets, and normal noise. The conditioning is EDM's.

    Args:
        c: of the law S = c/λ^s; None to measure S.
        s: of the law. At λ = 0 it has the value of the lowest frequency above.
    """

    def __init__(self, c: float | None = None, s: float = 1.0) -> None:
        check(c is None or c > 0, f"c is {c}: a power is positive")
        self.c = c
        self.s = s
        if c is None:
            self.needs, self.learned = ("second_moment",), None

    def learn(self, images: Iterable[Tensor]) -> dict[str, Tensor]:
        return {"second_moment": second_moment(images)}

    def spectrum(self, like: Tensor) -> Tensor:
        """S, [1, C, H, W] or [1, 1, H, W], in the dtype and on the device of `like` [B, C, H, W]."""
        if self.c is None:
            return self.tensor("second_moment", like)[None]
        return (self.c / positive_frequencies(like) ** self.s)[None, None]

    def __call__(self, level: Level, gains: Gains, parameterization: Parameterization) -> Coefficients:
        power, inverse = self._power_and_input(gains)
        skip, out = [], []
        for a, b in parameterization.mixtures(gains):
            skip.append((a * gains.signal * power + b * gains.noise) * inverse.square())
            out.append(power.sqrt() * torch.as_tensor(a * gains.noise - b * gains.signal).abs() * inverse)
        c_noise, c_blur = log_levels(level)
        return Coefficients(torch.stack(skip, 1), torch.stack(out, 1), inverse, c_noise, c_blur)

    def errors(
        self, raw: Tensor, x: Tensor, c: Coefficients, truth: Estimate, gains: Gains, parameterization: Parameterization
    ) -> Tensor:
        """See `Preconditioning.errors`; 0 in frequencies where c_out is 0.

        By the formula for the raw network's target, without c_out, which may be as small as any gain of a blur.
        """
        power, inverse = self._power_and_input(gains)
        deviation = power.sqrt()
        white = torch.where(deviation > 0, truth.clean / torch.where(deviation > 0, deviation, 1.0), 0.0)
        target = inverse * (gains.noise * white - gains.signal * deviation * truth.noise)
        determinants = (a * gains.noise - b * gains.signal for a, b in parameterization.mixtures(gains))
        targets = [torch.as_tensor(determinant).sign() * target for determinant in determinants]
        error = dct(raw) - torch.stack(targets, 1)
        return idct(torch.where(c.out > 0, error, 0.0))

    def _power_and_input(self, gains: Gains) -> tuple[Tensor, Tensor]:
        """S and c_in at a level; c_in is 0 where u has no power."""
        power = self.spectrum(gains.signal + gains.noise)
        variance = gains.signal.square() * power + gains.noise.square()
        nothing = variance == 0
        return power, torch.where(nothing, 0.0, torch.where(nothing, 1.0, variance).rsqrt())


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

    def __call__(self, level: Level, gains: Gains, parameterization: Parameterization) -> Coefficients:
        one = torch.ones_like(level.clock)
        return Coefficients(
            skip=_of_branches(one * float(self.residual), parameterization.skips),
            out=one[:, None, None, None, None],
            input=one[:, None, None, None],
            noise=self.conditioning * level.clock,
            blur=torch.zeros_like(level.clock),
        )
