"""Draws that are prescribed instead of random: where sampling is linear in its draws, they say all of its law."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.processes import Process
from warm_lightning.rng import Draws
from warm_lightning.spectral import idct
from warm_lightning.types import Level

CHOICES = 3
"""Images for a process to learn of, one of which a uniform draw of amplitude 0, 1 or 2 chooses."""


class Impulses(Draws):
    """A draw of amplitude a is, as DCT coefficients, a times a pattern.

    A uniform draw is one that chooses among `CHOICES` images, the a-th of them; a chi-square draw is 1 + a times its
    mean.

    Args:
        amplitude: number of the draw, from 0 → a of each row, 0 … 2, float64 [B]; [1] where it is the same in all, so
            that broadcasting makes rows when they first differ, and nothing is computed for them before.
        pattern: float64 [C, H, W].
    """

    def __init__(self, amplitude: Callable[[int], Tensor], pattern: Tensor) -> None:
        self.amplitude = amplitude
        self.pattern = pattern
        self.pixels = idct(pattern)
        self.drawn = 0

    def _next(self) -> Tensor:
        self.drawn += 1
        return self.amplitude(self.drawn - 1)

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        check(
            shape == self.pattern.shape,
            f"the process draws normal numbers in the shape {list(shape)}, which is no image: no closed form is known",
        )
        return (self._next().view(-1, 1, 1, 1) * self.pixels).to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        middle = (self._next() + 0.5) / CHOICES
        return middle.view(-1, *(1 for _ in shape)).expand(-1, *shape).to(dtype)

    def chi_square(self, degrees: float) -> Tensor:
        return degrees * (1 + self._next())


def among(mine: Tensor, number: int) -> Tensor:
    """Amplitudes of rows that have their impulse in the draws `mine`: [B], or [1] where none has it in this one."""
    hit = (mine == number).double()
    return hit if number in mine else hit[:1]


def constant(amplitude: float, pattern: Tensor) -> Impulses:
    """A row whose draws are all alike."""
    row = torch.full((1,), amplitude, dtype=torch.float64, device=pattern.device)
    return Impulses(lambda _: row, pattern.double())


def check_noise(process: Process, levels: Sequence[Level], like: Tensor) -> None:
    """Raise UserError unless there is noise at every level but the last."""
    for level in levels:
        check(
            process.ends(level) or bool((process.gains(level, like).noise > 0).all()),
            f"{type(process).__name__} has no noise at {level.clock.item():g} of its clock, and no density there: "
            "choose a process with noise at every level but the last",
        )
