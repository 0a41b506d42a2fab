"""Every process with oracles in place of a network: samplers land on images, and variances are the data's."""

import itertools
import math

import pytest
import torch
from disagreeing_oracle import DisagreeingOracle
from torch import Tensor
from truths import coefficients, digits, final_variance, gains_at, levels

from warm_lightning.oracles import DatasetOracle, GaussianOracle
from warm_lightning.parameterizations import (
    Denoiser,
    DenoiseRestore,
    Epsilon,
    InvertedBlur,
    LessBlurred,
    Parameterization,
)
from warm_lightning.preconditioning import EDMPreconditioning, Preconditioning, Unscaled
from warm_lightning.processes import (
    IHDM,
    BlurringDiffusion,
    BlurringSchedule,
    ColdDiffusion,
    ConstantBNR,
    CosineSchedule,
    Hot,
    LogRate,
    PFGMpp,
    PowerLaw,
    Process,
    ProgressiveDeblurring,
    QuarticRate,
    RandomBNR,
    SoftDiffusion,
    VariancePreserving,
    Warm,
)
from warm_lightning.rng import SeedStreams
from warm_lightning.samplers import (
    Direct,
    Euler,
    EvenGrid,
    Grid,
    Heun,
    Momentum,
    PowerGrid,
    ReverseDiffusion,
    Sampler,
    StepRule,
)
from warm_lightning.spectral import dct, power_spectrum
from warm_lightning.types import Estimate, Estimator, Level

LIKE = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
IMAGES = digits(100)
U0 = dct(IMAGES)
SPECTRUM = power_spectrum(IMAGES)  # 0.024 to 1.6

PROCESSES: dict[str, Process] = {
    "hot": Hot(),
    "warm": Warm(ConstantBNR(0.5)),
    "power law": Warm(PowerLaw(0.5, 0.8)),
    "blurring schedule": Warm(BlurringSchedule()),
    "plane": Warm(RandomBNR()),
    "pfgmpp": PFGMpp(128),
    "blurring": BlurringDiffusion(),
    "blurring, sin": BlurringDiffusion(power=1),
    "blurring, 0": BlurringDiffusion(0),
    "ddpm": VariancePreserving(),
    "cosine": VariancePreserving(CosineSchedule()),
    "lee, quartic": ProgressiveDeblurring(),
    "lee, log": ProgressiveDeblurring(rate=LogRate()),
    "lee, 0": ProgressiveDeblurring(rate=QuarticRate(0)),
    "ihdm": IHDM(),
    "soft": SoftDiffusion(),
    "cold": ColdDiffusion(),
}


def grid(process: Process, steps: int) -> Grid:
    if process.max_clock == math.inf:
        return PowerGrid(steps)
    return EvenGrid(
        min(steps, int(process.max_clock)) if process.max_clock > 1 else steps, process.max_clock, process.max_clock > 1
    )


def sample(process: Process, rule: StepRule, ask: Estimator, steps: int, count: int = 8) -> Tensor:
    if process.learned is None:
        process.learned = process.learn([IMAGES])
    draws = SeedStreams(range(count))
    start = draws.normal(1, 8, 8, dtype=torch.float64)
    return Sampler(grid(process, steps), rule)(ask, process, start, draws)


def distances(u: Tensor) -> Tensor:
    """Mean square error to the nearest image, [B]."""
    return (u[:, None] - U0).square().mean((2, 3, 4)).min(1).values


def nearest(process: Process) -> Estimator:
    """The dataset oracle without noise: its estimate is the image whose blurred version is nearest."""

    def ask(u: Tensor, level: Level) -> Estimate:
        blurred = process.gains(level, u).signal * U0
        return Estimate(U0[(u[:, None] - blurred).square().sum((2, 3, 4)).argmin(1)], torch.zeros_like(u))

    return ask


# The mean squares of digits are 0.5. At a last level without noise samples are training images to rounding; where
# Blurring Diffusion ends, a deterministic sampler leaves its noise of 0.0067² = 4.5e-5, and IHDM's 0.02² from where
# blur has not taken it. Cold Diffusion's Algorithm 2 keeps the noise of its prior, 0.002² = 4e-6, and what is not the
# image of its colour.
NOISE_LEFT = {"blurring": 1e-4, "blurring, sin": 2e-4, "blurring, 0": 1e-4, "ihdm": 4e-4, "cold": 1e-4}


EASY = [name for name in PROCESSES if name != "lee, log"]


@pytest.mark.parametrize("rule", [Euler(), Heun()])
@pytest.mark.parametrize("name", EASY)
def test_deterministic_samplers_land_on_training_images(name: str, rule: StepRule) -> None:
    process = PROCESSES[name]
    ask = nearest(process) if name == "cold" else DatasetOracle(U0, process)
    assert distances(sample(process, rule, ask, 30)).max() < NOISE_LEFT.get(name, 1e-20)


