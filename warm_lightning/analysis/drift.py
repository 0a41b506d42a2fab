"""Drift: the distance between a sampler's states and truly degraded images, for each level and frequency band.

Section 4.3 of the Warm Diffusion paper argues that much blur leads samples off the data manifold (Fig. 4). This module
measures it: at every level, the states of trajectories are compared with training images degraded to that level.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warm_lightning.analysis.figures import new_figure, save_figure
from warm_lightning.errors import check
from warm_lightning.processes import Process
from warm_lightning.rng import Draws
from warm_lightning.samplers import Sampler
from warm_lightning.samplers.sampler import Watch
from warm_lightning.spectral import band_index, dct, frequencies
from warm_lightning.types import Estimate, Estimator, Level

# ---- measurement

NOISE, POWER, RESIDUAL = QUANTITIES = ("noise", "power", "residual")
ALL = "all"


class Bands:
    """Frequency bands: one of all frequencies, and rings of equal width in √λ from 0 to the highest frequency.

    Args:
        count: number of rings ≥ 1.
        like: any tensor [..., C, H, W] of the images' size, on the device wanted.

    Attributes:
        weights: float64 [bands, H·W]; the mean over a band is the product with its row.
        names: "all", "1", "2", …
        edges: the lowest and the highest √λ of each band.

    Raises:
        UserError: a ring would contain no frequency.
    """

    def __init__(self, count: int, like: Tensor) -> None:
        check(count >= 1, f"bands is {count}: it must be at least 1")
        band = band_index(like, count).flatten()
        masks = torch.cat([torch.ones_like(band)[None], band == torch.arange(count).to(band)[:, None]]).double()
        edges = torch.linspace(0, frequencies(like.double()).max().sqrt().item(), count + 1, dtype=torch.float64)
        check(bool(masks.any(1).all()), f"bands is {count}: too many for images of {like.shape[-1]} pixels; lower it")
        self.weights = masks / masks.sum(1, keepdim=True)
        self.names = [ALL, *map(str, range(1, count + 1))]
        self.edges = [(0.0, edges[-1].item()), *zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]

    def mean(self, values: Tensor) -> Tensor:
        """Mean over channels and the frequencies of each band, [..., C, H, W] → [..., bands]; the first is of all."""
        return values.double().mean(-3).flatten(-2) @ self.weights.T


@dataclass(frozen=True)
class DriftMeasurement:
    """The measurement of states of a process: mean squares of three quantities in each frequency band.

    Attributes:
        process: a process with noise.
        bands: the frequency bands.
        like: any tensor [1, C, H, W] of the images' size, in the dtype and on the device of the states.
    """

    process: Process
    bands: Bands
    like: Tensor

    def includes(self, level: Level) -> bool:
        """Whether states at a level are measured: if it is not the last one, and has noise."""
        return not self.process.ends(level) and bool((self.process.gains(level, self.like).noise > 0).all())

    def levels(self, sampler: Sampler) -> list[Level]:
        """The levels of a sampler's grid that are measured.

        Raises:
            UserError: there are none, as in a process without noise, or the noise has no finite variance.
        """
        name, variance = type(self.process).__name__, self.process.noise_variance
        check(variance < float("inf"), f"the noise of {name} has no finite variance to compare powers with")
        levels = [level for level in sampler.grid.levels(self.process) if self.includes(level)]
        check(bool(levels), f"{name} has no noise at any level but the last, so its drift cannot be measured")
        return levels

    def measure(self, estimator: Estimator, u: Tensor, level: Level) -> Tensor:
        """Mean squares of ε̂, u and (1-M)∘x̂0 in each band: u [B, C, H, W] → float64 [B, bands, 3] on the CPU."""
        estimate, log_signal = estimator(u, level), self.process.gains(level, u).log_signal
        lost = -torch.expm1(log_signal - log_signal[..., :1, :1])  # 1 - M: blur does not change the mean of an image
        lost = torch.where(log_signal == -torch.inf, 1.0, lost)  # where nothing is left, as at the start of a flow
        squares = torch.stack([estimate.noise, u, lost * estimate.clean], dim=1).square()
        return self.bands.mean(squares).transpose(1, 2).cpu()

    @torch.no_grad()
    def of_trajectories(self, run: Callable[[Watch], Any], estimator: Estimator) -> Tensor:
        """Measure the states of trajectories at every level, [B, levels, bands, 3].

        Args:
            run: samples a batch, and calls its argument with each state and its level.
            estimator: gives ε̂ and x̂0 of the states, usually the network that they are sampled with.
        """
        measured: list[Tensor] = []

        def watch(u: Tensor, level: Level) -> None:
            if self.includes(level):
                measured.append(self.measure(estimator, u, level))

        run(watch)
        return torch.stack(measured, dim=1)

    @torch.no_grad()
    def of_degraded(self, estimator: Estimator, levels: Sequence[Level], u0: Tensor, draws: Draws) -> Tensor:
        """Measure images u0 [B, C, H, W] degraded to each level with fresh noise, [B, levels, bands, 3]."""
        measured = []
        for level in levels:
            z = dct(self.process.noise(draws.normal(*u0.shape[1:], dtype=u0.dtype), draws))
            u = self.process.degrade(Estimate(u0, z), self.process.gains(level, u0))
            measured.append(self.measure(estimator, u, level))
        return torch.stack(measured, dim=1)

    def expected_power(self, levels: Sequence[Level], second_moment: Tensor) -> Tensor:
        """The exact mean power E u² = A² E u0² + B² E z² of each band, float64 [levels, bands]; E u0² is [C, H, W]."""
        powers = []
        for level in levels:
            gains = self.process.gains(level, self.like)
            noise = gains.noise.square() * self.process.noise_variance
            powers.append(self.bands.mean(gains.signal.square() * second_moment.to(self.like) + noise)[0])
        return torch.stack(powers).cpu()


# ---- comparison


def compare(trajectories: Tensor, truth: Tensor, expected: Tensor, levels: Sequence[Level], bands: Bands) -> list[dict]:
    """The drift as a table with a row for each level, band and quantity; `warm drift` describes the quantities.

    Args:
        trajectories: of `DriftMeasurement.of_trajectories`, for n ≥ 2 images.
        truth: of `DriftMeasurement.of_degraded`, for n ≥ 2 images.
        expected: of `DriftMeasurement.expected_power`.
        levels: the levels of all three.
        bands: the bands of all three.

    Returns:
        Rows with clock, alpha, beta, band, quantity, trajectory, truth, drift, and standard errors of the last three.
        There is no row of the residual if it is 0, as it is without blur.
    """
    (state, state_error), (true, true_error) = (_logarithms(values, expected) for values in (trajectories, truth))
    # The power of truly degraded images is known exactly, and its estimate from a sample is not subtracted.
    subtract = torch.tensor([0.0 if name == POWER else 1.0 for name in QUANTITIES], dtype=state.dtype)
    drift = state - subtract * true
    drift_error = (state_error.square() + subtract * true_error.square()).sqrt()
    columns = torch.stack([state, state_error, true, true_error, drift, drift_error], dim=-1)
    names = ("trajectory", "trajectory_error", "truth", "truth_error", "drift", "drift_error")
    rows = []
    for i, level in enumerate(levels):
        coordinates = {name: getattr(level, name).item() for name in ("clock", "alpha", "beta")}
        for j, band in enumerate(bands.names):
            for k, quantity in enumerate(QUANTITIES):
                if quantity != RESIDUAL or drift[i, j, k].isfinite():
                    values = dict(zip(names, columns[i, j, k].tolist(), strict=True))
                    rows.append({**coordinates, "band": band, "quantity": quantity, **values})
    return rows


def _logarithms(squares: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """The three quantities and their standard errors, [levels, bands, 3] each, of squares [N, levels, bands, 3]."""
    norms = squares[..., 0].log() / 2
    energies = squares[..., 1:]
    means, root = energies.mean(0), len(squares) ** 0.5
    reference = torch.stack([expected, torch.ones_like(expected)], dim=-1)
    values = torch.cat([norms.mean(0)[..., None], (means / reference).log()], dim=-1)
    # The standard error of a logarithm is the relative error. Energies are divided by their mean first, since their
    # squares may overflow if a network undoes blur.
    errors = torch.cat([norms.std(0)[..., None], (energies / means).std(0)], dim=-1) / root
    return values, errors


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Summarise the drift of each band and quantity over levels, except for the first, where trajectories start.

    Returns:
        Rows of band, quantity, rms (the root mean square of the drift), chance (the root mean square of its standard
        error, which is the rms expected without drift), mean, and levels (their number). All levels count equally.
    """
    rows = [row for row in rows if row["clock"] != rows[0]["clock"]]
    summary = []
    for band, quantity in product(dict.fromkeys(row["band"] for row in rows), QUANTITIES):
        selected = [row for row in rows if (row["band"], row["quantity"]) == (band, quantity)]
        if not selected:
            continue
        columns = ([row[name] for row in selected] for name in ("drift", "drift_error"))
        drift, error = (torch.tensor(column, dtype=torch.float64) for column in columns)
        rms, chance = (values.square().mean().sqrt().item() for values in (drift, error))
        numbers = {"rms": rms, "chance": chance, "mean": drift.mean().item(), "levels": len(selected)}
        summary.append({"band": band, "quantity": quantity, **numbers})
    return summary


