"""How far a sampler ends from the data when the network is perfect: what the solver, the grid and blur cost alone."""

import math
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from warm_lightning.analysis.impulses import CHOICES, Impulses, among, check_noise, constant
from warm_lightning.analysis.spectrum import band_index
from warm_lightning.errors import check
from warm_lightning.oracles import DatasetOracle, GaussianOracle
from warm_lightning.processes import Process
from warm_lightning.rng import SeedStreams
from warm_lightning.samplers import Grid, Heun, Sampler
from warm_lightning.spectral import dct, idct

AT_ONCE = 32  # rows of float64 images: 0.8 MB a tensor for 3×32×32
LINEAR = 1e-6  # learned images are kept in float32, whose rounding is 6e-8
LANDED = 1e-6
"""Mean square distance below which a sample is taken for a training image."""
BANDS = ("low", "mid", "high")
"""Thirds of √λ."""


# ---------------------------------------------------------------------- normal data
@dataclass(frozen=True)
class Spread:
    """The law of samples that are linear in normal draws, frequency by frequency.

    Attributes:
        start: variance of each coefficient of what sampling starts from, [C, H, W].
        end: of samples, [C, H, W].
        draws: how many draws an image takes, the initial noise and those of the prior included.
        deterministic: whether there is none after the start.
    """

    start: Tensor
    end: Tensor
    draws: int
    deterministic: bool


class LinearRun:
    """A sampler with the Gaussian oracle, given draws of one's own choice.

    A process that learns of the training images learns of `CHOICES` images: 0, 1 and 2 standard deviations at every
    frequency.
    """

    def __init__(self, spectrum: Tensor, process: Process, sampler: Sampler) -> None:
        self.spectrum, self.process, self.sampler = spectrum, process, sampler
        self.levels = sampler.grid.levels(process)
        check_noise(process, self.levels, spectrum[None])

    def __call__(self, draws: Impulses) -> tuple[Tensor, Tensor, int]:
        """u at the first level and at the last, [B, C, H, W], and how many draws the first took."""
        process = self.process
        if process.learned is None:
            process = copy(process)
            steps = torch.arange(CHOICES, dtype=torch.float64).view(-1, 1, 1, 1)
            process.learned = process.learn([idct(steps * draws.pattern * self.spectrum.sqrt())])
        normal = draws.normal(*self.spectrum.shape, dtype=torch.float64)
        start = process.prior(normal, self.levels[0], draws)
        before = draws.drawn
        oracle = GaussianOracle(self.spectrum, process)
        return start, self.sampler.descend(oracle, process, start, self.levels, draws), before


