"""A grid whose levels are the best for normal data with the spectrum of the training images."""

import json
import zlib
from collections.abc import Iterable
from copy import copy
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from warm_lightning.defaults import default
from warm_lightning.errors import UserError, check
from warm_lightning.learning import Learner
from warm_lightning.oracles import GaussianOracle
from warm_lightning.processes import Process
from warm_lightning.records import tensors_hash
from warm_lightning.rng import Draws
from warm_lightning.samplers.rules import Step, StepRule
from warm_lightning.samplers.sampler import Grid, PowerGrid
from warm_lightning.spectral import idct, positive_frequencies, second_moment
from warm_lightning.types import Gains, Level

if TYPE_CHECKING:
    from numpy.typing import NDArray

ITERATIONS = 100
DIFFERENCE = 1e-5  # of a logit, for derivatives
REMAINDERS = (1e-3, 0.3)  # ln(clock) below the last level above 0, relative to that above, where searches begin


class SpectralGrid(Grid, Learner):
    """The grid of least error for normal data with the spectrum of the training images (after Benita et al. 2025).

    All N levels but the first are chosen so that the squared Fréchet distance between samples with the Gaussian oracle
    and the data, Σ(√v - √S)², is as small as a search finds, for the process and the step rule of the model, without
    churn. The search begins at another grid, stays between its first level and its last above 0, and returns that grid
    where it finds no better one. It ends in a local minimum. It takes seconds, or a minute for 40 steps.

    S is the second moment of the images' DCT coefficients. It is measured before training, and kept in checkpoints with
    the grid that was found; for another number of steps, rule, process or base, the grid is found when it is needed. Or
    S is a power law, which any trained model can be sampled with.

    Args:
        steps: N.
        base: the grid to begin with; the first level is its own. With whole clock readings, levels are rounded to such.
        c: of the law S = c/λ^s; None to measure S.
        s: of the law.
    """

    advice = "set c, for the spectrum of photographs, or train with it"

    def __init__(
        self, steps: int = 18, base: Grid = default(PowerGrid), c: float | None = None, s: float = 1.0
    ) -> None:
        check(c is None or c > 0, f"c is {c}: a power is positive")
        self.base = copy(base)
        self.base.steps = self.steps = steps
        self.base.clocks()  # which raises for too few or too many
        self.c = c
        self.s = s
        self.bound: tuple[Process, StepRule, Tensor] | None = None
        self.found: Tensor | None = None
        if c is None:
            self.needs, self.keeps, self.learned = ("second_moment",), ("spectral_clocks", "spectral_key"), None

    def within(self, low: float, high: float) -> "SpectralGrid":
        narrowed = copy(self)
        narrowed.base = self.base.within(low, high)
        return narrowed

    def for_model(self, process: Process, rule: StepRule, image_shape: tuple[int, int, int]) -> "SpectralGrid":
        bound, channels = copy(self), 1 if self.c else image_shape[0]  # a law is the same for all channels
        like = torch.zeros(1, channels, *image_shape[1:], dtype=torch.float64)
        bound.bound = process, rule, like
        bound.found = None
        return bound

    def learn(self, images: Iterable[Tensor]) -> dict[str, Tensor]:
        power = second_moment(images)
        return {"second_moment": power, "spectral_clocks": self.search(power), "spectral_key": torch.tensor(self.key)}

    @property
    def key(self) -> int:
        """A number that tells apart what the levels depend on, but for S."""
        assert self.bound is not None
        parts = [self.steps, *map(settings, (self.base, *self.bound[:2]))]
        return zlib.crc32(json.dumps(parts, sort_keys=True).encode())

    def outline(self) -> Tensor:
        return self.base.clocks()

    def clocks(self) -> Tensor:
        """See `Grid.clocks`; those of the base as long as nothing is known of images, as in an untrained model."""
        if self.learned is None or self.bound is None:
            return self.base.clocks()
        if self.found is None and int(self.learned.get("spectral_key", -1)) == self.key:
            self.found = self.learned["spectral_clocks"]
        if self.found is None:
            law = (self.c or 0.0) / positive_frequencies(self.bound[2]) ** self.s
            self.found = self.search(law.expand(self.bound[2].shape[1:]) if self.c else self.learned["second_moment"])
        return self.found

    def levels(self, process: Process) -> list[Level]:
        self.checked_learned()
        return super().levels(process)

    def search(self, power: Tensor) -> Tensor:
        """The clock readings of least error for a spectrum S, float64 [N + 1]."""
        import scipy.optimize  # takes a second to import, which other commands need not wait for

        first = self.base.clocks()
        if self.steps < 2:
            return first
        length = (first[0] / first[-2]).log()

        def clocks(logits: Tensor) -> Tensor:
            """Grids [B, N + 1] for logits [B, N] of the shares of ln(clock) between levels, and of what is below."""
            falls = length * torch.softmax(logits, dim=1).cumsum(1)[:, :-1]
            ends = torch.zeros_like(falls[:, :1])
            return torch.cat([first[0] + ends, first[0] * (-falls).exp(), ends], dim=1)

        def error(values: "NDArray[np.float64]") -> tuple[float, "NDArray[np.float64]"]:
            shifts = DIFFERENCE * torch.eye(self.steps, dtype=torch.float64)
            both = torch.from_numpy(values) + torch.cat([torch.zeros_like(shifts[:1]), shifts, -shifts])
            here, up, down = self.errors(clocks(both), power).log().split([1, self.steps, self.steps])
            return here.item(), ((up - down) / (2 * DIFFERENCE)).numpy()

        falls, tried = (first[:-2] / first[1:-1]).log(), [first]
        for remainder in REMAINDERS:
            begin = torch.cat([falls, remainder * length[None]]).log().numpy()
            best = scipy.optimize.minimize(error, begin, jac=True, method="L-BFGS-B", options={"maxiter": ITERATIONS})
            found = clocks(torch.from_numpy(best.x)[None])[0]
            found = found.round() if getattr(self.base, "whole", False) else found
            if (found.diff() < 0).all():  # or rounding has made one level of two
                tried.append(found)
        return tried[int(self.errors(torch.stack(tried), power).argmin())]

    @torch.no_grad()
    def errors(self, clocks: Tensor, power: Tensor) -> Tensor:
        """The squared Fréchet distance between samples and data N(0, S) for some grids [B, N + 1], [B].

        Raises:
            UserError: the process does not start from noise.
        """
        assert self.bound is not None
        process, rule, like = self.bound
        oracle = GaussianOracle(power, process)
        levels = [process.level(column) for column in clocks.T]
        count = len(clocks)
        ones = idct(torch.ones_like(like)).expand(count, -1, -1, -1)
        u = process.prior(ones, levels[0], Impulse(count))
        history: list[tuple[Gains, Tensor]] = []
        for t, s in pairwise(levels):
            # The first half of the batch has the deviation of u, the second one a unit of the step's own noise.
            here, there = (
                Level(*(torch.cat([x, x]) for x in (level.alpha, level.beta, level.clock))) for level in (t, s)
            )
            state = torch.cat([u, torch.zeros_like(u)])
            moved = rule(oracle, state, Step.between(process, state, here, there, Impulse(count), history))
            kept, fresh = moved.split(count)
            u = (kept.square() + fresh.square()).sqrt() if fresh.any() else kept
        return (u.abs() - power.sqrt()).square().sum(dim=(1, 2, 3))


def settings(part: Any) -> Any:
    """The settings of a part of a model as plain data: its class and attributes, but for what it has learned."""
    if isinstance(part, str | int | float | bool | None):
        return part
    if isinstance(part, tuple | list):
        return [settings(value) for value in part]
    if isinstance(part, Tensor):
        return tensors_hash([("", part)])
    kind = next(k for k in type(part).__mro__ if not k.__name__.startswith("LazyInstance"))  # of `default`
    kept = {name: value for name, value in vars(part).items() if name[0] != "_" and name != "learned"}
    return [kind.__name__, {name: settings(value) for name, value in kept.items()}]


class Impulse(Draws):
    """Draws whose DCT coefficients are 0 for the first images of a batch and 1 for the others.

    Args:
        count: number of the first images.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        ones = torch.ones(self.count, *shape, dtype=dtype)
        return idct(torch.cat([torch.zeros_like(ones), ones]))

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        raise UserError("model.sampler.grid SpectralGrid is for processes that start from noise: choose another grid")

    def chi_square(self, degrees: float) -> Tensor:
        raise UserError("model.sampler.grid SpectralGrid is for normal noise: choose another grid")
