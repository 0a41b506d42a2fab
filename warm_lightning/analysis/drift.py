"""Drift: how far a sampler's states are from truly degraded images, level by level and frequency band by band.

Section 4.3 of the Warm Diffusion paper argues that much blur leads samples off the data manifold (Fig. 4). Here that is
measured: at every level, the states of trajectories are set beside training images degraded to that level.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warm_lightning.analysis.figures import new_figure, save_figure
from warm_lightning.analysis.spectrum import band_index
from warm_lightning.errors import check
from warm_lightning.processes import Process
from warm_lightning.rng import Draws
from warm_lightning.samplers import Sampler
from warm_lightning.samplers.sampler import Watch
from warm_lightning.spectral import dct, frequencies
from warm_lightning.types import Estimate, Estimator, Level

NOISE, POWER, RESIDUAL = QUANTITIES = ("noise", "power", "residual")
ALL = "all"
TITLES = {
    NOISE: "ln(‖u - D‖/(B√N))\ntrajectories solid, degraded training images dashed",
    POWER: "ln(power of u / exact power)\ntrajectories solid, degraded training images dashed",
    RESIDUAL: "ln(energy of (1-M)∘x̂0),\ntrajectories less degraded training images",
}


class Bands:
    """All frequencies, and rings of them of equal width in √λ, from the mean to the highest.

    Args:
        count: number of rings ≥ 1.
        like: any tensor [..., C, H, W] of the images' size, on the device wanted.

    Raises:
        UserError: a ring would hold no frequency.
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
        """Mean over the coefficients of each band, all channels: [..., C, H, W] → [..., bands], all first."""
        return values.double().mean(-3).flatten(-2) @ self.weights.T


@dataclass(frozen=True)
class Meter:
    """What is seen of states of a process.

    Attributes:
        process: any with noise.
        bands: of frequencies.
        like: any tensor [1, C, H, W] of the images' size, in the dtype and on the device of the states.
    """

    process: Process
    bands: Bands
    like: Tensor

    def counts(self, level: Level) -> bool:
        """Whether a level is one to look at: above the last, and with noise."""
        return not self.process.ends(level) and bool((self.process.gains(level, self.like).noise > 0).all())

    def levels(self, sampler: Sampler) -> list[Level]:
        """The levels of a sampler's grid that count.

        Raises:
            UserError: there are none, as in a process without noise, or its noise has no variance.
        """
        name, variance = type(self.process).__name__, self.process.noise_variance
        check(variance < float("inf"), f"the noise of {name} has no finite variance to compare powers with")
        levels = [level for level in sampler.grid.levels(self.process) if self.counts(level)]
        check(bool(levels), f"{name} has no noise above its last level, so no distance from its manifold can be told")
        return levels

    def see(self, ask: Estimator, u: Tensor, level: Level) -> Tensor:
        """Mean squares of ε̂, u and (1-M)∘x̂0 in each band: u [B, C, H, W] → float64 [B, bands, 3] on the CPU."""
        estimate, log_signal = ask(u, level), self.process.gains(level, u).log_signal
        lost = -torch.expm1(log_signal - log_signal[..., :1, :1])  # by blur, which leaves the mean alone
        squares = torch.stack([estimate.noise, u, lost * estimate.clean], dim=1).square()
        return self.bands.mean(squares).transpose(1, 2).cpu()

    @torch.no_grad()
    def along(self, run: Callable[[Watch], Any], ask: Estimator) -> Tensor:
        """The same along trajectories, [B, levels, bands, 3].

        Args:
            run: samples a batch and shows its states on the way to what it is given.
            ask: what is to say where they are, usually the network that they are sampled with.
        """
        seen: list[Tensor] = []

        def watch(u: Tensor, level: Level) -> None:
            if self.counts(level):
                seen.append(self.see(ask, u, level))

        run(watch)
        return torch.stack(seen, dim=1)

    @torch.no_grad()
    def truth(self, ask: Estimator, levels: Sequence[Level], u0: Tensor, draws: Draws) -> Tensor:
        """The same of images u0 [B, C, H, W] degraded to each level with fresh noise, [B, levels, bands, 3]."""
        seen = []
        for level in levels:
            z = dct(self.process.noise(draws.normal(*u0.shape[1:], dtype=u0.dtype), draws))
            u = self.process.degrade(Estimate(u0, z), self.process.gains(level, u0))
            seen.append(self.see(ask, u, level))
        return torch.stack(seen, dim=1)

    def expected_power(self, levels: Sequence[Level], second_moment: Tensor) -> Tensor:
        """E u² = A² E u0² + B² E z², the mean of each band: E u0² [C, H, W] → float64 [levels, bands]."""
        powers = []
        for level in levels:
            gains = self.process.gains(level, self.like)
            noise = gains.noise.square() * self.process.noise_variance
            powers.append(self.bands.mean(gains.signal.square() * second_moment.to(self.like) + noise)[0])
        return torch.stack(powers).cpu()


