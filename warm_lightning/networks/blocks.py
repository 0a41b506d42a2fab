"""The residual block of DDPM, DDPM++ and NCSN++, with and without self-attention."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from warm_lightning.networks.layers import Conv2d, GroupNorm, Linear, dropout

HALF_VARIANCE = 0.5**0.5
"""A sum of two signals of equal variance is scaled by this to keep that variance."""


@dataclass(frozen=True)
class Style:
    """How the residual branches of a network start and join in.

    Attributes:
        gain: of the sum of a skip and a branch.
        last: scale of the initial weights of a branch's last layer, and of the network's.
        qkv: scale of the initial weights from which queries, keys and values come.
    """

    gain: float
    last: float
    qkv: float

    def join(self, skip: Tensor, branch: Tensor) -> Tensor:
        """Their sum, times `gain`."""
        joined = skip + branch
        return joined if self.gain == 1 else joined * self.gain


EDM = Style(gain=HALF_VARIANCE, last=1e-5, qkv=0.2**0.5)
"""DDPM++ and NCSN++: a fresh network is almost the identity."""

Conv = Callable[[int, int, int], nn.Module]
"""(in_channels, out_channels, kernel) → convolution, which may resample."""


class ResidualBlock(nn.Module):
    """Two convolutions, the second one shifted by the embedding, beside a skip (Song et al. 2021).

    Args:
        in_channels, out_channels: widths of the input and of the output.
        embedding_channels: width of the conditioning vector.
        dropout: probability before the second convolution.
        style: initial scales, and of the sum.
        resample: makes `conv0` and `skip`; None keeps the resolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float,
        style: Style = EDM,
        resample: Conv | None = None,
    ) -> None:
        super().__init__()
        conv = resample or Conv2d
        self.style = style
        self.dropout = dropout
        self.norm0 = GroupNorm(in_channels)
        self.conv0 = conv(in_channels, out_channels, 3)
        self.affine = Linear(embedding_channels, out_channels)
        self.norm1 = GroupNorm(out_channels)
        self.conv1 = Conv2d(out_channels, out_channels, 3, scale=style.last)
        same = resample is None and in_channels == out_channels
        self.skip = nn.Identity() if same else conv(in_channels, out_channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[B, in, H, W], [B, embedding_channels] → [B, out, H', W']."""
        h = self.conv0(F.silu(self.norm0(x)))
        h = F.silu(self.norm1(h + self.affine(emb)[:, :, None, None]))
        h = self.conv1(dropout(h, self.dropout, self.training))
        return self.style.join(self.skip(x), h)


class AttentionBlock(ResidualBlock):
    """A residual block followed by self-attention over all pixels; `heads` divides `out_channels`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        dropout: float,
        heads: int,
        style: Style = EDM,
    ) -> None:
        super().__init__(in_channels, out_channels, embedding_channels, dropout, style)
        self.heads = heads
        self.norm2 = GroupNorm(out_channels)
        self.qkv = Conv2d(out_channels, 3 * out_channels, 1, scale=style.qkv)
        self.proj = Conv2d(out_channels, out_channels, 1, scale=style.last)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """[B, in, H, W], [B, embedding_channels] → [B, out, H, W]."""
        x = super().forward(x, emb)
        return self.style.join(x, self.proj(self.attend(self.qkv(self.norm2(x)))))

    def attend(self, qkv: Tensor) -> Tensor:
        """[B, 3C, H, W], channels laid out as (head, channel, q k v) → [B, C, H, W]."""
        batch, _, height, width = qkv.shape
        qkv = qkv.reshape(batch, self.heads, -1, 3, height * width)  # [B, heads, C/heads, 3, HW]
        # Three of [B, heads, HW, C/heads], contiguous as the fused kernels of attention demand.
        q, k, v = qkv.permute(3, 0, 1, 4, 2).contiguous().unbind(0)
        attended = F.scaled_dot_product_attention(q, k, v)
        return attended.transpose(2, 3).reshape(batch, -1, height, width)
