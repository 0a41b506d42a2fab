"""The Gaussian with a data set's moments: what a score gives to images that are no images."""

import torch
from torch import Tensor

from warm_lightning.data import ImageSet
from warm_lightning.images import dequantise, quantise
from warm_lightning.metrics.progress import progress
from warm_lightning.rng import key

CHUNK = 1024  # images at once


def moment_matched(images: ImageSet, count: int, seed: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """Draws from N(mean, covariance) of the pixels of some images, quantised.

    A draw is the mean plus a combination of the centred images with independent normal weights of variance
    1/(N − 1). That has exactly the covariance of the data, at any resolution: no D×D matrix is formed, which
    for 128×128 RGB would take 19 GB. The draws themselves are held once as float32 and once as uint8.

    Args:
        images: N ≥ 2 of them, read twice.
        count: number of draws.
        seed: the draws are a function of it and of `images`.
        device: where to compute.

    Returns:
        uint8 [count, C, H, W], on the CPU.
    """
    generator = torch.Generator().manual_seed(key(seed, "gaussian"))  # on the CPU: the same on every device
    chunks = torch.arange(len(images)).split(CHUNK)
    sums = [images.take(chunk).flatten(1).double().sum(dim=0) for chunk in progress(chunks, "mean image")]
    mean = dequantise(torch.stack(sums).sum(dim=0) / len(images), torch.float64).float().to(device)
    draws = mean.repeat(count, 1)
    for chunk in progress(chunks, "moment-matched Gaussian"):
        weights = torch.randn(count, len(chunk), generator=generator).to(device)
        pixels = dequantise(images.take(chunk).flatten(1)).to(device)
        draws.addmm_(weights, pixels - mean, alpha=(len(images) - 1) ** -0.5)
    return torch.cat([quantise(part).cpu() for part in draws.split(CHUNK)]).unflatten(1, images.shape)
