"""Parts of a model that learn tensors in training: spectra, priors and deviations of the images, or an early average.

All but the last learn before training begins, from the training images.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from warm_lightning.errors import UserError


class Learner:
    """A part of a model that may need tensors of the training images.

    `DiffusionModel.learned` collects them for checkpoints.

    Attributes:
        needs: names of the tensors; equal names mean equal tensors in all parts of a model. Empty for most parts.
        keeps: names of more tensors that it may have learned, and can do without.
        advice: what to do where it has learned nothing yet.
        learned: the tensors by name; {} (the default) for a part that needs none, None for one that has none yet.
    """

    needs: tuple[str, ...] = ()
    keeps: tuple[str, ...] = ()
    advice: ClassVar[str] = "train it, or give the checkpoint of a trained model"
    _copies: Mapping[str, tuple[Any, Tensor]] = MappingProxyType({})
    learned: dict[str, Tensor] | None = {}  # noqa: RUF012  (replaced, never written to)

    @property
    def learners(self) -> tuple["Learner", ...]:
        """This part, or the parts that it consists of."""
        return (self,)

    def learn(self, images: Iterable[Tensor]) -> dict[str, Tensor]:
        """The tensors that it needs; images in batches [b, C, H, W] in [-1, 1]."""
        return {}

    def tensor(self, name: str, like: Tensor) -> Tensor:
        """A tensor that was learned, in the dtype and on the device of another; raises as `checked_learned` does.

        The last copy is kept, so that a GPU does not wait for one at each call.
        """
        learned = self.checked_learned()[name]
        key = id(learned), like.dtype, like.device
        if self._copies.get(name, (None,))[0] != key:
            with torch.inference_mode(False):  # or training after a validation could not use it
                self._copies = {**self._copies, name: (key, learned.to(like))}
        return self._copies[name][1]

    def checked_learned(self) -> dict[str, Tensor]:
        """The tensors that `learn` has made.

        Raises:
            UserError: it has not been called yet.
        """
        if self.learned is None:
            raise UserError(
                f"{type(self).__name__} needs what it learns in training ({', '.join(self.needs)}), and has learned "
                f"nothing: {self.advice}"
            )
        return self.learned
