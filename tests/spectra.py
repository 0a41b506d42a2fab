"""A spectrum and levels that the tests of solvers share."""

import torch
from torch import Tensor

from warm_lightning.processes import Process
from warm_lightning.spectral import frequencies
from warm_lightning.types import Level


def level(process: Process, clock: float) -> Level:
    return process.level(torch.tensor([clock], dtype=torch.float64))


def power_law(size: int) -> Tensor:
    """S = 0.25/λ, float64 [1, size, size], about that of photographs; the mean's is four times the largest other."""
    rates = frequencies(torch.zeros(1, size, size, dtype=torch.float64)).unsqueeze(0)
    return 0.25 / rates.clamp(min=rates[rates > 0].min() / 4)
