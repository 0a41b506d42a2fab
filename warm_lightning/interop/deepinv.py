"""A trained model as a denoiser of the library deepinv, for its plug-and-play and diffusion algorithms.

Importing this module needs deepinv: `pip install 'warm-lightning[deepinv]'`.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from warm_lightning.errors import UserError, check
from warm_lightning.networks import Network
from warm_lightning.parameterizations import Parameterization, denoised_image
from warm_lightning.processes.base import LARGE, Process, per_image
from warm_lightning.restoration import TOLERANCE, find_level, known_nearby
from warm_lightning.spectral import dct, idct
from warm_lightning.types import Estimator, Level

try:
    from deepinv.models import Denoiser
except ImportError as error:
    raise UserError("warm_lightning.interop.deepinv needs deepinv: pip install 'warm-lightning[deepinv]'") from error


class Model(Protocol):
    """The parts of a `DiffusionModel` that a denoiser needs."""

    network: Network
    process: Process
    parameterization: Parameterization

    @property
    def device(self) -> torch.device: ...
    def conditioned(self, classes: Sequence[int] | None) -> AbstractContextManager[Estimator]: ...


class DeepinvDenoiser(Denoiser):
    """The estimate D(x, σ) of E[x0 | x] for x = x0 + σz, with normal noise z and images in [0, 1], by a trained model.

    Images are scaled to [-1, 1], where the noise level is β = 2σ, and further by the process, as DDPM does; the model
    is asked at its level with that noise and no blur. Models of `Hot`, DDPM and flows without blur know such a level
    for each σ, and so does a model of all BNRs from 0 on (configs/method/plane.yaml). A model of one warm path does not
    know it: it sees noise in blurred images only. One could blur x and fill up the noise, and would then be right about
    another image, which holds less of x0: not about E[x0 | x], from which deepinv's algorithms compute scores. Such a
    model is refused. Gradients flow through the model, as DPS needs.

    Args:
        model: a `DiffusionModel` of any network and parameterization that estimates x0, such as
            `load_checkpoint(path).model()`.

    Raises:
        UserError: the model estimates the next image only, or has noise that is not normal.
    """

    def __init__(self, model: Model) -> None:
        super().__init__(device=model.device)
        check(
            model.parameterization.max_stride == float("inf"),
            f"{type(model.parameterization).__name__} estimates the image one step ahead, which is no denoiser for "
            "deepinv: use another model",
        )
        check(
            abs(model.process.noise_variance - 1) <= TOLERANCE,
            f"the noise of {type(model.process).__name__} is not normal, as deepinv's is: use another model",
        )
        self.model = model
        self.levels: dict[float, Level] = {}

    def forward(self, x: Tensor, sigma: float | Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Denoise images.

        Args:
            x: noisy images [B, C, H, W], whose clean ones are in [0, 1].
            sigma: standard deviation of the noise, one for all or [B]; 0 leaves an image as it is.
            class_labels: indices of classes [B], for a class-conditional model; None for no class.

        Returns:
            [B, C, H, W] in the dtype of x.

        Raises:
            UserError: the model does not know the noise level without blur, the class, or images of this size.
        """
        beta = (2 * torch.as_tensor(sigma).detach().cpu().double()).flatten().expand(len(x))
        check(bool((beta >= 0).all()), f"sigma is {sigma}: a standard deviation is 0 or more")
        noisy = (beta > 0).to(x.device)
        if not noisy.any():
            return x
        classes = None if class_labels is None else class_labels[noisy].tolist()
        out = x.clone()
        out[noisy] = self._denoised(x[noisy], beta[beta > 0], classes)
        return out

    def _denoised(self, x: Tensor, beta: Tensor, classes: list[int] | None) -> Tensor:
        """The estimate for images [b, C, H, W] in [0, 1] with noise of `beta` [b], more than 0, when in [-1, 1]."""
        model = self.model
        model.network.check_images(x)
        levels = [self._level(value, x) for value in beta.tolist()]
        level = Level(
            alpha=torch.cat([one.alpha for one in levels]).to(x.device),
            beta=torch.cat([one.beta for one in levels]).to(x.device),
            clock=torch.cat([one.clock for one in levels]).to(x.device),
        )
        with model.conditioned(classes) as estimator:
            u = per_image(model.process.scale(level), x) * dct(2 * x - 1)
            clean = denoised_image(u, estimator(u, level), model.process.gains(level, u))
        return (idct(clean) + 1) / 2

    def _level(self, beta: float, like: Tensor) -> Level:
        """The level of the model with noise `beta` > 0 for images in [-1, 1], and no blur; entries [1]."""
        if beta not in self.levels:
            process = self.model.process.nearest_path(0.0, beta)
            low, high = process.known_clocks
            first = torch.tensor([min(high, process.max_clock, LARGE)], dtype=torch.float64)
            level = find_level(process, first, 0.0, beta)
            what = f"noise {beta / 2:g} for images in [0, 1], which is {beta:g} in [-1, 1], without blur"
            if level is None or level.clock.item() < low or process.ends(level):
                raise UserError(
                    f"the model knows no level with {what}: {known_nearby(process, first, 0.0, beta)}. deepinv needs a "
                    "model without blur, such as that of configs/method/hot.yaml or plane.yaml"
                )
            gains, scale = process.gains(level, like), process.scale(level).item()
            expected = {scale: gains.signal, scale * beta: gains.noise}
            plain = all(bool((gain / value - 1).abs().max() <= TOLERANCE) for value, gain in expected.items())
            check(plain, f"the model's image or noise is not white at {what}: it is no denoiser for deepinv")
            self.levels[beta] = level
        return self.levels[beta]
