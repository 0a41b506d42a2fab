"""The fidelity of restored images to the originals: PSNR and SSIM, by torchmetrics."""

import torch
from torch import Tensor

SIGMA, WINDOW = 1.5, 11


def ssim_window(size: int) -> tuple[int, float]:
    """Width and standard deviation in pixels of SSIM's Gaussian window for images of a size.

    11 and 1.5 as published (Wang et al. 2004); smaller images get the largest odd width that fits, in proportion.
    """
    width = min(WINDOW, size - 1 + size % 2)
    return width, SIGMA * width / WINDOW


def fidelity(images: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """PSNR in decibels and SSIM of each image, [B]; PSNR is infinite for an image without error.

    Args:
        images: uint8 [B, C, H, W], the contents of a file.
        truth: likewise.
    """
    # Imported here, since it takes seconds.
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    pair = images.double(), truth.double()
    # torchmetrics takes the width from sigma: int(3.5 sigma + 0.5) on each side, which is the width of `ssim_window`.
    _, sigma = ssim_window(min(images.shape[-2:]))
    similarity = structural_similarity_index_measure(*pair, sigma=sigma, data_range=255.0, reduction="none")
    return {
        "psnr": peak_signal_noise_ratio(*pair, data_range=255.0, reduction="none", dim=(1, 2, 3)),
        "ssim": torch.atleast_1d(similarity),
    }


def describe(size: int) -> dict[str, str]:
    """The measures in words, for images of a size."""
    width, sigma = ssim_window(size)
    return {
        "psnr": "decibels, mean over images; of uint8 images with a range of 255",
        "ssim": f"mean over images; of uint8 images with a range of 255, in a Gaussian window of {width} pixels with "
        f"standard deviation {sigma:.3g}",
    }
