"""Branches: the errors of D and R at every level, and the combination of both that errs least."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from warm_lightning.analysis.figures import new_figure, save_figure
from warm_lightning.errors import check
from warm_lightning.parameterizations import Combination, LeastSquares, MeasuredLeastSquares, Residual, Sum
from warm_lightning.processes import Process
from warm_lightning.spectral import dct, idct
from warm_lightning.types import Estimate, Gains, Level


class Truth(NamedTuple):
    """A batch of true images and noise, as DCT coefficients.

    Attributes:
        u0: images [b, C, H, W].
        z: noise [b, C, H, W].
        class_labels: one-hot classes [b, label_dim]; None for a network without classes.
    """

    u0: Tensor
    z: Tensor
    class_labels: Tensor | None


SHARES = 8
"""The number of intervals of M, of equal width, in each of which a ratio is measured."""
LIMIT = 1e3
"""The largest measured ratio of variances, and the inverse of the smallest: beyond it one branch is all that counts."""
BASELINE = "R/(1-M)"


@dataclass(frozen=True)
class Branches:
    """The branches of a network, compared with the truth.

    Attributes:
        outputs: D and R [b, 2, C, H, W] for degraded pixels [b, C, H, W], their level, and one-hot classes or None, as
            `DiffusionModel.outputs` of a model with the parameterization `DenoiseDeblur` gives them.
        process: the forward process.
        levels: of a sampler, from the first to the last, which has no noise and is not measured.
    """

    outputs: Callable[[Tensor, Level, Tensor | None], Tensor]
    process: Process
    levels: Sequence[Level]

    @property
    def noise(self) -> list[float]:
        """The noise gains B of the levels that are measured.

        Raises:
            UserError: they do not fall from level to level, down to one above 0, so that they tell no levels apart.
        """
        like = torch.zeros(1, 1, 1, 1, dtype=torch.float64)
        noise = [self.process.gains(level, like).noise.item() for level in self.levels[:-1]]
        check(
            all(a > b for a, b in pairwise([*noise, 0.0])),
            f"the noise of {type(self.process).__name__} does not fall at each level of the sampler: use another",
        )
        return noise

    @torch.no_grad()
    def at(self, level: Level, truth: Truth) -> tuple[Tensor, Tensor, Gains]:
        """D and R, as DCT coefficients, for images degraded to a level, and the gains there."""
        gains = self.process.gains(level, truth.u0)
        u = self.process.degrade(Estimate(truth.u0, truth.z), gains)
        blurred, residual = dct(self.outputs(idct(u), level, truth.class_labels)).unbind(1)
        return blurred, residual, gains

    def fit(self, truths: Iterable[Truth]) -> MeasuredLeastSquares:
        """The combination of least error on some images.

        With the errors e = D - M x0 and f = R - (1-M) x0, and the difference δ = M R - (1-M) D = M f - (1-M) e, in
        which the posterior variance cancels, independent own errors of D and R have v_D = -E[e δ]/(1-M) and
        v_R = E[f δ]/M. The error of κ = v_D/v_R falls with the number of images.

        Raises:
            UserError: see `noise`; or an output is not finite.
        """
        noise = self.noise  # checked first
        sums = torch.zeros(2, len(self.levels) - 1, SHARES, dtype=torch.float64)
        for truth in truths:
            u0 = truth.u0
            for row, level in enumerate(self.levels[:-1]):
                blurred, residual, gains = self.at(level, truth)
                kept, lost = gains.signal, gains.lost
                difference = kept * residual - lost * blurred
                own = torch.stack(
                    [kept * (kept * u0 - blurred) * difference, lost * (residual - lost * u0) * difference]
                )
                share = (kept * SHARES).long().clamp(max=SHARES - 1).expand_as(u0)
                sums[:, row].index_add_(1, share.flatten().cpu(), own.flatten(1).double().cpu())
        check(bool(sums.isfinite().all()), "the outputs of the network are not finite: use other weights")
        v_d, v_r = sums.clamp(min=torch.finfo(torch.float64).tiny)
        ratios = (v_d / v_r).clamp(1 / LIMIT, LIMIT).where(sums.any(0), 1.0)  # 1 where no frequency has this share
        middles = [(k + 0.5) / SHARES for k in range(SHARES)]
        return MeasuredLeastSquares(noise[::-1], middles, ratios.flip(0).tolist())

    def errors(self, truths: Iterable[Truth], combinations: dict[str, Combination]) -> dict[str, Tensor]:
        """The errors of each combination at each level, for each image, float64 [N, levels, 2].

        The first is the mean square error of x̂0. The second is that of (A_s - A_t)∘x̂0, the detail that a step from
        the level to the next one, s, restores: where blur has taken nothing, x̂0 may err much, and no step uses it.
        """
        found: dict[str, list[Tensor]] = {name: [] for name in combinations}
        for truth in truths:
            measured: dict[str, list[Tensor]] = {name: [] for name in combinations}
            for level, next_level in pairwise(self.levels):
                blurred, residual, gains = self.at(level, truth)
                used = self.process.gains(next_level, truth.u0).signal - gains.signal
                for name, combination in combinations.items():
                    error = combination(blurred, residual, gains) - truth.u0
                    both = torch.stack([error, used * error], dim=1)
                    measured[name].append(both.square().flatten(2).mean(2).double().cpu())
            for name, values in measured.items():
                found[name].append(torch.stack(values, dim=1))
        return {name: torch.cat(values) for name, values in found.items()}


def combinations(measured: MeasuredLeastSquares) -> dict[str, Combination]:
    """All combinations by their names in tables, the paper's first."""
    return {BASELINE: Residual(), "D + R": Sum(), "least squares": LeastSquares(), "measured": measured}


def error_rows(errors: dict[str, Tensor], levels: Sequence[Level]) -> list[dict[str, Any]]:
    """A row for each level and combination; changes from Eq. 7's errors are paired over images.

    Args:
        errors: see `Branches.errors`.
        levels: of the errors.

    Returns:
        Rows with alpha, beta, combination, image_error (the mean square error of x̂0), step_error (that of the detail
        that the next step restores), the relative changes of both from those of Eq. 7, image_change and step_change,
        and the standard errors of the changes over images, image_change_error and step_change_error.
    """
    rows = []
    for k, level in enumerate(levels[:-1]):
        for name, values in errors.items():
            row = {"alpha": level.alpha.item(), "beta": level.beta.item(), "combination": name}
            for column, quantity in enumerate(("image", "step")):
                own, baseline = values[:, k, column], errors[BASELINE][:, k, column]
                change = (own - baseline) / baseline.mean()
                row |= {
                    f"{quantity}_error": own.mean().item(),
                    f"{quantity}_change": change.mean().item(),
                    f"{quantity}_change_error": change.std().item() / len(change) ** 0.5,
                }
            rows.append(row)
    return rows


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the change of the error of steps from Eq. 7's against the noise level, a line for each combination."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    for name in dict.fromkeys(row["combination"] for row in rows if row["combination"] != BASELINE):
        of_name = [row for row in rows if row["combination"] == name]
        change, error = ([100 * row[column] for row in of_name] for column in ("step_change", "step_change_error"))
        axes.errorbar([row["beta"] for row in of_name], change, error, marker="o", ms=3, capsize=2, label=name)
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set(
        xscale="log",
        xlabel="noise level β (images in [-1, 1])",
        ylabel=f"error of the detail that a step restores,\n% more than with {BASELINE}",
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)
