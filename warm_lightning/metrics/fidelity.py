"""The fidelity of restored images to the originals: PSNR, SSIM and LPIPS, by torchmetrics."""

import warnings
from typing import Literal

import torch
from torch import Tensor

from warm_lightning.errors import UserError, check

SIGMA, WINDOW = 1.5, 11
SMALLEST = 32
"""Height and width of the smallest images from which all networks of LPIPS have activations."""
Perceptual = Literal["alex", "vgg", "squeeze"]


def ssim_window(size: int) -> tuple[int, float]:
    """Width and standard deviation in pixels of SSIM's Gaussian window for images of a size.

    11 and 1.5 as published (Wang et al. 2004); smaller images get the largest odd width that fits, in proportion.
    """
    width = min(WINDOW, size - 1 + size % 2)
    return width, SIGMA * width / WINDOW


class Fidelity:
    """Measures how near images are to their originals: PSNR, SSIM and, if asked for, LPIPS.

    LPIPS (Zhang et al. 2018) is the distance of activations of a network, weighted to agree with people. torchmetrics
    has the weights of version 0.1; the network's own are PyTorch's for ImageNet, from torch hub's cache or a download.

    Args:
        size: height and width of the images.
        lpips: the network of LPIPS; None for no LPIPS.

    Raises:
        UserError: the images are too small for LPIPS, or the network's weights are missing and cannot be downloaded.
    """

    def __init__(self, size: int, lpips: Perceptual | None = None) -> None:
        self.size = size
        self.lpips = lpips
        if lpips:
            check(size >= SMALLEST, f"LPIPS takes images of at least {SMALLEST}×{SMALLEST}, not {size}×{size}")
            # Imported here, since it takes seconds.
            from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

            try:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="You are using `torch.load`")
                    self.network = LearnedPerceptualImagePatchSimilarity(net_type=lpips).net.float()
            except (OSError, RuntimeError) as error:  # no network is an OSError, a wrong hash a RuntimeError
                raise UserError(
                    f"LPIPS: the weights of {lpips} are not in torch hub's cache, {torch.hub.get_dir()}, and cannot be "
                    f"downloaded ({error}): copy the cache of a machine that has them, or set TORCH_HOME to it"
                ) from error

    def __call__(self, images: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """PSNR in decibels, SSIM and perhaps LPIPS of each image, [B]; PSNR is infinite for an image without error.

        Args:
            images: uint8 [B, C, H, W], the contents of a file.
            truth: likewise.
        """
        from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

        pair = images.double(), truth.double()
        # torchmetrics takes the width from sigma: int(3.5 sigma + 0.5) on each side, which is that of `ssim_window`.
        _, sigma = ssim_window(min(images.shape[-2:]))
        similarity = structural_similarity_index_measure(*pair, sigma=sigma, data_range=255.0, reduction="none")
        values = {
            "psnr": peak_signal_noise_ratio(*pair, data_range=255.0, reduction="none", dim=(1, 2, 3)),
            "ssim": torch.atleast_1d(similarity),
        }
        if self.lpips:
            shown = [x.float().expand(-1, 3, -1, -1) / 127.5 - 1 for x in (images, truth)]
            with torch.no_grad():
                values["lpips"] = self.network(*shown).flatten().double()
        return values

    def describe(self) -> dict[str, str]:
        """The measures in words."""
        width, sigma = ssim_window(self.size)
        facts = {
            "psnr": "decibels, mean over images; of uint8 images with a range of 255",
            "ssim": f"mean over images; of uint8 images with a range of 255, in a Gaussian window of {width} pixels "
            f"with standard deviation {sigma:.3g}",
        }
        return facts | ({"lpips": f"mean over images; network {self.lpips}, version 0.1"} if self.lpips else {})