# ---- figure

TITLES = {
    NOISE: "ln(‖u - D‖/(B√N))\ntrajectories solid, degraded training images dashed",
    POWER: "ln(power of u / exact power)\ntrajectories solid, degraded training images dashed",
    RESIDUAL: "ln(energy of (1-M)∘x̂0),\ntrajectories less degraded training images",
}


def plot(rows: Sequence[dict[str, Any]], bands: Bands, path: Path) -> None:
    """Draw each quantity in a panel, against the noise level or, if that is constant, the blur; one colour per band."""
    axis, label = ("beta", "noise level β (images in [-1, 1])")
    if len({row["beta"] for row in rows}) == 1:
        axis, label = ("alpha", "blur level α (pixels)")
    quantities = [quantity for quantity in QUANTITIES if any(row["quantity"] == quantity for row in rows)]
    figure = new_figure(5.5 * len(quantities), 4.5)
    colours = ["black", *(f"C{k}" for k in range(len(bands.names) - 1))]
    for axes, quantity in zip(figure.subplots(1, len(quantities), squeeze=False).flat, quantities, strict=True):
        for name, (low, high), colour in zip(bands.names, bands.edges, colours, strict=True):
            selected = [row for row in rows if (row["band"], row["quantity"]) == (name, quantity)]
            x = [row[axis] for row in selected]
            text = "all frequencies" if name == ALL else f"√λ {low:.2f} to {high:.2f} rad/pixel"
            lines = {"trajectory": ("-", text), "truth": ("--", None)}
            if (
                quantity == RESIDUAL
            ):  # its values differ by orders of magnitude between bands, so only the difference is shown
                lines = {"drift": ("-", text)}
            for column, (style, caption) in lines.items():
                y, error = ([row[column + end] for row in selected] for end in ("", "_error"))
                axes.plot(x, y, style, color=colour, label=caption)
                spread = [[v + sign * e for v, e in zip(y, error, strict=True)] for sign in (-1, 1)]
                axes.fill_between(x, *spread, color=colour, alpha=0.15, lw=0)
        axes.set(
            xscale="symlog" if any(row[axis] == 0 for row in rows) else "log", xlabel=label, title=TITLES[quantity]
        )
        axes.axhline(0, color="0.5", lw=0.8)
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize=8)
    save_figure(figure, path)