def spread(spectrum: Tensor, process: Process, sampler: Sampler) -> Spread:
    """The exact law of a sampler's samples of normal data, without Monte Carlo.

    Sampling being linear and diagonal in frequency, the variance of a coefficient is the sum of the squares of its
    responses to a unit impulse in each draw; every image of a batch has its impulse in another draw.

    Args:
        spectrum: S, float64 [C, H, W].
        process: any with noise at all levels but the last.
        sampler: any; N draws cost N times as much as one.

    Raises:
        UserError: sampling is not linear and diagonal in frequency, or there is a level without noise.
    """
    run, ones = LinearRun(spectrum, process, sampler), torch.ones_like(spectrum)
    signs = torch.randint(2, spectrum.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    silent, unit, double = constant(0, ones), constant(1, ones), constant(2, signs)
    start, end, before = run(unit)
    check_linear(run(silent)[1], torch.zeros_like(end), end)
    check_linear(run(double)[1], 2 * signs * end, end)
    if unit.drawn == 1:
        return Spread(start[0].square(), end[0].square(), 1, True)
    starts, ends, total = (torch.zeros_like(end) for _ in range(3))
    for mine in torch.arange(unit.drawn).split(AT_ONCE):
        first, last, _ = run(Impulses(partial(among, mine), ones))
        starts += first.square().sum(0)
        ends += last.square().sum(0)
        total += last.sum(0)
    check_linear(total, end, end)
    return Spread(starts[0], ends[0], unit.drawn, unit.drawn == before)


def check_linear(found: Tensor, expected: Tensor, size: Tensor) -> None:
    """Raise UserError unless a response is what it is for a linear sampler."""
    off = ((found - expected).abs().max() / size.abs().max()).item()
    check(
        off <= LINEAR,
        f"sampling is not linear and diagonal in frequency (off by {off:.2g} of its response), so that its law is not "
        "known exactly: use --kind dataset, or leave out what clips, scales or mixes",
    )


def frechet(deviation: Tensor, reference: Tensor) -> dict[str, float]:
    """Σ(√v - √S)², the squared Fréchet distance of two centred Gaussians that are diagonal in one basis, and the share
    of each third of √λ in it; float64 [C, H, W] each."""
    squares = (deviation - reference).square()
    total = squares.sum().item()
    band = band_index(reference, len(BANDS))
    shares = {name: squares[:, band == k].sum().item() / total if total else 0.0 for k, name in enumerate(BANDS)}
    return {"total": total, **shares}


def gaussian_error(spectrum: Tensor, process: Process, sampler: Sampler) -> dict[str, Any]:
    """How far a sampler's samples are from data that are N(0, diag S): exact.

    Returns:
        nfe; draws; variance, ΣS; frechet, squared, to the data; frechet_ode, for a deterministic sampler, to where the
        exact ODE takes the same start; of both the share of each band of frequencies, share_low, share_mid, share_high
        and share_ode_low …

    Raises:
        UserError: see `spread`.
    """
    found = spread(spectrum, process, sampler)
    to_data = frechet(found.end.sqrt(), spectrum.sqrt())
    to_ode: dict[str, float | None] = dict.fromkeys(("total", *BANDS))
    if found.deterministic:
        levels = sampler.grid.levels(process)
        oracle = GaussianOracle(spectrum, process)
        exact = oracle.exact_flow(found.start.sqrt()[None], levels[0], levels[-1])
        # Where the last level has noise left, samplers return the mean there.
        gains = process.gains(levels[-1], exact)
        exact = (gains.signal * oracle(exact, levels[-1]).clean)[0]
        to_ode.update(frechet(found.end.sqrt(), exact))
    return {
        "nfe": sampler.nfe,
        "draws": found.draws,
        "variance": spectrum.sum().item(),
        "frechet": to_data["total"],
        **{f"share_{name}": to_data[name] for name in BANDS},
        "frechet_ode": to_ode["total"],
        **{f"share_ode_{name}": to_ode[name] for name in BANDS},
    }


# ---------------------------------------------------------------------- data that are images
class FinerGrid(Grid):
    """The levels of another grid with evenly spaced clock readings between them.

    Args:
        grid: whose levels are kept.
        steps: N or a few more, an equal number between any two levels.
    """

    def __init__(self, grid: Grid, steps: int) -> None:
        self.grid = grid
        self.steps = steps

    def clocks(self) -> Tensor:
        own = self.grid.clocks()
        parts = max(1, math.ceil(self.steps / (len(own) - 1)))
        weight = torch.arange(parts, dtype=torch.float64) / parts
        return torch.cat([torch.lerp(own[:-1, None], own[1:, None], weight).flatten(), own[-1:]])


def dataset_error(
    images: Tensor, process: Process, sampler: Sampler, seeds: Sequence[int], ode_steps: int
) -> dict[str, Any]:
    """How far samples are from data that are a finite set of images.

    Args:
        images: pixels in [-1, 1], float64 [N, C, H, W].
        process: any with noise at all levels but the last.
        sampler: any.
        seeds: one a sample.
        ode_steps: of the solver that stands for the exact ODE; 0 for none.

    Returns:
        nfe; nearest_mse, the mean square distance to the nearest image; landed, the share of samples nearer than
        `LANDED`; rms_ode, of a deterministic sampler, the root mean square distance to where Heun's rule with ode_steps
        steps takes the same start.

    Raises:
        UserError: there is a level without noise.
    """
    levels, u0 = sampler.grid.levels(process), dct(images)
    check_noise(process, levels, u0)
    if process.learned is None:
        process = copy(process)
        process.learned = process.learn([images])
    oracle, nearest, apart = DatasetOracle(u0, process), [], []
    exact = Sampler(FinerGrid(sampler.grid, ode_steps), Heun())
    finer = exact.grid.levels(process)
    for mine in torch.tensor(seeds).split(AT_ONCE):
        streams = SeedStreams(mine.tolist())
        start = process.prior(streams.normal(*u0.shape[1:], dtype=torch.float64), levels[0], streams)
        before = streams.generators[0].get_state()
        u = sampler.descend(oracle, process, start, levels, streams)
        deterministic = torch.equal(before, streams.generators[0].get_state())
        distances = torch.cdist(u.flatten(1), u0.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        nearest.append(distances.min(1).values.square() / u0[0].numel())
        if deterministic and ode_steps:
            apart.append((u - exact.descend(oracle, process, start, finer, streams)).square().mean((1, 2, 3)))
    mse = torch.cat(nearest)
    return {
        "nfe": sampler.nfe,
        "nearest_mse": mse.mean().item(),
        "landed": (mse < LANDED).double().mean().item(),
        "rms_ode": torch.cat(apart).mean().sqrt().item() if apart else None,
        "ode_nfe": exact.nfe if apart else None,
    }
