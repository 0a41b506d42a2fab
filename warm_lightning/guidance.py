"""The weaker model of autoguidance, which samples are led away from."""

from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import torch

from warm_lightning.errors import check
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


@dataclass
class Guide:
    """A weaker model that guidance leads away from: autoguidance (Karras et al. 2024b, Eq. 3).

    It is a smaller model or one of a shorter training, such as an earlier checkpoint of the same run. Its branches mean
    the same, and its process has the same gains; its network and preconditioning are its own. It is read when it is
    first needed.

    Attributes:
        path: its checkpoint or exported folder.
        weights: "ema" or "raw".
    """

    path: CheckpointText
    weights: Weights = "ema"
    _model: Any = field(default=None, init=False, repr=False)

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
