"""The U-Nets DDPM++ and NCSN++ (Song et al. 2021), as EDM configures them (Karras et al. 2022), and that of DDPM.

All are subclasses of one U-Net: DDPM++ and NCSN++ set class attributes, and DDPM also replaces some methods. Submodules
have the names of EDM's checkpoints.
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
    EDM_SCALES,
    AttentionBlock,
    BranchScales,
    Conv2d,
    ConvDown2d,
    DownConv2d,
    Embedding,
    FourierEmbedding,
    GroupNorm,
    Linear,
    PositionalEmbedding,
    ResidualBlock,
    UpConv2d,
    embed_levels,
)

# ---- the common U-Net


class UNet(Network):
    """The U-Net of DDPM, DDPM++ and NCSN++: encoder, decoder, conditioning on noise, blur, class and augmentation.

    The blur level is embedded without parameters (`embed_levels`), so that a network with one branch has exactly the
    parameters of the published one; each further branch adds only its part of the output convolution.

    Args:
        branches: number of output images.
        resolution: height and width of the images; a multiple of 2 ** (number of levels - 1).
        image_channels: channels of the images.
        label_dim: number of classes, 0 for none.
        augment_dim: length of the augmentation vector, 0 for none.
        model_channels: width of a level whose multiplier is 1.
        channel_mult: width multiplier of each level, the full resolution first.
        num_blocks: residual blocks in a level of the encoder; the decoder has one more.
        attn_resolutions: resolutions with self-attention; resolutions that the network does not have are ignored.
        channels_per_head: width of an attention head; None for one head.
        dropout: probability in every residual block.
        activation_checkpointing: whether to compute every block again in the backward pass instead of storing its
            activations. This takes about a third more time and a fraction of the memory, with equal results.

    Raises:
        UserError: the sizes do not fit together.
    """

    embedding: ClassVar[type[Embedding]]
    """The embedding of c_noise and c_blur."""
    embedding_mult: ClassVar[int]
    """Number of channels of the embedding, in units of model_channels."""
    resample_filter: ClassVar[tuple[int, ...]]
    """The filter for down- and upsampling."""
    auxiliary: ClassVar[bool]
    """Whether each level of the encoder also gets the downsampled input image."""
    scales: ClassVar[BranchScales] = EDM_SCALES
    """The initialisation and sum of residual branches."""

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
            f"channel_mult must have a positive multiplier for each level, not {tuple(channel_mult)}",
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

        skips = self._build_encoder()
        self._build_decoder(skips)

    def _build_encoder(self) -> list[int]:
        """Build `enc`; returns the widths of the feature maps with skip connections to the decoder, in order."""
        self.enc = nn.ModuleDict()
        width, auxiliary_width = self.model_channels, self.image_channels
        skips = []
        for r, level_width in self.widths.items():
            if r == self.resolution:
                self.enc[f"{r}x{r}_conv"] = Conv2d(self.image_channels, width, 3)
            else:
                self.enc[f"{r}x{r}_down"] = self._down(width)
                if self.auxiliary:
                    layer = ConvDown2d(auxiliary_width, width, 3, self.resample_filter)
                    self.enc[f"{r}x{r}_aux_residual"] = layer
                    auxiliary_width = width
            skips.append(width)
            for i in range(self.num_blocks):
                attention = r in self.attn_resolutions
                self.enc[f"{r}x{r}_block{i}"] = self._block(width, level_width, attention)
                width = level_width
                skips.append(width)
        return skips

    def _build_decoder(self, skips: list[int]) -> None:
        """Build `dec`, given the widths of the feature maps with skip connections from the encoder."""
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
                self.dec[f"{r}x{r}_block{i}"] = self._block(width + skips.pop(), level_width, attention)
                width = level_width
        r = self.resolution
        self.dec[f"{r}x{r}_aux_norm"] = GroupNorm(width)
        out = Conv2d(width, self.branches * self.image_channels, 3, scale=self.scales.last_weights)
        self.dec[f"{r}x{r}_aux_conv"] = out

    def _down(self, width: int) -> nn.Module:
        """A layer that halves the resolution; it is called with feature maps and the embedding."""
        return self._block(width, width, resample=partial(DownConv2d, taps=self.resample_filter))

    def _up(self, width: int) -> nn.Module:
        """A layer that doubles the resolution; it is called with feature maps and the embedding."""
        return self._block(width, width, resample=partial(UpConv2d, taps=self.resample_filter))

    def _decoder_attends(self, i: int) -> bool:
        """Whether block i of a level of the decoder has attention, if its resolution is in `attn_resolutions`."""
        return i == self.num_blocks

    def _block(
        self, inputs: int, outputs: int, attention: bool = False, resample: partial | None = None
    ) -> ResidualBlock:
        if not attention:
            return ResidualBlock(inputs, outputs, self.emb_channels, self.dropout, self.scales, resample)
        per_head = self.channels_per_head or outputs
        check(
            per_head > 0 and outputs % per_head == 0,
            f"channels_per_head {per_head} does not divide the {outputs} channels of a level with attention",
        )
        return AttentionBlock(inputs, outputs, self.emb_channels, self.dropout, outputs // per_head, self.scales)

    def embed(
        self,
        c_noise: Tensor,
        c_blur: Tensor | None = None,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """The conditioning vector of every block, [B, 4·model_channels]; see `Network.forward` for the arguments."""
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
        """Call a block of the encoder or decoder, with activation checkpointing if that is on."""
        if self.activation_checkpointing and torch.is_grad_enabled():
            # The non-reentrant form works with distributed training; dropout draws the same bits again.
            return checkpoint(block, x, emb, use_reentrant=False, preserve_rng_state=True)
        return block(x, emb)

    def _encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """The feature maps with skip connections to the decoder, in order; the decoder starts from the last one."""
        auxiliary = x
        skips: list[Tensor] = []
        for r in self.widths:
            if r == self.resolution:
                x = self.enc[f"{r}x{r}_conv"](x)
            else:
                x = self._run(self.enc[f"{r}x{r}_down"], x, emb)
                if self.auxiliary:
                    x = auxiliary = self.scales.join(x, self.enc[f"{r}x{r}_aux_residual"](auxiliary))
            skips.append(x)
            for i in range(self.num_blocks):
                x = self._run(self.enc[f"{r}x{r}_block{i}"], x, emb)
                skips.append(x)
        return skips

    def _decode(self, skips: list[Tensor], emb: Tensor) -> Tensor:
        """The output [B, branches·image_channels, H, W] of the feature maps of the encoder."""
        x = skips[-1]
        for r in reversed(self.widths):
            if r == min(self.widths):
                x = self._run(self.dec[f"{r}x{r}_in0"], x, emb)
                x = self._run(self.dec[f"{r}x{r}_in1"], x, emb)
            else:
                x = self._run(self.dec[f"{r}x{r}_up"], x, emb)
            for i in range(self.num_blocks + 1):
                x = self._run(self.dec[f"{r}x{r}_block{i}"], torch.cat([x, skips.pop()], dim=1), emb)
        r = self.resolution
        return self.dec[f"{r}x{r}_aux_conv"](F.silu(self.dec[f"{r}x{r}_aux_norm"](x)))


# ---- DDPM++ and NCSN++


class DDPMpp(UNet):
    """DDPM++: sinusoidal embedding, downsampling by 2 × 2 means, nearest-neighbour upsampling."""

    embedding = PositionalEmbedding
    embedding_mult = 1
    resample_filter = (1, 1)
    auxiliary = False


class NCSNpp(UNet):
    """NCSN++: random Fourier embedding, resampling with [1, 3, 3, 1], and the input image again at every level."""

    embedding = FourierEmbedding
    embedding_mult = 2
    time_scale = 1e-3  # its embedding is made for c_noise of about 1
    resample_filter = (1, 3, 3, 1)
    auxiliary = True


# ---- DDPM


class StridedConv2d(Conv2d):
    """A convolution that halves the resolution, padded on the right and below."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3)
        self.stride, self.padding = (2, 2), (0, 0)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """Compute [B, C, H, W] → [B, C, H/2, W/2]; the embedding is not used."""
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class NearestConv2d(Conv2d):
    """A layer that doubles the resolution by nearest neighbours and then convolves."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3)

    def forward(self, x: Tensor, emb: Tensor | None = None) -> Tensor:
        """Compute [B, C, H, W] → [B, C, 2H, 2W]; the embedding is not used."""
        return super().forward(F.interpolate(x, scale_factor=2, mode="nearest"))


class DDPM(UNet):
    """DDPM's network: single convolutions change the resolution, sums are not scaled, attention has one head.

    With one branch and neither classes nor augmentation it has the 35,746,307 parameters of the published model
    for CIFAR-10. It takes the arguments of `UNet`; the defaults are those of the published model, plus the
    conditioning on augmentation. Residual branches and outputs of a new network are zero.
    """

    embedding = PositionalEmbedding
    embedding_mult = 1
    auxiliary = False
    # DDPM initialises queries, keys and values as three layers, whose fan-out is a third of that of one layer.
    scales = BranchScales(sum_scale=1.0, last_weights=0.0, qkv_weights=2**0.5)

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
