"""The weaker models of autoguidance, which samples are led away from."""

import copy
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from warm_lightning.errors import check
from warm_lightning.learning import Learner
from warm_lightning.parameterizations import Parameterization
from warm_lightning.paths import CheckpointText
from warm_lightning.processes import Process
from warm_lightning.samplers import Sampler
from warm_lightning.types import Weights


class Guided(Protocol):
    """The properties of a model that its guide must have, too."""

    parameterization: Parameterization
    process: Process
    sampler: Sampler

    @property
    def network(self) -> Any: ...
    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    def replaced(self, **changes: Any) -> Any: ...


class Guide(Learner):
    """A weaker model that guidance leads away from: autoguidance (Karras et al. 2024b, Eq. 3).

    It is a smaller model or one of a shorter training, such as an earlier checkpoint of the same run. Its branches mean
    the same, and its process has the same gains; its network and preconditioning are its own. It is read when it is
    first needed.

    Args:
        path: its checkpoint or exported folder.
        weights: "ema" or "raw".
    """

    def __init__(self, path: CheckpointText, weights: Weights = "ema") -> None:
        self.path = path
        self.weights = weights
        self._model: Any = None

    def follow(self, average: nn.Module, images_seen: int, duration: int, batch_size: int) -> None:
        """Do nothing; a guide that is made in the training of its model takes the average here.

        It is called when a training begins and after each step.

        Args:
            average: the network with averaged weights.
            images_seen: number of images that it has been trained on.
            duration: images to train on.
            batch_size: images of a step.
        """

    def model(self, main: Guided) -> Any:
        """The weaker model, a `DiffusionModel` on the device and in the precision of the one that it guides.

        Raises:
            UserError: it cannot be read, or its outputs or images are not those of the main model.
        """
        if self._model is None:
            # Reading a whole model stands floors above; it is not needed before a model is sampled.
            load_checkpoint = import_module("warm_lightning.config").load_checkpoint
            self._model = load_checkpoint(self.path).model(self.weights)
            meanings = [
                (type(m.parameterization).__name__, m.image_shape, m.network.label_dim) for m in (self._model, main)
            ]
            check(
                meanings[0] == meanings[1],
                f"model.guide {self.path}: its outputs, images and classes are {meanings[0]}, those of the model "
                f"{meanings[1]}: give a weaker model of the same kind",
            )
            clocks, like = main.sampler.grid.outline(), torch.zeros(1, *main.image_shape, dtype=torch.float64)
            gains = [process.gains(process.level(clocks), like) for process in (self._model.process, main.process)]
            check(
                all(torch.allclose(getattr(gains[0], n), getattr(gains[1], n)) for n in ("signal", "noise")),
                f"model.guide {self.path}: its process has other blur or noise than that of the model: give a weaker "
                "model of the same process",
            )
        weights = next(main.network.parameters())
        self._model.network.to(weights.device, weights.dtype)
        return self._model


class EarlierAverage(Guide):
    """The average of the model's own weights early in its training: autoguidance by a shorter training alone.

    It is the average after a share of the training, at least one step. Until then it follows the average, so that
    guidance of averaged weights has no effect. The checkpoint holds it, as one more set of weights. A training that is
    made longer after that keeps its guide, unless less than the share of the new `duration` is done. In Karras et al.
    (2024b) the guide is also a smaller network.

    Args:
        share: the share of `duration` after which the average is kept, in (0, 1). It cannot be changed afterwards.
    """

    needs = ("guide_weights", "guide_share")
    learned = None  # until the training begins, or a checkpoint is read
    advice = "train with it from the beginning, or give another guide, or none: guide null and guidance 1"

    def __init__(self, share: float = 1 / 16) -> None:
        valid = isinstance(share, float) and 0 < share < 1
        check(valid, f"model.guide.share is {share}: it is the share of a training, between 0 and 1")
        self.share = share
        self._network: Any = None  # made again for other weights, or another device or precision
        self._made_of: tuple[Tensor, torch.device, torch.dtype] | None = None

    def follow(self, average: nn.Module, images_seen: int, duration: int, batch_size: int) -> None:
        if images_seen <= max(self.share * duration, batch_size):
            weights = torch.cat([parameter.detach().reshape(-1) for parameter in average.parameters()])
            self.learned = {"guide_weights": weights, "guide_share": torch.tensor(self.share, dtype=torch.float64)}
        check(
            self.learned is not None,
            f"model.guide EarlierAverage: {images_seen:,} of {duration:,} images are done, and the checkpoint has no "
            f"average of the first {self.share:.3g} of them: train from the beginning, or give another guide",
        )
        self.checked_weights()

    def checked_weights(self) -> Tensor:
        """The weights as a vector.

        Raises:
            UserError: there are none, or they are those after another share of the training.
        """
        learned = self.checked_learned()
        share = learned["guide_share"].item()
        check(
            share == self.share,
            f"model.guide.share is {self.share}, but the average that was kept is that after {share} of the training: "
            "set it to that",
        )
        return learned["guide_weights"]

    @torch.no_grad()
    def model(self, main: Guided) -> Any:
        weights, like = self.checked_weights(), next(main.network.parameters())
        if self._made_of is None or self._made_of[0] is not weights or self._made_of[1:] != (like.device, like.dtype):
            self._network = copy.deepcopy(main.network).requires_grad_(False).eval()
            self._made_of = weights, like.device, like.dtype
            parameters = list(self._network.parameters())
            for parameter, values in zip(parameters, weights.split([p.numel() for p in parameters]), strict=True):
                parameter.copy_(values.view_as(parameter))
        return main.replaced(network=self._network, guide=None, guidance=1.0)
