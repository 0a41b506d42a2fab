"""The parts of DDPM, DDPM++ and NCSN++: layers, embeddings of noise and blur, residual and attention blocks.

Architectures: Song et al. 2021, "Score-based generative modeling through SDEs", as configured by Karras
et al. 2022 (EDM). Feature maps are [B, C, H, W].
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warm_lightning.errors import check

# ---- layers


def initialise(layer: nn.Linear | nn.Conv2d, scale: float = 1.0) -> None:
    """Set Xavier-uniform weights times `scale`, with fan-in and fan-out counted over the kernel, and zero biases."""
    nn.init.xavier_uniform_(layer.weight, gain=scale)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Linear(nn.Linear):
    """A linear map initialised by `initialise`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        initialise(self)


class Conv2d(nn.Conv2d):
    """A convolution with an odd kernel that keeps the resolution, initialised by `initialise`."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, scale: float = 1.0) -> None:
        super().__init__(in_channels, out_channels, kernel, padding=kernel // 2)
        initialise(self, scale)


class ResamplingConv2d(Conv2d):
    """A convolution that first resamples its input by a factor of two with a separable low-pass filter.

    Args:
        taps: the one-dimensional filter, of even length; it is normalised to sum 1.
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
        """The filter repeated for each channel, [channels, 1, L, L], for a depthwise convolution."""
        return self.resample_filter.expand(channels, -1, -1, -1)


class DownConv2d(ResamplingConv2d):
    """A layer that halves the resolution and then convolves: [B, C, H, W] → [B, C', H/2, W/2]."""

    def forward(self, x: Tensor) -> Tensor:
        if self.box:  # equal to the filter [1, 1], and several times faster
            return super().forward(F.avg_pool2d(x, 2))
        channels = x.shape[1]
        x = F.conv2d(x, self.depthwise(channels), stride=2, padding=self.margin, groups=channels)
        return super().forward(x)


class UpConv2d(ResamplingConv2d):
    """A layer that doubles the resolution and then convolves: [B, C, H, W] → [B, C', 2H, 2W]."""

    def forward(self, x: Tensor) -> Tensor:
        if self.box:
            return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))
        channels = x.shape[1]
        weight = 4 * self.depthwise(channels)
        x = F.conv_transpose2d(x, weight, stride=2, padding=self.margin, groups=channels)
        return super().forward(x)


