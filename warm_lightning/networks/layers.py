"""Layers of DDPM++ and NCSN++: initialised linear maps, convolutions that resample, group norm.

Architectures: Song et al. 2021, "Score-based generative modeling through SDEs", as configured by Karras
et al. 2022 (EDM). Feature maps are [B, C, H, W].
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warm_lightning.errors import check


def initialise(layer: nn.Linear | nn.Conv2d, scale: float = 1.0) -> None:
    """Xavier-uniform weights times `scale`, fan-in and fan-out counted over the kernel; biases zero."""
    nn.init.xavier_uniform_(layer.weight, gain=scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Linear(nn.Linear):
    """A linear map with the initialisation above."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        initialise(self)


class Conv2d(nn.Conv2d):
    """A convolution with an odd kernel that keeps the resolution, with the initialisation above."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, scale: float = 1.0) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        initialise(self, scale)


class ResamplingConv2d(Conv2d):
    """A convolution that first resamples its input by a factor of two with a separable low-pass filter.

    Args:
        taps: the one-dimensional filter, of even length; normalised here.
    """

    resample_filter: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel: int, taps: Sequence[int]) -> None:
        super().__init__(in_channels, out_channels, kernel)
        filter_1d = torch.tensor(taps, dtype=torch.get_default_dtype())
        filter_2d = torch.outer(filter_1d, filter_1d)
        self.register_buffer("resample_filter", (filter_2d / filter_2d.sum())[None, None])
        self.box = list(taps) == [1, 1]
        self.margin = (len(taps) - 1) // 2

    def depthwise(self, channels: int) -> Tensor:
        """The filter once for each channel: [channels, 1, L, L]."""
        return self.resample_filter.expand(channels, -1, -1, -1)


class DownConv2d(ResamplingConv2d):
    """Halves the resolution, then convolves: [B, C, H, W] → [B, C', H/2, W/2]."""

    def forward(self, x: Tensor) -> Tensor:
        if self.box:  # the same numbers as the filter [1, 1], several times faster
            return super().forward(F.avg_pool2d(x, 2))
        channels = x.shape[1]
        x = F.conv2d(x, self.depthwise(channels), stride=2, padding=self.margin, groups=channels)
        return super().forward(x)


class UpConv2d(ResamplingConv2d):
    """Doubles the resolution, then convolves: [B, C, H, W] → [B, C', 2H, 2W]."""

    def forward(self, x: Tensor) -> Tensor:
        if self.box:
            return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))
        channels = x.shape[1]
        weight = 4 * self.depthwise(channels)
        x = F.conv_transpose2d(x, weight, stride=2, padding=self.margin, groups=channels)
        return super().forward(x)


class ConvDown2d(ResamplingConv2d):
    """Convolves, then halves the resolution: NCSN++'s path of the auxiliary image.

    The convolution's result is filtered with what lies just outside the image, so the convolution is
    padded for both and the filter not at all; the bias comes last, so that no border sees it filtered.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=self.kernel_size[0] // 2 + self.margin)
        channels = x.shape[1]
        x = F.conv2d(x, self.depthwise(channels), stride=2, groups=channels)
        return x + self.bias[:, None, None] if self.bias is not None else x


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """`F.dropout`, drawn several times faster on a CPU; from the global generator there too.

    Torch's Bernoulli draws serially, one number an element, which is a tenth of a training step on two
    cores. Here one 64-bit number serves four elements: p is rounded to a multiple of 2⁻¹⁶, and what is
    kept is divided by exactly its probability.
    """
    if not training or p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    dropped = min(round(p * 2**16), 2**16 - 1)  # of the 2¹⁶ values of 16 bits
    bits = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64).random_(-(2**63), None)
    # In floating point throughout, in x's order in memory: booleans and gathers are slow.
    kept = bits.view(torch.int16)[: x.numel()].as_strided(x.shape, x.stride())
    mask = kept.to(torch.promote_types(x.dtype, torch.float32)).ge_(dropped - 2**15)
    return x * mask.mul_(2**16 / (2**16 - dropped)).to(x.dtype)


class GroupNorm(nn.GroupNorm):
    """Group normalisation with min(32, channels // 4) groups and eps 1e-6."""

    def __init__(self, channels: int) -> None:
        groups = min(32, channels // 4)
        check(
            groups > 0 and channels % groups == 0,
            f"{channels} channels do not divide into {groups} groups for normalisation: choose "
            f"model_channels a multiple of 4, and of 32 above 128",
        )
        super().__init__(groups, channels, eps=1e-6)