def second_moment(images: Iterable[Tensor]) -> Tensor:
    """E u0² of each DCT coefficient, its variance and its mean's square; batches [b, C, H, W] → float64 [C, H, W]."""
    total, count = torch.zeros(()), 0
    for batch in images:
        total = total + dct(batch.double()).square().sum(0)
        count += len(batch)
    return total / count


def compare(trajectories: Tensor, truth: Tensor, expected: Tensor, levels: Sequence[Level], bands: Bands) -> list[dict]:
    """A row for each level, band and quantity; what the quantities are, `warm drift` says.

    Args:
        trajectories: as `Meter.along` gives them, of n ≥ 2 images.
        truth: as `Meter.truth` does, of n ≥ 2.
        expected: as `Meter.expected_power` does.
        levels: of all three.
        bands: of all three.

    Returns:
        Rows with clock, alpha, beta, band, quantity, trajectory, truth, drift, and standard errors of these three. No
        row tells of a residual where there is none, as where blur takes nothing.
    """
    (ours, our_error), (theirs, their_error) = (_logarithms(seen, expected) for seen in (trajectories, truth))
    # What the power is of truly degraded images is known exactly, and needs no sample of them.
    known = torch.tensor([0.0 if name == POWER else 1.0 for name in QUANTITIES], dtype=ours.dtype)
    drift, drift_error = ours - known * theirs, (our_error.square() + known * their_error.square()).sqrt()
    columns = torch.stack([ours, our_error, theirs, their_error, drift, drift_error], dim=-1)
    names = ("trajectory", "trajectory_error", "truth", "truth_error", "drift", "drift_error")
    rows = []
    for i, level in enumerate(levels):
        place = {name: getattr(level, name).item() for name in ("clock", "alpha", "beta")}
        for j, band in enumerate(bands.names):
            for k, quantity in enumerate(QUANTITIES):
                if quantity != RESIDUAL or drift[i, j, k].isfinite():
                    values = dict(zip(names, columns[i, j, k].tolist(), strict=True))
                    rows.append({**place, "band": band, "quantity": quantity, **values})
    return rows


def _logarithms(seen: Tensor, expected: Tensor) -> tuple[Tensor, Tensor]:
    """The three quantities, and their standard errors; [N, levels, bands, 3] → [levels, bands, 3] twice."""
    norms = seen[..., 0].log() / 2
    energies = seen[..., 1:]
    means, root = energies.mean(0), len(seen) ** 0.5
    reference = torch.stack([expected, torch.ones_like(expected)], dim=-1)
    values = torch.cat([norms.mean(0)[..., None], (means / reference).log()], dim=-1)
    # The standard error of a logarithm is the relative one. Divided first: squares of what a network makes of blur by
    # undoing it may overflow.
    errors = torch.cat([norms.std(0)[..., None], (energies / means).std(0)], dim=-1) / root
    return values, errors


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The drift of each band and quantity over all levels alike but the first, at which trajectories start and have not
    drifted: its root mean square, what that would be by chance, and its mean. A row each: band, quantity, rms, chance,
    mean, levels."""
    rows = [row for row in rows if row["clock"] != rows[0]["clock"]]
    summary = []
    for band, quantity in product(dict.fromkeys(row["band"] for row in rows), QUANTITIES):
        here = [row for row in rows if (row["band"], row["quantity"]) == (band, quantity)]
        if not here:
            continue
        drift, error = (torch.tensor([row[n] for row in here], dtype=torch.float64) for n in ("drift", "drift_error"))
        rms, chance = (values.square().mean().sqrt().item() for values in (drift, error))
        place = {"band": band, "quantity": quantity}
        summary.append({**place, "rms": rms, "chance": chance, "mean": drift.mean().item(), "levels": len(here)})
    return summary


def plot(rows: Sequence[dict[str, Any]], bands: Bands, path: Path) -> None:
    """All quantities against the noise level, or blur where noise is constant: a panel each, colours by band."""
    axis, label = ("beta", "noise level β (images in [-1, 1])")
    if len({row["beta"] for row in rows}) == 1:
        axis, label = ("alpha", "blur level α (pixels)")
    quantities = [quantity for quantity in QUANTITIES if any(row["quantity"] == quantity for row in rows)]
    figure = new_figure(5.5 * len(quantities), 4.5)
    colours = ["black", *(f"C{k}" for k in range(len(bands.names) - 1))]
    for axes, quantity in zip(figure.subplots(1, len(quantities), squeeze=False).flat, quantities, strict=True):
        for name, (low, high), colour in zip(bands.names, bands.edges, colours, strict=True):
            here = [row for row in rows if (row["band"], row["quantity"]) == (name, quantity)]
            x = [row[axis] for row in here]
            text = "all frequencies" if name == ALL else f"√λ {low:.2f} to {high:.2f} rad/pixel"
            lines = {"trajectory": ("-", text), "truth": ("--", None)}
            if quantity == RESIDUAL:  # of very different sizes from band to band
                lines = {"drift": ("-", text)}
            for column, (style, caption) in lines.items():
                y, error = ([row[column + end] for row in here] for end in ("", "_error"))
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
