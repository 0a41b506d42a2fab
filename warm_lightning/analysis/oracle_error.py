"""The error of a sampler with a perfect network, which is due to the step rule, the grid and the blur alone."""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from warm_lightning.analysis.impulses import CHOICES, Impulses, constant, unit_impulses
from warm_lightning.errors import check
from warm_lightning.oracles import DatasetOracle, GaussianOracle
from warm_lightning.processes import Process
from warm_lightning.rng import SeedStreams
from warm_lightning.samplers import Grid, Heun, Sampler
from warm_lightning.spectral import band_index, dct, idct

BATCH_SIZE = 32  # float64 images: 0.8 MB for a tensor of 3×32×32

# ---- normal data

TOLERANCE = 1e-6  # of the check for linearity; learned images are kept in float32, whose rounding is 6e-8
BANDS = ("low", "mid", "high")
"""The thirds of the range of √λ."""


@dataclass(frozen=True)
class SampleLaw:
    """The law of samples that are linear in normal draws, for each frequency by itself.

    Attributes:
        start: variance of each coefficient at the start of sampling, [C, H, W].
        end: variance of each coefficient of the samples, [C, H, W].
        draws: number of draws per image, including the initial noise and the draws of the prior.
        deterministic: whether there are no draws after the start.
    """

    start: Tensor
    end: Tensor
    draws: int
    deterministic: bool


class OracleSampling:
    """Sampling with the Gaussian oracle and prescribed draws.

    A process whose prior is of training images learns from `CHOICES` images here: 0, 1 and 2 standard deviations at
    every frequency.
    """

    def __init__(self, spectrum: Tensor, process: Process, sampler: Sampler) -> None:
        self.spectrum, self.process, self.sampler = spectrum, process, sampler
        self.levels = sampler.grid.levels(process)
        process.check_noise(self.levels, spectrum[None])

    def __call__(self, draws: Impulses) -> tuple[Tensor, Tensor, int]:
        """u at the first level and at the last, [B, C, H, W] each, and the number of draws before the first step."""
        process = deepcopy(self.process)
        for part in process.learners:
            if part.learned is None:
                steps = torch.arange(CHOICES, dtype=torch.float64).view(-1, 1, 1, 1)
                part.learned = part.learn([idct(steps * draws.pattern * self.spectrum.sqrt())])
        normal = draws.normal(*self.spectrum.shape, dtype=torch.float64)
        start = process.prior(normal, self.levels[0], draws)
        before = draws.drawn
        oracle = GaussianOracle(self.spectrum, process)
        return start, self.sampler.descend(oracle, process, start, self.levels, draws), before


