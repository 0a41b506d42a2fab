"""Prescribed draws in place of random ones, which give the exact law of samples if sampling is linear in its draws."""

from collections.abc import Callable

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.rng import Draws
from warm_lightning.spectral import idct

CHOICES = 3
"""Number of images that a process learns from in this analysis; a uniform draw of amplitude 0, 1 or 2 chooses one."""


class Impulses(Draws):
    """Draws with prescribed values: a normal draw of amplitude a is, in DCT coefficients, a times a fixed pattern.

    A uniform draw of amplitude a has the value that chooses the a-th of `CHOICES` images; a chi-square draw is 1 + a
    times its mean.

    Args:
        amplitude: gives the amplitudes a in 0 … 2 for the number of a draw, counted from 0; float64 [B] with one for
            each row, or [1] if it is equal in all rows. With [1], broadcasting makes the rows only at the first draw
            in which they differ, which saves computation.
        pattern: float64 [C, H, W].

    Attributes:
        drawn: number of draws so far.
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
            f"the process draws normal numbers in the shape {list(shape)} instead of that of an image: "
            "no closed form is known",
        )
        return (self._next().view(-1, 1, 1, 1) * self.pixels).to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        middle = (self._next() + 0.5) / CHOICES
        return middle.view(-1, *(1 for _ in shape)).expand(-1, *shape).to(dtype)

    def chi_square(self, degrees: float) -> Tensor:
        return degrees * (1 + self._next())


def unit_impulses(numbers: Tensor, number: int) -> Tensor:
    """Amplitudes of draw `number` for rows of which row k has a unit impulse in draw `numbers[k]` and 0 in the others.

    Returns:
        float64 [B], or [1] if no row has its impulse in this draw.
    """
    amplitude = (numbers == number).double()
    return amplitude if number in numbers else amplitude[:1]


def constant(amplitude: float, pattern: Tensor) -> Impulses:
    """Draws of one row that all have the same amplitude."""
    row = torch.full((1,), amplitude, dtype=torch.float64, device=pattern.device)
    return Impulses(lambda _: row, pattern.double())
