"""What a model sees and is asked for at a noise level, over frequencies and as images (Section 4.3, Fig. 3)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from warm_lightning.analysis.spectrum import ring_frequencies, ring_means
from warm_lightning.rng import key
from warm_lightning.spectral import dct, idct, log_blur_mask

NAMES = ("observed", "denoising_target", "deblurring_target")
"""What Fig. 3 shows of an image: M x0 + β z, M x0 and (1 - M) x0."""


def target_rows(power: Tensor, noise: float, bnrs: Sequence[float]) -> list[dict[str, Any]]:
    """Spectra by radius at β = noise and α = BNR·β; mean S of each ring after the gains.

    Args:
        power: S, [H, W].
        noise: β.
        bnrs: the BNRs.

    Returns:
        A row a BNR and ring: bnr, `ring_frequencies`, power S, observed M²S + β², signal M²S, noise β²,
        denoising_target M²S and deblurring_target (1 - M)²S.
    """
    log_gains = log_blur_mask(noise * torch.tensor(bnrs, dtype=power.dtype), power)[:, 0]
    whole = ring_means(power)
    signal, rest = (ring_means(gain.square() * power) for gain in (log_gains.exp(), torch.expm1(log_gains)))
    return [
        {
            "bnr": bnr,
            **about,
            "power": whole[r].item(),
            "observed": signal[i, r].item() + noise**2,
            "signal": signal[i, r].item(),
            "noise": noise**2,
            "denoising_target": signal[i, r].item(),
            "deblurring_target": rest[i, r].item(),
        }
        for i, bnr in enumerate(bnrs)
        for r, about in enumerate(ring_frequencies(power))
    ]


def target_pictures(images: Tensor, noise: float, bnrs: Sequence[float], seed: int = 0) -> Tensor:
    """`NAMES` of images [N, C, H, W] in [-1, 1], for each BNR: [BNRs, 3, N, C, H, W], the noise the same for all."""
    generator = torch.Generator().manual_seed(key(seed, "noise"))
    z = torch.randn(images.shape, generator=generator, dtype=images.dtype)
    pictures = []
    for bnr in bnrs:
        gain = log_blur_mask(torch.tensor([bnr * noise], dtype=images.dtype), images).exp()
        blurred = idct(gain * dct(images))
        pictures.append(torch.stack([blurred + noise * z, blurred, images - blurred]))
    return torch.stack(pictures)