class ConvDown2d(ResamplingConv2d):
    """A layer that convolves and then halves the resolution, for NCSN++'s path of the auxiliary image.

    The filter also uses results of the convolution just outside of the image. The convolution is therefore padded for
    both, and the filter is not padded. The bias is added last, so that the zero padding does not affect it at borders.
    """

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(x, self.weight, padding=self.kernel_size[0] // 2 + self.margin)
        channels = x.shape[1]
        x = F.conv2d(x, self.depthwise(channels), stride=2, groups=channels)
        return x + self.bias[:, None, None] if self.bias is not None else x


def dropout(x: Tensor, p: float, training: bool) -> Tensor:
    """A replacement of `F.dropout` that draws several times faster on a CPU, also from the global generator.

    PyTorch's Bernoulli draws serially, one number per element, which is a tenth of a training step on two
    cores. Here one 64-bit number serves four elements: p is rounded to a multiple of 2⁻¹⁶, and the remaining elements
    are divided by exactly the probability to remain.
    """
    if not training or p == 0 or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.dropout(x, p, training)
    dropped = min(round(p * 2**16), 2**16 - 1)  # of the 2¹⁶ values of 16 bits
    bits = torch.empty(math.ceil(x.numel() / 4), dtype=torch.int64).random_(-(2**63), None)
    # All steps are in floating point and in x's order in memory, since booleans and gathers are slow.
    draws = bits.view(torch.int16)[: x.numel()].as_strided(x.shape, x.stride())
    mask = draws.to(torch.promote_types(x.dtype, torch.float32)).ge_(dropped - 2**15)
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


# ---- embeddings of noise and blur


class Embedding(nn.Module, ABC):
    """The embedding [sin, cos] of a scalar at `channels`/2 frequencies, which a subclass defines.

    Phases reach hundreds of radians, so they are computed in float32 or in the scalar's own dtype,
    whichever is more precise, even in a half-precision network.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        check(
            channels >= 4 and channels % 2 == 0,
            f"an embedding needs an even number of channels, at least 4, not {channels}: set model_channels",
        )
        self.channels = channels

    @abstractmethod
    def angular_frequencies(self, c: Tensor) -> Tensor:
        """The frequencies in radians per unit of the scalar, [channels/2], in the dtype and on the device of `c`."""

    def forward(self, c: Tensor) -> Tensor:
        """Embed scalars [B] as [B, channels], in float32 or better."""
        c = c.to(torch.promote_types(c.dtype, torch.float32))
        phase = c[:, None] * self.angular_frequencies(c)
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class PositionalEmbedding(Embedding):
    """The embedding of DDPM++: frequencies from 1 down to 1/10000, both included, evenly spaced in their logarithm."""

    def angular_frequencies(self, c: Tensor) -> Tensor:
        half = self.channels // 2
        exponent = torch.arange(half, dtype=c.dtype, device=c.device) / (half - 1)
        return (1 / 10000) ** exponent


class FourierEmbedding(Embedding):
    """The embedding of NCSN++ (Tancik et al. 2020): random frequencies 2π·16·N(0, 1), drawn once and not trained."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def angular_frequencies(self, c: Tensor) -> Tensor:
        return 2 * math.pi * self.freqs.to(c.dtype)


def embed_levels(embedding: Embedding, c_noise: Tensor, c_blur: Tensor | None) -> Tensor:
    """The conditioning of Warm Diffusion on noise and blur (Fig. 7), without parameters: [B], [B] → [B, channels].

    It is PE(c_noise) + reversed(PE(c_blur) - PE(0)), where `reversed` reverses the order of channels. For c_blur = 0 it
    is PE(c_noise) bit for bit, so that a hot model is an EDM model. Because the slow frequencies of one signal are
    added to the fast ones of the other, different pairs (c_noise, c_blur) have different embeddings. The paper does not
    say how the two embeddings are combined; this way is ours.
    """
    noise = embedding(c_noise)
    if c_blur is None:
        return noise
    return noise + (embedding(c_blur) - embedding(torch.zeros_like(c_blur))).flip(1)


# ---- blocks

SQRT_HALF = 0.5**0.5
"""The factor that keeps the variance of a sum of two signals of equal variance."""


@dataclass(frozen=True)
class BranchScales:
    """The initialisation of residual branches, and their sum with the skip connection.

    Attributes:
        sum_scale: factor on the sum of a skip connection and a branch.
        last_weights: scale of the initial weights of the last layer of a branch, and of the network.
        qkv_weights: scale of the initial weights of queries, keys and values.
    """

    sum_scale: float
    last_weights: float
    qkv_weights: float

    def join(self, skip: Tensor, branch: Tensor) -> Tensor:
        """The sum of skip connection and branch, times `sum_scale`."""
        joined = skip + branch
        return joined if self.sum_scale == 1 else joined * self.sum_scale


EDM_SCALES = BranchScales(sum_scale=SQRT_HALF, last_weights=1e-5, qkv_weights=0.2**0.5)
"""The scales of DDPM++ and NCSN++: a new network is almost the identity."""

Conv = Callable[[int, int, int], nn.Module]
"""A function (in_channels, out_channels, kernel) → convolution, which may resample."""


class ResidualBlock(nn.Module):
    """A residual block of two convolutions, with the embedding added between them (Song et al. 2021).

    Args:
        in_channels: width of the input.
        out_channels: width of the output.
        embedding_channels: width of the conditioning vector.
        dropout: probability before the second convolution.
        scales: scales of the initial weights and of the sum.
        resample: makes the convolutions `conv0` and `skip`; None keeps the resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float,
        scales: BranchScales = EDM_SCALES,
        resample: Conv | None = None,
    ) -> None:
        super().__init__()
        conv = resample or Conv2d
        self.scales = scales
        self.dropout = dropout
        self.norm0 = GroupNorm(in_channels)
        self.conv0 = conv(in_channels, out_channels, 3)
        self.affine = Linear(embedding_channels, out_channels)
        self.norm1 = GroupNorm(out_channels)
        self.conv1 = Conv2d(out_channels, out_channels, 3, scale=scales.last_weights)
        same = resample is None and in_channels == out_channels
        self.skip = nn.Identity() if same else conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Compute [B, out, H', W'] of x [B, in, H, W] and the embedding [B, embedding_channels]."""
        h = self.conv0(F.silu(self.norm0(x)))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = self.conv1(dropout(h, self.dropout, self.training))
        return self.scales.join(self.skip(x), h)


class AttentionBlock(ResidualBlock):
    """A residual block followed by self-attention over all pixels; `heads` divides `out_channels`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float,
        heads: int,
        scales: BranchScales = EDM_SCALES,
    ) -> None:
        super().__init__(in_channels, out_channels, embedding_channels, dropout, scales)
        self.heads = heads
        self.norm2 = GroupNorm(out_channels)
        self.qkv = Conv2d(out_channels, 3 * out_channels, 1, scale=scales.qkv_weights)
        self.proj = Conv2d(out_channels, out_channels, 1, scale=scales.last_weights)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Compute [B, out, H, W] of x [B, in, H, W] and the embedding [B, embedding_channels]."""
        x = super().forward(x, emb)
        return self.scales.join(x, self.proj(self.attend(self.qkv(self.norm2(x)))))

    def attend(self, qkv: Tensor) -> Tensor:
        """Self-attention [B, 3C, H, W] → [B, C, H, W]; input channels are in the order (head, channel, q k v)."""
        batch, _, height, width = qkv.shape
        qkv = qkv.reshape(batch, self.heads, -1, 3, height * width)  # [B, heads, C/heads, 3, HW]
        # q, k and v are [B, heads, HW, C/heads], contiguous as the fused kernels of attention need them.
        q, k, v = qkv.permute(3, 0, 1, 4, 2).contiguous().unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        return attended.transpose(2, 3).reshape(batch, -1, height, width)