def sample_law(spectrum: Tensor, process: Process, sampler: Sampler) -> SampleLaw:
    """The exact law of a sampler's samples of normal data, without Monte Carlo.

    Sampling is linear and diagonal in frequency, so the variance of a coefficient is the sum of the squares of its
    responses to a unit impulse in each draw. Each image of a batch has its impulse in a different draw.

    Args:
        spectrum: S, float64 [C, H, W].
        process: a process with noise at all levels but the last.
        sampler: any sampler; N draws cost N times as much as one.

    Raises:
        UserError: sampling is not linear and diagonal in frequency, or there is a level without noise.
    """
    sample, ones = OracleSampling(spectrum, with_spectrum(process, spectrum), sampler), torch.ones_like(spectrum)
    signs = torch.randint(2, spectrum.shape, generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    zero, unit, double = constant(0, ones), constant(1, ones), constant(2, signs)
    start, end, draws_before = sample(unit)
    check_linear(sample(zero)[1], torch.zeros_like(end), end)
    check_linear(sample(double)[1], 2 * signs * end, end)
    if unit.drawn == 1:
        return SampleLaw(start[0].square(), end[0].square(), 1, True)
    starts, ends, total = (torch.zeros_like(end) for _ in range(3))
    for numbers in torch.arange(unit.drawn).split(BATCH_SIZE):
        first, last, _ = sample(Impulses(partial(unit_impulses, numbers), ones))
        starts += first.square().sum(0)
        ends += last.square().sum(0)
        total += last.sum(0)
    check_linear(total, end, end)
    return SampleLaw(starts[0], ends[0], unit.drawn, unit.drawn == draws_before)


def with_spectrum(process: Process, spectrum: Tensor) -> Process:
    """A copy of a process for data of a spectrum, which noise that has the data's spectrum takes as it is."""
    process = deepcopy(process)
    for part in process.learners:
        if part.learned is None and part.needs == ("second_moment",):
            part.learned = {"second_moment": spectrum}
    return process


def check_linear(response: Tensor, expected: Tensor, size: Tensor) -> None:
    """Check that a response is that of a linear sampler.

    Args:
        response: of the sampler.
        expected: of a linear one.
        size: the response to a unit impulse, for the scale of the error.

    Raises:
        UserError: the responses differ.
    """
    off = ((response - expected).abs().max() / size.abs().max()).item()
    check(
        off <= TOLERANCE,
        f"sampling is not linear and diagonal in frequency (off by {off:.2g} of its response), so that its law is not "
        "known exactly: use --kind dataset, or remove what clips, scales or mixes from the sampler",
    )


def frechet(deviation: Tensor, reference: Tensor) -> dict[str, float]:
    """The squared Fréchet distance Σ(√v - √S)² of two centred Gaussians that are diagonal in the same basis.

    Args:
        deviation: √v, standard deviations, float64 [C, H, W].
        reference: √S, standard deviations, float64 [C, H, W].

    Returns:
        `total`, the distance, and the share of each of the `BANDS` in it.
    """
    squares = (deviation - reference).square()
    total = squares.sum().item()
    band = band_index(reference, len(BANDS))
    shares = {name: squares[:, band == k].sum().item() / total if total else 0.0 for k, name in enumerate(BANDS)}
    return {"total": total, **shares}


def gaussian_error(spectrum: Tensor, process: Process, sampler: Sampler) -> dict[str, Any]:
    """The exact distance between a sampler's samples and data that are N(0, diag S).

    Returns:
        nfe; draws; variance, ΣS; frechet, the squared distance to the data; frechet_ode, for a deterministic sampler,
        the squared distance to the law at the end of the exact ODE from the same start; and the shares of each band in
        both, share_low, share_mid, share_high and share_ode_low …

    Raises:
        UserError: see `sample_law`.
    """
    process = with_spectrum(process, spectrum)
    law = sample_law(spectrum, process, sampler)
    to_data = frechet(law.end.sqrt(), spectrum.sqrt())
    to_ode: dict[str, float | None] = dict.fromkeys(("total", *BANDS))
    if law.deterministic:
        levels = sampler.grid.levels(process)
        oracle = GaussianOracle(spectrum, process)
        exact = oracle.exact_flow(law.start.sqrt()[None], levels[0], levels[-1])
        # If the last level has noise, samplers return the mean of the clean image there.
        gains = process.gains(levels[-1], exact)
        exact = (gains.signal * oracle(exact, levels[-1]).clean)[0]
        to_ode.update(frechet(law.end.sqrt(), exact))
    return {
        "nfe": sampler.nfe,
        "draws": law.draws,
        "variance": spectrum.sum().item(),
        "frechet": to_data["total"],
        **{f"share_{name}": to_data[name] for name in BANDS},
        "frechet_ode": to_ode["total"],
        **{f"share_ode_{name}": to_ode[name] for name in BANDS},
    }


# ---- data that are a finite set of images

LANDED = 1e-6
"""Mean square distance below which a sample counts as equal to a training image."""


class FinerGrid(Grid):
    """A grid with the levels of another one and evenly spaced clock readings between them.

    Args:
        grid: the other grid.
        steps: the least number of steps N; it is raised so that there are equally many between any two levels.
    """

    def __init__(self, grid: Grid, steps: int) -> None:
        self.grid = grid
        self.steps = steps

    def clocks(self) -> Tensor:
        coarse = self.grid.clocks()
        parts = max(1, math.ceil(self.steps / (len(coarse) - 1)))
        weight = torch.arange(parts, dtype=torch.float64) / parts
        return torch.cat([torch.lerp(coarse[:-1, None], coarse[1:, None], weight).flatten(), coarse[-1:]])


def dataset_error(
    images: Tensor, process: Process, sampler: Sampler, seeds: Sequence[int], ode_steps: int
) -> dict[str, Any]:
    """The distance between samples and data that are a finite set of images.

    Args:
        images: pixels in [-1, 1], float64 [N, C, H, W].
        process: a process with noise at all levels but the last.
        sampler: any sampler.
        seeds: one per sample.
        ode_steps: steps of the solver that stands for the exact ODE; 0 for none.

    Returns:
        nfe; nearest_mse, the mean square distance to the nearest image; landed, the share of samples nearer than
        `LANDED`; rms_ode, for a deterministic sampler, the root mean square distance to the result of Heun's rule with
        ode_steps steps from the same start; and ode_nfe, the network calls of that.

    Raises:
        UserError: there is a level without noise.
    """
    levels, u0 = sampler.grid.levels(process), dct(images)
    process = deepcopy(process)
    for part in process.learners:
        if part.learned is None:
            part.learned = part.learn([images])
    process.check_noise(levels, u0)
    oracle, nearest, to_ode = DatasetOracle(u0, process), [], []
    exact = Sampler(FinerGrid(sampler.grid, ode_steps), Heun())
    finer = exact.grid.levels(process)
    for batch in torch.tensor(seeds).split(BATCH_SIZE):
        streams = SeedStreams(batch.tolist())
        start = process.prior(streams.normal(*u0.shape[1:], dtype=torch.float64), levels[0], streams)
        before = streams.generators[0].get_state()
        u = sampler.descend(oracle, process, start, levels, streams)
        deterministic = torch.equal(before, streams.generators[0].get_state())
        distances = torch.cdist(u.flatten(1), u0.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
        nearest.append(distances.min(1).values.square() / u0[0].numel())
        if deterministic and ode_steps:
            to_ode.append((u - exact.descend(oracle, process, start, finer, streams)).square().mean((1, 2, 3)))
    mse = torch.cat(nearest)
    return {
        "nfe": sampler.nfe,
        "nearest_mse": mse.mean().item(),
        "landed": (mse < LANDED).double().mean().item(),
        "rms_ode": torch.cat(to_ode).mean().sqrt().item() if to_ode else None,
        "ode_nfe": exact.nfe if to_ode else None,
    }
