"""The U-Net of DDPM (Ho et al. 2020, Appendix B), in the vocabulary of the newer ones."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from warm_lightning.networks.blocks import Style
from warm_lightning.networks.embeddings import PositionalEmbedding
from warm_lightning.networks.layers import Conv2d
from warm_lightning.networks.unet import UNet


class StridedConv2d(Conv2d):
    """Halves the resolution in one convolution, padded on the right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3)
        self.stride, self.padding = (2, 2), (0, 0)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """[B, C, H, W] → [B, C, H/2, W/2]; the embedding is not used."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class NearestConv2d(Conv2d):
    """Doubles the resolution by nearest neighbours, then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """[B, C, H, W] → [B, C, 2H, 2W]; the embedding is not used."""
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


class DDPM(UNet):
    """DDPM's network: single convolutions change the resolution, sums are plain, attention has one head.

    With one branch and neither classes nor augmentation it has the 35,746,307 parameters of the published model
    of CIFAR-10. The arguments are those of `UNet`; the defaults are that model's, with room to be told of
    augmentation. Fresh residual branches and outputs are zero.
    """

    embedding = PositionalEmbedding
    embedding_mult = 1
    auxiliary = False
    # Queries, keys and values are drawn as three layers of as many channels each: the fan-out of one, not of all.
    style = Style(gain=1.0, last=0.0, qkv=2**0.5)

    def __init__(
        self, branches: int, *, channel_mult: tuple[int, ...] = (1, 2, 2, 2), num_blocks: int = 2, **kwargs: Any
    ) -> None:
        super().__init__(branches, channel_mult=channel_mult, num_blocks=num_blocks, **kwargs)

    def _down(self, width: int) -> StridedConv2d:
        return StridedConv2d(width)

    def _up(self, width: int) -> NearestConv2d:
        return NearestConv2d(width)

    def _decoder_attends(self, i: int) -> bool:
        return True
