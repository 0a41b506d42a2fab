"""What the suite asks of a network: images and conditioning signals in, raw output branches out."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from warm_lightning.errors import check


class Network(nn.Module, ABC):
    """A network with any number of output branches; it knows no diffusion.

    What the branches mean is a parameterization's business, and scaling of inputs and outputs a
    preconditioning's. A new network subclasses this, calls `super().__init__` and writes `forward`.

    Attributes:
        branches: number of images that the network puts out for each input image.
        resolution: height and width of the images in pixels.
        image_channels: channels of the images.
        label_dim: number of classes; 0 for an unconditional network.
        augment_dim: length of the vector that tells the network how an image was augmented; 0 for none.
        time_scale: what a time from 0 to 1,000, as DDPM counts it, is to be multiplied with to suit the embedding
            of c_noise.
    """

    time_scale: float = 1.0

    def __init__(self, branches: int, resolution: int, image_channels: int, label_dim: int, augment_dim: int) -> None:
        super().__init__()
        sizes = {"branches": branches, "resolution": resolution, "image_channels": image_channels}
        for name, size in sizes.items():
            check(size >= 1, f"network {name} must be at least 1, not {size}")
        for name, size in {"label_dim": label_dim, "augment_dim": augment_dim}.items():
            check(size >= 0, f"network {name} must be 0 (none) or more, not {size}")
        self.branches = branches
        self.resolution = resolution
        self.image_channels = image_channels
        self.label_dim = label_dim
        self.augment_dim = augment_dim

    @abstractmethod
    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        c_blur: Tensor | None = None,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Raw outputs of all branches.

        There is no label dropout in here: to train for guidance, the training step draws from its own
        generator which images lose their class, and zeroes their one-hot rows.

        Args:
            x: images, scaled to unit variance; [B, C, H, W].
            c_noise: noise conditioning, one scalar an image; [B]. Keep it in float32 or better.
            c_blur: blur conditioning, one scalar ≥ 0 an image; [B]. None is the same as zeros: no blur.
            class_labels: one-hot classes, zeros for "no class"; [B, label_dim]. None is the same as zeros.
            augment_labels: how each image was augmented, zeros for "not at all"; [B, augment_dim]. None
                is the same as zeros.

        Returns:
            [B, branches, C, H, W].

        Raises:
            UserError: images or labels whose shape is not what the network was built for.
        """

    def vector(self, name: str, labels: Tensor | None, width: int, like: Tensor) -> Tensor:
        """`labels`, or zeros for None, as [B, width] in the dtype and on the device of `like` [B, …]."""
        if labels is None:
            return like.new_zeros(like.shape[0], width)
        check(
            labels.shape == (like.shape[0], width),
            f"{name} have shape {tuple(labels.shape)}, but the network takes {(like.shape[0], width)}: "
            f"match the network's dimensions to the data and the augmentation",
        )
        return labels.to(like)

    def check_images(self, x: Tensor) -> None:
        """Raise UserError unless `x` is [B, image_channels, resolution, resolution]."""
        expected = (self.image_channels, self.resolution, self.resolution)
        check(
            x.shape[1:] == expected,
            f"the network was built for images of (channels, height, width) {expected} and met "
            f"{tuple(x.shape[1:])}: set its resolution and image_channels to those of the data",
        )