def test_lees_log_rate_needs_its_smallest_levels() -> None:
    """It blurs so early that the tenth of 1,000 levels does not tell which image it was (their Table 1)."""
    process = PROCESSES["lee, log"]
    assert distances(sample(process, Euler(), DatasetOracle(U0, process), 1000, count=3)).max() < 1e-20


@pytest.mark.parametrize("name", EASY)
def test_direct_lands_on_training_images(name: str) -> None:
    process = PROCESSES[name]
    ask = nearest(process) if name == "cold" else DatasetOracle(U0, process)
    last = gains_at(process, 0, LIKE).signal.min().item()
    assert distances(sample(process, Direct(), ask, 30)).max() < max(1e-20, 2 * (1 - last) ** 2)


@pytest.mark.parametrize(
    ("name", "rule", "bound"),
    [
        ("soft", Momentum(), 1e-20),
        ("lee, quartic", ReverseDiffusion(), 1e-6),
        ("cold", Momentum(), 1e-4),
        ("ihdm", Direct(0.025), 1e-20),
        ("ddpm", Euler(1.0), 1e-20),
        ("blurring", Euler(1.0), 1e-4),
    ],
)
def test_samplers_of_the_papers_land_on_images(name: str, rule: StepRule, bound: float) -> None:
    process = PROCESSES[name]
    ask = nearest(process) if name == "cold" else DatasetOracle(U0, process)
    assert distances(sample(process, rule, ask, 100)).max() < bound


# ---------------------------------------------------------------------- Gaussian data


def start_variance(process: Process) -> Tensor | None:
    """The final variance of processes that start from blurred normal images, with noise where the process has it."""
    if process.learned == {}:
        return None
    gains = gains_at(process, process.max_clock, LIKE)
    noisy = isinstance(process, SoftDiffusion)
    return gains.signal.square() * SPECTRUM + (gains.noise.square() if noisy else 0)


@pytest.mark.parametrize(
    ("name", "rule", "steps", "bound"),
    # Largest relative error of any coefficient's variance; two thirds to four fifths of it were measured.
    [
        ("hot", Heun(), 128, 0.01),
        ("hot", Euler(1.0), 125, 0.14),
        ("warm", Heun(), 128, 0.01),
        ("warm", Euler(1.0), 125, 0.15),
        ("blurring schedule", Heun(), 125, 0.06),
        ("blurring schedule", Euler(1.0), 125, 0.5),
        ("blurring", Heun(), 125, 0.022),
        ("blurring", Euler(1.0), 125, 0.36),
        ("blurring, sin", Heun(), 125, 0.46),
        ("blurring, 0", Heun(), 125, 0.015),  # of which 0.011 is the noise of its last level, whose mean is returned
        ("blurring, 0", Euler(1.0), 125, 0.17),
        ("ddpm", Heun(), 125, 0.055),
        ("ddpm", Euler(1.0), 125, 0.3),
        ("cosine", Heun(), 125, 0.015),
        ("cosine", Euler(1.0), 125, 0.18),
        ("lee, quartic", Heun(), 125, 0.055),
        ("lee, quartic", Euler(1.0), 125, 0.3),
        ("lee, quartic", ReverseDiffusion(), 125, 0.11),
        ("lee, 0", ReverseDiffusion(), 125, 0.11),
        ("soft", Heun(), 125, 0.02),
        ("soft", Momentum(), 125, 0.15),
        ("ihdm", Euler(1.0), 200, 0.5),
        ("ihdm", Direct(0.025), 200, 0.5),  # its δ is tuned to look well
    ],
)
def test_final_variances_are_the_datas(name: str, rule: StepRule, steps: int, bound: float) -> None:
    process = PROCESSES[name]
    readings, oracle = grid(process, steps).clocks(), GaussianOracle(SPECTRUM, process)
    got = final_variance(rule, oracle, process, LIKE, readings, start_variance(process))
    assert (got / SPECTRUM - 1).abs().max() < bound, (got / SPECTRUM - 1).abs().max()


STEPS = {
    ("ddpm", "cosine", "lee, quartic", "lee, log"): ((1000, 990), (300, 299), (2, 1)),
    ("blurring", "blurring, sin", "blurring, 0"): ((1, 0.99), (0.3, 0.2), (0.01, 0.001)),
    ("hot", "warm", "blurring schedule"): ((80, 60), (1, 0.7), (0.01, 0.002)),
    ("ihdm",): ((200, 199), (40, 30), (2, 1)),
    ("soft",): ((1000, 999), (40, 30), (2, 1)),
}


