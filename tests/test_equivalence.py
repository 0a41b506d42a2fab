"""A warm path is hot diffusion with noise of a colour that depends on the level: docs/concepts/equivalence.md."""

from functools import partial

import pytest
import torch
from small import DIGITS, REPOSITORY
from test_process_oracles import SPECTRUM, U0
from torch import Tensor

from warm_lightning import load_config
from warm_lightning.data.image_set import dequantised_batches
from warm_lightning.data.stream import InOrder
from warm_lightning.oracles import DatasetOracle, GaussianOracle
from warm_lightning.processes import ConstantBNR, FlowMatching, HeatDissipation, Hot, PowerLaw, Process, Warm
from warm_lightning.processes.base import per_image
from warm_lightning.rng import SeedStreams
from warm_lightning.samplers import Euler, EvenGrid, Heun, Multistep, PowerGrid, Sampler, StepRule
from warm_lightning.spectral import dct, log_blur_mask
from warm_lightning.types import Gains, Level

GRID = PowerGrid(20, beta_max=4.0)
"""At BNR 0.5 blur goes to 2 pixels, and the noise without blur to e^39 times as much."""


class Unblurred(Warm):
    """A warm path without its blur: A = 1 and B = β/M_α."""

    def gains(self, level: Level, like: Tensor) -> Gains:
        noise = per_image(level.beta, like) * (-log_blur_mask(level.alpha, like)).exp()
        return Gains(torch.zeros_like(noise), noise)


class HeatInWarmForm(Warm):
    """The path of heat dissipation flow matching in the warm family."""

    def __init__(self) -> None:
        super().__init__(HeatDissipation())


def oracles(process: Process, kind: str) -> GaussianOracle | DatasetOracle:
    return GaussianOracle(SPECTRUM, process) if kind == "gaussian" else DatasetOracle(U0, process)


PATHS = [ConstantBNR(0.5), PowerLaw(0.4, 0.8)]


@pytest.mark.parametrize("kind", ["gaussian", "dataset"])
@pytest.mark.parametrize("path", PATHS)
def test_oracles_are_the_same(path: ConstantBNR, kind: str) -> None:
    warm, other = Warm(path), Unblurred(path)
    normal = SeedStreams(range(5)).normal(1, 8, 8, dtype=torch.float64)
    for beta in (0.01, 0.3, 1.5, 4.0):
        level = warm.level(torch.tensor([beta], dtype=torch.float64))
        gains = warm.gains(level, U0)
        u = gains.signal * U0[:5] + gains.noise * dct(normal)
        a, b = oracles(warm, kind)(u, level), oracles(other, kind)(u / gains.signal, level)
        torch.testing.assert_close(a.clean, b.clean, rtol=0, atol=1e-10)
        torch.testing.assert_close(a.noise, b.noise, rtol=0, atol=1e-10)


def test_the_probability_flow_is_the_same() -> None:
    warm, other = Warm(), Unblurred()
    t, s = (warm.level(torch.tensor([beta], dtype=torch.float64)) for beta in (4.0, 0.1))
    here, there = warm.gains(t, U0), warm.gains(s, U0)
    u = here.signal * U0[:5]
    moved = GaussianOracle(SPECTRUM, warm).exact_flow(u, t, s)
    same = GaussianOracle(SPECTRUM, other).exact_flow(u / here.signal, t, s)
    torch.testing.assert_close(moved / there.signal, same, rtol=0, atol=1e-10)


def samples(process: Process, rule: StepRule, kind: str, grid: PowerGrid | EvenGrid = GRID) -> Tensor:
    """Samples from the same start at all frequencies, B times the same normal draws."""
    draws = SeedStreams(range(4))
    start = draws.normal(1, 8, 8, dtype=torch.float64)
    levels = grid.levels(process)
    u = process.gains(levels[0], start).noise * dct(start)
    return Sampler(grid, rule).descend(oracles(process, kind), process, u, levels, draws)


@pytest.mark.parametrize("kind", ["gaussian", "dataset"])
@pytest.mark.parametrize("rule", [Euler(), Euler(0.5), Euler(1.0), Multistep(2), Multistep(3)])
def test_samples_are_the_same(rule: StepRule, kind: str) -> None:
    for path in PATHS:
        torch.testing.assert_close(
            samples(Warm(path), rule, kind), samples(Unblurred(path), rule, kind), rtol=0, atol=1e-10
        )


def test_heuns_rule_is_not() -> None:
    """Its error is of second order in both, and is another one."""
    differences, errors = [], []
    exact = samples(Warm(), Heun(), "gaussian", PowerGrid(640, beta_max=4.0))
    for steps in (40, 80, 160):
        a, b = (samples(p, Heun(), "gaussian", PowerGrid(steps, beta_max=4.0)) for p in (Warm(), Unblurred()))
        differences.append((a - b).norm().item())
        errors.append((a - exact).norm().item())
    assert differences[0] > 0.1 * errors[0] > 1e-6
    assert differences[0] / differences[1] == pytest.approx(4, rel=0.3)
    assert differences[1] / differences[2] == pytest.approx(4, rel=0.3)


def test_heat_dissipation_flow_matching_is_a_warm_path() -> None:
    """On the levels t = β/(1 + β); from the same start, B times the same draws, at scales that differ by 1 + β."""
    betas = GRID.clocks()

    class Times(EvenGrid):
        def clocks(self) -> Tensor:
            return betas / (1 + betas)

    flow, warm = FlowMatching(HeatDissipation()), HeatInWarmForm()
    for rule in (Euler(), Multistep()):
        found = samples(flow, rule, "dataset", Times(20, 1.0, whole=False))
        torch.testing.assert_close(found, samples(warm, rule, "dataset"), rtol=0, atol=1e-9)


def loss(process: Process, preconditioning: str) -> Tensor:
    """Losses of one network on the same images, levels and noise, [B, branches], without its blur's level."""
    settings = {"model.preconditioning": preconditioning, "model.parameterization": "Denoiser"}
    small = {"model.network.model_channels": 8, "model.network.channel_mult": [1], "model.clock_law.mean": -1.5}
    module, data = load_config([DIGITS, REPOSITORY / "configs" / "method" / "warm.yaml"], small | settings)
    for weight in module.network.parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    module.double().eval()
    model = module.model("raw").replaced(process=process)
    model.learn(partial(dequantised_batches, data.train_images()))
    with torch.no_grad():
        return model.loss(InOrder(data.train_images())[range(64)], SeedStreams(range(64)), training=False)[0]


def test_trainings_are_the_same_with_spectral_preconditioning_and_no_others() -> None:
    torch.testing.assert_close(
        loss(Warm(), "SpectralPreconditioning"), loss(Unblurred(), "SpectralPreconditioning"), rtol=1e-7, atol=0
    )
    with_edms = [loss(process, "EDMPreconditioning") for process in (Warm(), Unblurred())]
    assert (with_edms[0] - with_edms[1]).abs().max() > 1e-3
    hot = loss(Hot(), "SpectralPreconditioning")
    assert (hot - loss(Warm(), "SpectralPreconditioning")).abs().max() > 1e-3  # the test sees blur
