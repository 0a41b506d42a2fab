"""The base class of networks, which map images and conditioning signals to raw output branches."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from warm_lightning.errors import check


class Network(nn.Module, ABC):
    """The base class of networks, which have any number of output branches.

    A network contains nothing specific to diffusion: the parameterization gives the branches their meaning, and the
    preconditioning scales inputs and outputs. A new network subclasses this, calls `super().__init__` and defines
    `forward`.

    Attributes:
        branches: number of output images for each input image.
        resolution: height and width of the images in pixels.
        image_channels: channels of the images.
        label_dim: number of classes; 0 for an unconditional network.
        augment_dim: length of the vector that describes the augmentation of an image; 0 for none.
        time_scale: factor on a c_noise that is a time from 0 to 1,000 (`Preconditioning.time`), so that it fits the
            network's embedding; 1 for DDPM's, 1e-3 for NCSN++'s.
        can_shard: whether the strategy `fsdp2` can spread the entries of its module lists and dictionaries as blocks.
    """

    time_scale: float = 1.0
    can_shard: bool = True

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
        """Compute the raw outputs of all branches.

        The network has no label dropout: to train for guidance, the training step chooses the images without class
        by its own random generator, and sets their one-hot rows to zero.

        Args:
            x: images times c_in, of about unit variance with EDM's preconditioning; [B, C, H, W].
            c_noise: noise conditioning, one scalar per image; [B]. Keep it in float32 or better.
            c_blur: blur conditioning, one scalar ≥ 0 per image; [B]. None means zeros: no blur.
            class_labels: one-hot classes, zeros for "no class"; [B, label_dim]. None means zeros.
            augment_labels: the augmentation of each image, zeros for none; [B, augment_dim]. None means zeros.

        Returns:
            [B, branches, C, H, W].

        Raises:
            UserError: images or labels do not have the shape that the network was built for.
        """

    def vector(self, name: str, labels: Tensor | None, width: int, like: Tensor) -> Tensor:
        """Check labels [B, width] and convert them to the dtype and device of `like` [B, …]; None gives zeros.

        Raises:
            UserError: the labels have another shape; the message calls them by `name`.
        """
        if labels is None:
            return like.new_zeros(like.shape[0], width)
        check(
            labels.shape == (like.shape[0], width),
            f"{name} have shape {tuple(labels.shape)}, but the network takes {(like.shape[0], width)}: "
            f"match the network's dimensions to the data and the augmentation",
        )
        return labels.to(like)

    def check_images(self, x: Tensor) -> None:
        """Check that `x` is [B, image_channels, resolution, resolution].

        Raises:
            UserError: it has another shape.
        """
        expected = (self.image_channels, self.resolution, self.resolution)
        check(
            x.shape[1:] == expected,
            f"the network was built for images of (channels, height, width) {expected} but got "
            f"{tuple(x.shape[1:])}: set its resolution and image_channels to those of the data",
        )
