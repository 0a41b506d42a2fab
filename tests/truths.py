"""Helpers of the tests of processes: prescribed draws, coefficients of single steps, small images."""

import itertools

import torch
from sklearn.datasets import load_digits
from torch import Tensor

from warm_lightning.processes import Process
from warm_lightning.rng import Draws
from warm_lightning.samplers import Step, StepRule
from warm_lightning.spectral import idct
from warm_lightning.types import Estimator, Gains, Level


class Prescribed(Draws):
    """Draws that a test has chosen: `z` [B, C, H, W] for all normal pixels, `share` [B] for all uniform numbers."""

    def __init__(self, z: Tensor, share: Tensor | None = None) -> None:
        self.z = z
        self.share = share

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        assert shape == self.z.shape[1:]
        return self.z.to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        assert self.share is not None
        assert shape == ()
        return self.share.to(dtype)

    def chi_square(self, degrees: float) -> Tensor:
        raise AssertionError("nobody has chosen these")


def clocks(*readings: float) -> Tensor:
    return torch.tensor(readings, dtype=torch.float64)


def levels(process: Process, *readings: float) -> list[Level]:
    return [process.level(clock) for clock in clocks(*readings).split(1)]


def gains_at(process: Process, reading: float, like: Tensor) -> Gains:
    return process.gains(process.level(clocks(reading)), like)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def digits(count: int = 300) -> Tensor:
    """Images in [-1, 1], float64 [count, 1, 8, 8], no two of them alike."""
    images = torch.from_numpy(load_digits().images[:count])[:, None] / 8 - 1
    assert len(images.unique(dim=0)) == count
    return images


def step_of(process: Process, like: Tensor, t: float, s: float, draws: Draws) -> Step:
    source, target = levels(process, t, s)
    return Step.between(process, like, source, target, draws)


def coefficients(rule: StepRule, ask: Estimator, process: Process, like: Tensor, t: float, s: float) -> Tensor:
    """The factors c and σ of each frequency of a linear step, u_s = c∘u_t + σ∘z, as [2, C, H, W]."""
    zero, one = torch.zeros_like(like), torch.ones_like(like)
    u, z = torch.cat([one, zero]), torch.cat([zero, one])
    return rule(ask, u, step_of(process, u, t, s, Prescribed(idct(z))))


def final_variance(
    rule: StepRule, ask: Estimator, process: Process, like: Tensor, readings: Tensor, start: Tensor | None = None
) -> Tensor:
    """The variance of every coefficient at the end of a run of linear steps, without Monte Carlo.

    It starts from `start`, or from the prior of a process that starts from noise.
    """
    if start is None:
        normal = idct(torch.ones_like(like))
        start = process.prior(normal, process.level(readings[:1]), Prescribed(like)).square()
    for t, s in itertools.pairwise(readings.tolist()):
        kept, fresh = coefficients(rule, ask, process, like, t, s)
        start = kept.square() * start + fresh.square()
    return start
