"""The residual block of DDPM++ and NCSN++, with and without self-attention."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from warm_lightning.networks.layers import Conv2d, GroupNorm, Linear, dropout

HALF_VARIANCE = 0.5**0.5
"""A sum of two signals of equal variance is scaled by this to keep that variance."""

ALMOST_ZERO = 1e-5
"""Initial scale of the last layer of every residual branch: a fresh network is almost the identity."""

Conv = Callable[[int, int, int], nn.Module]
"""(in_channels, out_channels, kernel) → convolution, which may resample."""


class ResidualBlock(nn.Module):
    """Two convolutions, the second one shifted by the embedding, beside a skip (Song et al. 2021).

    Args:
        in_channels, out_channels: widths of the input and of the output.
        embedding_channels: width of the conditioning vector.
        dropout: probability before the second convolution.
        resample: makes `conv0` and `skip`; None keeps the resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float,
        resample: Conv | None = None,
    ) -> None:
        super().__init__()
        conv = resample or Conv2d
        self.dropout = dropout
        self.norm0 = GroupNorm(in_channels)
        self.conv0 = conv(in_channels, out_channels, 3)
        self.affine = Linear(embedding_channels, out_channels)
        self.norm1 = GroupNorm(out_channels)
        self.conv1 = Conv2d(out_channels, out_channels, 3, scale=ALMOST_ZERO)
        same = resample is None and in_channels == out_channels
        self.skip = nn.Identity() if same else conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[B, in, H, W], [B, embedding_channels] → [B, out, H', W']."""
        h = self.conv0(F.silu(self.norm0(x)))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = self.conv1(dropout(h, self.dropout, self.training))
        return (h + self.skip(x)) * HALF_VARIANCE


class AttentionBlock(ResidualBlock):
    """A residual block followed by self-attention over all pixels; `heads` divides `out_channels`."""

    def __init__(
        self, in_channels: int, out_channels: int, embedding_channels: int, dropout: float, heads: int
    ) -> None:
        super().__init__(in_channels, out_channels, embedding_channels, dropout)
        self.heads = heads
        self.norm2 = GroupNorm(out_channels)
        self.qkv = Conv2d(out_channels, 3 * out_channels, 1, scale=0.2**0.5)
        self.proj = Conv2d(out_channels, out_channels, 1, scale=ALMOST_ZERO)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[B, in, H, W], [B, embedding_channels] → [B, out, H, W]."""
        x = super().forward(x, emb)
        return (x + self.proj(self.attend(self.qkv(self.norm2(x))))) * HALF_VARIANCE

    def attend(self, qkv: Tensor) -> Tensor:
        """[B, 3C, H, W], channels laid out as (head, channel, q k v) → [B, C, H, W]."""
        batch, _, height, width = qkv.shape
        qkv = qkv.reshape(batch, self.heads, -1, 3, height * width)  # [B, heads, C/heads, 3, HW]
        # Three of [B, heads, HW, C/heads], contiguous as the fused kernels of attention demand.
        q, k, v = qkv.permute(3, 0, 1, 4, 2).contiguous().unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        return attended.transpose(2, 3).reshape(batch, -1, height, width)
