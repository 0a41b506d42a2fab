"""Embeddings of one scalar per image into a vector: sinusoidal (DDPM++) and random Fourier (NCSN++)."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from warm_lightning.errors import check


class Embedding(nn.Module, ABC):
    """[sin, cos] of a scalar at `channels`/2 frequencies; a subclass says which.

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
        """Radians per unit of the scalar; [channels/2] in the dtype and on the device of `c`."""

    def forward(self, c: Tensor) -> Tensor:
        """[B] → [B, channels], in float32 or better."""
        c = c.to(torch.promote_types(c.dtype, torch.float32))
        phase = c[:, None] * self.angular_frequencies(c)
        return torch.cat([phase.sin(), phase.cos()], dim=1)


class PositionalEmbedding(Embedding):
    """Frequencies from 1 down to 1/10000, both included, evenly spaced in their logarithm (DDPM++)."""

    def angular_frequencies(self, c: Tensor) -> Tensor:
        half = self.channels // 2
        exponent = torch.arange(half, dtype=c.dtype, device=c.device) / (half - 1)
        return (1 / 10000) ** exponent


class FourierEmbedding(Embedding):
    """Random frequencies 2π·16·N(0, 1), drawn once and never trained (NCSN++; Tancik et al. 2020)."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def angular_frequencies(self, c: Tensor) -> Tensor:
        return 2 * math.pi * self.freqs.to(c.dtype)


def embed_levels(embedding: Embedding, c_noise: Tensor, c_blur: Tensor | None) -> Tensor:
    """The two-signal conditioning of Warm Diffusion (Fig. 7) without parameters: [B], [B] → [B, channels].

    PE(c_noise) + reversed(PE(c_blur) - PE(0)), the second with its channels reversed. It is PE(c_noise)
    bit for bit where c_blur = 0, so a hot model is an EDM model; and because the slow frequencies of one
    signal meet the fast ones of the other, no two pairs (c_noise, c_blur) coincide.
    """
    noise = embedding(c_noise)
    if c_blur is None:
        return noise
    return noise + (embedding(c_blur) - embedding(torch.zeros_like(c_blur))).flip(1)
