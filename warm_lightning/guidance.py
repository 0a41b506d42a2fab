"""The weaker models of autoguidance, which samples are led away from."""

import copy
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

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

    def follow(self, average: nn.Module, progress: float) -> None:
        """Take what the guide needs of the average of a training.

        Args:
            average: the network with averaged weights.
            progress: the share of the training that is done.

        Raises:
            UserError: it is too late for that.
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

    It follows the average until a share of the training is done, so that guidance has no effect until then, and is kept
    in the checkpoint. In Karras et al. (2024b, Table 1) the guide has seen 1/16 of the images and is also smaller;
    the shorter training matters more.

    Args:
        share: of `duration`, in (0, 1).
    """

    needs = ("guide_weights",)
    learned = None
    advice = "train with it from the beginning, or leave guidance out with --guidance 1"

    def __init__(self, share: float = 1 / 16) -> None:
        check(0 < share < 1, f"model.guide.share is {share}: it is the share of a training, between 0 and 1")
        self.share = share
        self._network: Any = None
        self._weights: Tensor | None = None

    def follow(self, average: nn.Module, progress: float) -> None:
        if progress <= self.share:
            self.learned = {"guide_weights": parameters_to_vector(average.parameters()).detach()}
        check(
            self.learned is not None,
            f"model.guide EarlierAverage: {progress:.3g} of the training is done, and the checkpoint has no average of "
            f"the first {self.share:.3g}: train from the beginning, or give another guide",
        )

    @torch.no_grad()
    def model(self, main: Guided) -> Any:
        weights = self.checked_learned()["guide_weights"]
        if self._weights is not weights:
            self._network, self._weights = copy.deepcopy(main.network).requires_grad_(False), weights
            parameters = list(self._network.parameters())
            for parameter, values in zip(parameters, weights.split([p.numel() for p in parameters]), strict=True):
                parameter.copy_(values.view_as(parameter))
        like = next(main.network.parameters())
        return main.replaced(network=self._network.to(like.device, like.dtype), guide=None, guidance=1.0)