@pytest.mark.parametrize(
    ("name", "t", "s"), [(name, *step) for names, steps in STEPS.items() for name in names for step in steps]
)
def test_ancestral_moments_are_the_exact_posteriors(name: str, t: float, s: float) -> None:
    """The posterior of u_s given u_t for Gaussian data, with u_t = r∘u_s + N(0, B_t² - r²B_s²) and r = A_t/A_s.

    By conditioning in the joint law of (u_s, u_t): its mean is r v_s/v_t u_t, its variance v_s - r²v_s²/v_t, of which
    what is not known of u_0, A_s(1 - r²B_s²/B_t²)∘(u_0 - û_0), is no matter of the step.
    """
    process = PROCESSES[name]
    here, there = (gains_at(process, reading, LIKE) for reading in (t, s))
    v_t, v_s = (g.signal**2 * SPECTRUM + g.noise**2 for g in (here, there))
    r = (here.log_signal - there.log_signal).exp()
    mean, fresh = coefficients(Euler(1.0), GaussianOracle(SPECTRUM, process), process, LIKE, t, s)
    torch.testing.assert_close(mean, (r * v_s / v_t)[0], rtol=0, atol=1e-10)
    unknown = (there.signal * (1 - r**2 * there.noise**2 / here.noise**2)) ** 2 * SPECTRUM * here.noise**2 / v_t
    torch.testing.assert_close(fresh**2 + unknown[0], (v_s - r**2 * v_s**2 / v_t)[0], rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize(("rule", "order"), [(Euler(), 1), (Heun(), 2)])
@pytest.mark.parametrize(
    ("name", "first", "end"),
    # Between levels that all grids share: whole steps, between which a chain's curve would have corners.
    [
        ("ddpm", 1000, 104),
        ("cosine", 960, 64),
        ("lee, quartic", 1000, 104),
        ("lee, log", 1000, 104),
        ("blurring", 1.0, 0.1),
        ("blurring, sin", 1.0, 0.1),
        ("soft", 1000, 104),
    ],
)
def test_order_of_convergence(name: str, first: float, end: float, rule: StepRule, order: int) -> None:
    process = PROCESSES[name]
    oracle, errors = GaussianOracle(SPECTRUM, process), []
    for steps in (56, 112, 224, 448):
        way = levels(process, *torch.linspace(first, end, steps + 1, dtype=torch.float64).tolist())
        got = Sampler(rule=rule).descend(oracle, process, torch.ones_like(LIKE), way, SeedStreams([0]))
        errors.append((got - oracle.exact_flow(torch.ones_like(LIKE), way[0], way[-1])).norm().item())
    orders = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert abs(orders[-1] - order) < 0.25, orders


# ---------------------------------------------------------------------- beliefs that disagree


EDM = EDMPreconditioning(0.7)
ALL = [Euler(), Heun(), Euler(1.0), Heun(1.0), Momentum(), ReverseDiffusion(), Direct()]


@pytest.mark.parametrize(
    ("name", "parameterization", "preconditioning", "errors", "rules", "bound"),
    [
        ("hot", Denoiser(), EDM, (0.01,), ALL, 0.01),
        ("warm", InvertedBlur(), EDM, (0.001,), ALL, 0.01),
        ("warm", DenoiseRestore(), EDM, (0.01, 0.01), ALL, 0.01),
        ("ddpm", Epsilon(), Unscaled(), (0.01,), ALL, 0.02),
        # What is said of ε in a frequency that blur has nearly taken is amplified when nothing is drawn afresh, by
        # d_min's inverse at most; without d_min only the samplers with fresh noise stand it.
        ("blurring", Epsilon(), Unscaled(), (0.01,), ALL, 0.4),
        ("lee, quartic", Epsilon(), Unscaled(), (0.01,), [Euler(1.0), Heun(1.0), ReverseDiffusion()], 0.1),
        ("soft", Denoiser(), Unscaled(), (0.01,), [Euler(), Heun(), Euler(1.0), Momentum()], 0.05),
        # A belief about the next image says next to nothing of the clean one: this is for the paper's rule.
        ("ihdm", LessBlurred(), Unscaled(), (0.002,), [Direct(0.025)], 0.05),
    ],
)
def test_no_rule_needs_beliefs_to_be_exact(
    name: str,
    parameterization: Parameterization,
    preconditioning: Preconditioning,
    errors: tuple[float, ...],
    rules: list[StepRule],
    bound: float,
) -> None:
    """Errors in all that is said, independent at every step: the variance of what they do to samples, over S."""
    process = PROCESSES[name]
    oracle = GaussianOracle(SPECTRUM, process)
    disagreeing = DisagreeingOracle(oracle, process, parameterization, preconditioning, errors)
    for rule in rules:
        steps = 200 if name == "ihdm" else 30
        right, wrong = (sample(process, rule, ask, steps, count=4) for ask in (oracle, disagreeing))
        assert ((wrong - right).square().mean(0) / SPECTRUM).max() < bound, (rule, vars(rule))
