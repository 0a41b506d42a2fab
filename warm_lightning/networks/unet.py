"""The U-Nets DDPM++ and NCSN++ (Song et al. 2021) as EDM configures them (Karras et al. 2022).

One class; the two differ by declared things, and DDPM (see `ddpm`) by some methods. Names of submodules are
those of EDM's checkpoints.
"""

from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from warm_lightning.errors import check
from warm_lightning.networks.base import Network
from warm_lightning.networks.layers import (
    EDM,
    AttentionBlock,
    Conv2d,
    ConvDown2d,
    DownConv2d,
    Embedding,
    FourierEmbedding,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    ResidualBlock,
    Style,
    UpConv2d,
    embed_levels,
)


class UNet(Network):
    """What DDPM, DDPM++ and NCSN++ share: encoder, decoder, conditioning on noise, blur, class, augmentation.

    The blur level is embedded without parameters (`embed_levels`), so a network with one branch has
    exactly the parameters of the published one, and each further branch adds only its part of the output convolution.

    Args:
        branches: number of output images.
        resolution: height and width of the images; a multiple of 2 ** (number of levels - 1).
        image_channels: channels of the images.
        label_dim: number of classes, 0 for none.
        augment_dim: length of the augmentation vector, 0 for none.
        model_channels: width of a level whose multiplier is 1.
        channel_mult: width multiplier of each level, the full resolution first.
        num_blocks: residual blocks in a level of the encoder; the decoder has one more.
        attn_resolutions: resolutions with self-attention; those that the network does not have are ignored.
        channels_per_head: width of an attention head; None for one head.
        dropout: probability in every residual block.
        activation_checkpointing: whether to compute every block again in the backward pass rather than keep what
            is inside it: about a third more time for a fraction of the memory, and the same numbers.

    Raises:
        UserError: sizes that do not fit together.
    """

    embedding: ClassVar[type[Embedding]]
    """Embedding of c_noise and c_blur."""
    embedding_mult: ClassVar[int]
    """Channels of that embedding, in units of model_channels."""
    resample_filter: ClassVar[tuple[int, ...]]
    """Filter for down- and upsampling."""
    auxiliary: ClassVar[bool]
    """Whether each level of the encoder is also given the downsampled input."""
    style: ClassVar[Style] = EDM
    """Of the residual branches."""

    def __init__(
        self,
        branches: int,
        *,
        resolution: int,
        image_channels: int = 3,
        label_dim: int = 0,
        augment_dim: int = 9,
        model_channels: int = 128,
        channel_mult: tuple[int, ...] = (2, 2, 2),
        num_blocks: int = 4,
        attn_resolutions: tuple[int, ...] = (16,),
        channels_per_head: int | None = None,
        dropout: float = 0.1,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__(branches, resolution, image_channels, label_dim, augment_dim)
        check(num_blocks >= 1, f"num_blocks must be at least 1, not {num_blocks}")
        check(0 <= dropout < 1, f"dropout must be in [0, 1), not {dropout}")
        check(
            len(channel_mult) >= 1 and min(channel_mult) >= 1,
            f"channel_mult must hold a positive multiplier for each level, not {tuple(channel_mult)}",
        )
        factor = 2 ** (len(channel_mult) - 1)
        check(
            resolution % factor == 0,
            f"resolution {resolution} is not a multiple of {factor}, which the {len(channel_mult)} levels "
            f"of channel_mult {tuple(channel_mult)} need: remove levels",
        )
        self.model_channels = model_channels
        self.num_blocks = num_blocks
        self.attn_resolutions = tuple(attn_resolutions)
        self.channels_per_head = channels_per_head
        self.dropout = dropout
        self.activation_checkpointing = activation_checkpointing
        self.widths = {resolution >> i: model_channels * mult for i, mult in enumerate(channel_mult)}

        self.emb_channels = 4 * model_channels
        self.map_noise = self.embedding(self.embedding_mult * model_channels)
        channels = self.map_noise.channels
        if label_dim:
            self.map_label = Linear(label_dim, channels)
        if augment_dim:
            self.map_augment = Linear(augment_dim, channels, bias=False)
        self.map_layer0 = Linear(channels, self.emb_channels)
        self.map_layer1 = Linear(self.emb_channels, self.emb_channels)

        kept = self._build_encoder()
        self._build_decoder(kept)

    def _build_encoder(self) -> list[int]:
        """Fills `enc`; returns the widths of the feature maps that the decoder takes up, in order."""
        self.enc = nn.ModuleDict()
        width, auxiliary_width = self.model_channels, self.image_channels
        kept = []
        for r, level_width in self.widths.items():
            if r == self.resolution:
                self.enc[f"{r}x{r}_conv"] = Conv2d(self.image_channels, width, 3)
            else:
                self.enc[f"{r}x{r}_down"] = self._down(width)
                if self.auxiliary:
                    layer = ConvDown2d(auxiliary_width, width, 3, self.resample_filter)
                    self.enc[f"{r}x{r}_aux_residual"] = layer
                    auxiliary_width = width
            kept.append(width)
            for i in range(self.num_blocks):
                attention = r in self.attn_resolutions
                self.enc[f"{r}x{r}_block{i}"] = self._block(width, level_width, attention)
                width = level_width
                kept.append(width)
        return kept

    def _build_decoder(self, kept: list[int]) -> None:
        """Fills `dec`, given the widths of the feature maps kept by the encoder."""
        self.dec = nn.ModuleDict()
        lowest = min(self.widths)
        width = self.widths[lowest]
        for r, level_width in reversed(self.widths.items()):
            if r == lowest:
                self.dec[f"{r}x{r}_in0"] = self._block(width, width, attention=True)
                self.dec[f"{r}x{r}_in1"] = self._block(width, width)
            else:
                self.dec[f"{r}x{r}_up"] = self._up(width)
            for i in range(self.num_blocks + 1):
                attention = r in self.attn_resolutions and self._decoder_attends(i)
                self.dec[f"{r}x{r}_block{i}"] = self._block(width + kept.pop(), level_width, attention)
                width = level_width
        r = self.resolution
        self.dec[f"{r}x{r}_aux_norm"] = GroupNorm(width)
        out = Conv2d(width, self.branches * self.image_channels, 3, scale=self.style.last)
        self.dec[f"{r}x{r}_aux_conv"] = out

    def _down(self, width: int) -> nn.Module:
        """What halves the resolution; called with feature maps and the embedding."""
        return self._block(width, width, resample=partial(DownConv2d, taps=self.resample_filter))

    def _up(self, width: int) -> nn.Module:
        """What doubles the resolution; called with feature maps and the embedding."""
        return self._block(width, width, resample=partial(UpConv2d, taps=self.resample_filter))

    def _decoder_attends(self, i: int) -> bool:
        """Whether block i of a decoder's level has attention, where the encoder's blocks of that level have."""
        return i == self.num_blocks

    def _block(
        self, inputs: int, outputs: int, attention: bool = False, resample: partial | None = None
    ) -> ResidualBlock:
        if not attention:
            return ResidualBlock(inputs, outputs, self.emb_channels, self.dropout, self.style, resample)
        per_head = self.channels_per_head or outputs
        check(
            per_head > 0 and outputs % per_head == 0,
            f"channels_per_head {per_head} does not divide the {outputs} channels of a level with attention",
        )
        return AttentionBlock(inputs, outputs, self.emb_channels, self.dropout, outputs // per_head, self.style)

    def embed(
        self,
        c_noise: Tensor,
        c_blur: Tensor | None = None,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """The conditioning vector of every block; see `forward` for the arguments. [B, 4·model_channels]."""
        emb = embed_levels(self.map_noise, c_noise, c_blur).to(self.map_layer0.weight.dtype)
        one_hot = self.vector("class_labels", class_labels, self.label_dim, emb)
        augmentation = self.vector("augment_labels", augment_labels, self.augment_dim, emb)
        if self.label_dim:
            emb = emb + self.map_label(one_hot * self.label_dim**0.5)
        if self.augment_dim:
            emb = emb + self.map_augment(augmentation)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        c_blur: Tensor | None = None,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        self.check_images(x)
        emb = self.embed(c_noise, c_blur, class_labels, augment_labels)
        x = self._decode(self._encode(x, emb), emb)
        return x.unflatten(1, (self.branches, self.image_channels))

    def _run(self, block: nn.Module, x: Tensor, emb: Tensor) -> Tensor:
        """A block of the encoder or decoder."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            # Without reentrance it composes with distributed training; dropout draws the same bits again.
            return checkpoint(block, x, emb, use_reentrant=False, preserve_rng_state=True)
        return block(x, emb)

    def _encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """All feature maps that the decoder takes up, in order; the last one is where it starts."""
        auxiliary = x
        kept: list[Tensor] = []
        for r in self.widths:
            if r == self.resolution:
                x = self.enc[f"{r}x{r}_conv"](x)
            else:
                x = self._run(self.enc[f"{r}x{r}_down"], x, emb)
                if self.auxiliary:
                    x = auxiliary = self.style.join(x, self.enc[f"{r}x{r}_aux_residual"](auxiliary))
            kept.append(x)
            for i in range(self.num_blocks):
                x = self._run(self.enc[f"{r}x{r}_block{i}"], x, emb)
                kept.append(x)
        return kept

    def _decode(self, kept: list[Tensor], emb: Tensor) -> Tensor:
        """[B, branches·image_channels, H, W]."""
        x = kept[-1]
        for r in reversed(self.widths):
            if r == min(self.widths):
                x = self._run(self.dec[f"{r}x{r}_in0"], x, emb)
                x = self._run(self.dec[f"{r}x{r}_in1"], x, emb)
            else:
                x = self._run(self.dec[f"{r}x{r}_up"], x, emb)
            for i in range(self.num_blocks + 1):
                x = self._run(self.dec[f"{r}x{r}_block{i}"], torch.cat([x, kept.pop()], dim=1), emb)
        r = self.resolution
        return self.dec[f"{r}x{r}_aux_conv"](F.silu(self.dec[f"{r}x{r}_aux_norm"](x)))


class DDPMpp(UNet):
    """DDPM++: sinusoidal embedding, 2 × 2 mean and nearest-neighbour resampling."""

    embedding = PositionalEmbedding
    embedding_mult = 1
    resample_filter = (1, 1)
    auxiliary = False


class NCSNpp(UNet):
    """NCSN++: random Fourier embedding, resampling with [1, 3, 3, 1], the input again at every level."""

    embedding = FourierEmbedding
    embedding_mult = 2
    time_scale = 1e-3  # its features are made for c_noise about 1
    resample_filter = (1, 3, 3, 1)
    auxiliary = True


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
