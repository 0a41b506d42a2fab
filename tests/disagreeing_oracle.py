"""An oracle whose branches disagree, as those of a network do."""

from collections.abc import Sequence

import torch
from torch import Tensor

from warm_lightning.parameterizations import Parameterization
from warm_lightning.preconditioning import Preconditioning
from warm_lightning.processes import Process
from warm_lightning.types import Estimate, Estimator, Level


class DisagreeingOracle:
    """Exact branches of a network plus an independent small error in each.

    With it, a sampler that wrongly assumes that the branches agree fails; with a perfect oracle it would not.

    Args:
        oracle: an exact oracle.
        process: its process.
        parameterization: the meaning of the branches.
        preconditioning: gives c_out, by which errors shrink with the noise as a network's do.
        errors: standard deviation of each branch's error per pixel, in units of c_out.
        seed: of the errors.
    """

    def __init__(
        self,
        oracle: Estimator,
        process: Process,
        parameterization: Parameterization,
        preconditioning: Preconditioning,
        errors: Sequence[float],
        seed: int = 0,
    ) -> None:
        self.oracle = oracle
        self.process = process
        self.parameterization = parameterization
        self.preconditioning = preconditioning
        self.errors = torch.tensor(errors, dtype=torch.float64).view(1, -1, 1, 1, 1)
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, u: Tensor, level: Level) -> Estimate:
        gains = self.process.gains(level, u)
        truth = self.parameterization.targets(self.oracle(u, level), gains)
        noise = torch.randn(truth.shape, generator=self.generator, dtype=u.dtype)
        c_out = self.preconditioning(level, gains, self.parameterization).out
        return self.parameterization.estimate(truth + self.errors * c_out * noise, u, gains)
