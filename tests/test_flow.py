"""Flow matching and its blurred relatives: the limits that they have in common with EDM, and what networks say."""

import math
from collections.abc import Callable

import pytest
import torch
from small import DIGITS, REPOSITORY
from test_process_oracles import LIKE, SPECTRUM, U0
from torch import Tensor
from truths import final_variance, gains_at

from warm_lightning import load_config
from warm_lightning.callbacks.samples import trajectory
from warm_lightning.data.stream import InOrder
from warm_lightning.errors import UserError
from warm_lightning.losses import HeatVelocityError, LogitNormal, LogNormal
from warm_lightning.model import DiffusionModel
from warm_lightning.oracles import DatasetOracle, GaussianOracle
from warm_lightning.parameterizations import Denoiser, StraightVelocity
from warm_lightning.processes import (
    ConstantBNR,
    FlowMatching,
    HeatDissipation,
    Hot,
    LowPassFlowMatching,
    Process,
    RandomBNR,
    Warm,
)
from warm_lightning.rng import BatchDraws, SeedStreams
from warm_lightning.samplers import AdaptiveHeat, Direct, Euler, EvenGrid, Grid, Heun, PowerGrid, Sampler
from warm_lightning.spectral import dct, frequencies, idct, log_blur_mask
from warm_lightning.types import Estimate, Level

TIMES = [0.001, 0.1, 0.5, 0.9, 0.999]
PROCESSES = {
    "flow": FlowMatching(),
    "heat": FlowMatching(HeatDissipation()),
    "warm flow": FlowMatching(ConstantBNR(0.5)),
    "low pass": LowPassFlowMatching(),
}


@pytest.mark.parametrize(("process", "other"), [(FlowMatching(), Hot()), (FlowMatching(ConstantBNR(0.5)), Warm())])
def test_its_images_are_those_of_edm_at_another_scale(process: Process, other: Process) -> None:
    """At β = t/(1 - t), and with the same blur those of the warm family."""
    for t in TIMES:
        gains, theirs = gains_at(process, t, LIKE), gains_at(other, t / (1 - t), LIKE)
        torch.testing.assert_close(gains.signal, (1 - t) * theirs.signal.expand_as(gains.signal), rtol=1e-12, atol=0)
        torch.testing.assert_close(gains.noise, (1 - t) * theirs.noise, rtol=1e-12, atol=0)
    start = gains_at(process, 1.0, LIKE)
    assert torch.equal(start.signal, torch.zeros_like(start.signal))
    assert (start.noise == 1).all()


class Times(Grid):
    """The times of EDM's grid, between 1 and 0 at which it does not start."""

    def __init__(self, betas: Tensor) -> None:
        self.betas = betas

    def clocks(self) -> Tensor:
        return self.betas / (1 + self.betas)


@pytest.mark.parametrize("oracle", [lambda p: GaussianOracle(SPECTRUM, p), lambda p: DatasetOracle(U0, p)])
def test_euler_makes_edms_samples(oracle: Callable[[Process], GaussianOracle]) -> None:
    """On the same levels, and from the same start: Euler's step, formula S, is that of DDIM, whatever the scale."""
    grid, samples = PowerGrid(20), []
    start = SeedStreams(range(4)).normal(1, 8, 8, dtype=torch.float64)
    for process, levels in ((Hot(), grid), (FlowMatching(), Times(grid.clocks()))):
        first = process.level(levels.clocks()[:1])
        u = dct(start) * process.gains(first, start).noise
        way = levels.levels(process)
        samples.append(Sampler(levels, Euler()).descend(oracle(process), process, u, way, SeedStreams(range(4))))
    torch.testing.assert_close(*samples, rtol=0, atol=1e-11)


def test_euler_and_heun_integrate_the_velocity() -> None:
    """With a straight path the steps are those of du/dt = v = ε - x0, written out here."""
    process, oracle = FlowMatching(), GaussianOracle(SPECTRUM, FlowMatching())

    def velocity(u: Tensor, t: float) -> Tensor:
        variance = (1 - t) ** 2 * SPECTRUM + t**2
        return (t - (1 - t) * SPECTRUM) / variance * u  # the mean of ε - x0 given u

    grid = EvenGrid(8, 1.0, whole=False)
    start = SeedStreams([0]).normal(1, 8, 8, dtype=torch.float64)
    for rule in (Euler(), Heun()):
        u = dct(start)
        for k in range(8, 0, -1):
            t, s = k / 8, (k - 1) / 8
            slope = velocity(u, t)
            if isinstance(rule, Heun) and s > 0:
                slope = (slope + velocity(u + (s - t) * slope, s)) / 2
            u = u + (s - t) * slope
        found = Sampler(grid, rule)(oracle, process, start, SeedStreams([0]))
        torch.testing.assert_close(found, u, rtol=0, atol=1e-12)


@pytest.mark.parametrize("limit", [FlowMatching(HeatDissipation(0.0)), LowPassFlowMatching(0.0)])
def test_without_blur_it_is_flow_matching_to_the_bit(limit: Process) -> None:
    for t in [0.0, *TIMES, 1.0]:
        gains, flow = gains_at(limit, t, LIKE), gains_at(FlowMatching(), t, LIKE)
        assert torch.equal(gains.log_signal, flow.log_signal)
        assert torch.equal(gains.noise.expand_as(LIKE), flow.noise.expand_as(LIKE))


def test_heat_dissipation_is_a_power_of_time() -> None:
    for t in TIMES:
        gains, rates = gains_at(FlowMatching(HeatDissipation(1.5)), t, LIKE), frequencies(LIKE)
        torch.testing.assert_close(gains.signal[0, 0], (1 - t) ** (1 + 1.5**2 * rates / 2), rtol=1e-10, atol=0)
        low = gains_at(LowPassFlowMatching(0.7), t, LIKE).noise
        torch.testing.assert_close(low, t * log_blur_mask(torch.tensor([0.7 * (1 - t)]), LIKE).exp(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", PROCESSES)
def test_samplers_land_on_images_and_variances(name: str) -> None:
    process, grid = PROCESSES[name], EvenGrid(125, 1.0, whole=False)
    for rule in (Euler(), Heun(), Direct()):
        draws = SeedStreams(range(6))
        start = draws.normal(1, 8, 8, dtype=torch.float64)
        samples = Sampler(EvenGrid(40, 1.0, whole=False), rule)(DatasetOracle(U0, process), process, start, draws)
        assert (samples[:, None] - U0).square().mean((2, 3, 4)).min(1).values.max() < 1e-20
    got = final_variance(Heun(), GaussianOracle(SPECTRUM, process), process, LIKE, grid.clocks(), None)
    # 0.002 to 0.016 were measured.
    assert (got / SPECTRUM - 1).abs().max() < 0.02


@pytest.mark.parametrize("name", PROCESSES)
@pytest.mark.parametrize("parameterization", [StraightVelocity(), Denoiser()])
def test_true_targets_give_the_true_estimate(name: str, parameterization: StraightVelocity) -> None:
    process, noise = PROCESSES[name], torch.randn(U0[:5].shape, dtype=torch.float64)
    truth = Estimate(U0[:5], noise)
    clocks = torch.tensor([*TIMES[1:], 1.0], dtype=torch.float64)
    gains = process.gains(process.level(clocks), truth.clean)
    found = parameterization.estimate(parameterization.targets(truth, gains), process.degrade(truth, gains), gains)
    torch.testing.assert_close(found.clean, truth.clean, rtol=0, atol=1e-9)
    torch.testing.assert_close(found.noise, noise, rtol=0, atol=1e-9)
    if isinstance(parameterization, StraightVelocity):
        torch.testing.assert_close(parameterization.targets(truth, gains)[:, 0], idct(noise - truth.clean))


def test_logit_normal_times_are_log_normal_noise_levels() -> None:
    law, p = LogitNormal(-0.4, 1.2), torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    times = law.quantile(p)
    torch.testing.assert_close(times / (1 - times), LogNormal(-0.4, 1.2).quantile(p))
    drawn = law.draw(BatchDraws(0, 0, 20_000, torch.arange(20_000)))
    expected = LogNormal(-0.4, 1.2).draw(BatchDraws(0, 0, 20_000, torch.arange(20_000)))
    torch.testing.assert_close(drawn / (1 - drawn), expected, rtol=1e-4, atol=0)
    assert LogitNormal().quantile(torch.tensor(0.5)).item() == 0.5


def test_heats_loss_is_that_of_its_velocity() -> None:
    """The difference of the velocities that follow from x̂0 and from x0, by their formula."""
    process, t = FlowMatching(HeatDissipation()), 0.3
    gains = gains_at(process, t, LIKE)
    guess = U0[1:2]
    blur, u = gains.signal / (1 - t), process.degrade(Estimate(U0[:1], dct(torch.randn_like(LIKE))), gains)

    def velocity(clean: Tensor) -> Tensor:
        return (blur * clean - u) / t + frequencies(LIKE) * blur * clean

    expected = (velocity(guess) - velocity(U0[:1])).square().sum()
    errors = Denoiser().targets(Estimate(guess, guess), gains) - Denoiser().targets(Estimate(U0[:1], guess), gains)
    torch.testing.assert_close(HeatVelocityError()(errors, gains)[0, 0], expected)


def test_the_adaptive_step_is_heuns_where_half_is_right() -> None:
    """With the share 1/2 fixed it integrates the exact velocity of the path, to second order."""
    process = FlowMatching(HeatDissipation())
    oracle = GaussianOracle(SPECTRUM, process)
    errors = []
    for steps in (32, 64, 128):
        levels = [process.level(torch.tensor([c], dtype=torch.float64)) for c in torch.linspace(0.8, 0.2, steps + 1)]
        exact = oracle.exact_flow(U0[:1], levels[0], levels[-1])
        found = Sampler(rule=Half()).descend(oracle, process, U0[:1], levels, SeedStreams([0]))
        errors.append((found - exact).norm().item())
    assert math.log2(errors[1] / errors[2]) == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("clean", [(0.8, 0.5), (0.5, 0.8)])
def test_the_adaptive_share_is_that_of_the_change_without_blurs_velocity(clean: tuple[float, float]) -> None:
    """A step of one coefficient, in numbers: its share goes to the blur's own velocity, and is not 1/2."""
    t, s, u = 0.6, 0.4, 1.3
    rate = frequencies(LIKE)[0, 2].item()
    place = torch.zeros_like(LIKE)
    place[..., 0, 2] = 1

    def velocities(x0: float, state: float, clock: float) -> tuple[float, float]:
        blurred = (1 - clock) ** (rate / 2) * x0  # exp(-λα²/2), α² = -ln(1 - t)
        return (blurred - state) / clock, -rate * blurred

    v, w = velocities(clean[0], u, t)
    v_s, w_s = velocities(clean[1], u + (t - s) * (v - w / 2), s)
    plain, full = (v_s - v) ** 2, (v_s - w_s - v + w) ** 2
    share = plain / (plain + full)
    assert abs(share - 0.5) > 0.05
    assert 0.05 < share < 0.95
    expected = u + (t - s) / 2 * (v + v_s - share * (w + w_s))
    process = FlowMatching(HeatDissipation())

    def estimator(state: Tensor, level: Level) -> Estimate:
        return Estimate((clean[0] if level.clock > 0.5 else clean[1]) * place, torch.zeros_like(place))

    levels = [process.level(torch.tensor([clock], dtype=torch.float64)) for clock in (t, s)]
    found = Sampler(rule=AdaptiveHeat()).descend(estimator, process, u * place, levels, SeedStreams([0]))
    torch.testing.assert_close(found, expected * place)


def test_the_adaptive_step_is_for_flows() -> None:
    start = SeedStreams([0]).normal(1, 8, 8, dtype=torch.float64)
    with pytest.raises(UserError, match="AdaptiveHeat is for the process FlowMatching"):
        Sampler(PowerGrid(4), AdaptiveHeat())(GaussianOracle(SPECTRUM, Hot()), Hot(), start, SeedStreams([0]))


class Half(AdaptiveHeat):
    """The rule with the share at both bounds of an interval of no width."""

    least, most = 0.5, 0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: HeatDissipation(-1),
        lambda: LowPassFlowMatching(-1),
        lambda: LogitNormal(scale=0),
        lambda: HeatVelocityError(0),
    ],
)
def test_impossible_values_are_refused_in_one_line(make) -> None:
    with pytest.raises(UserError) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_flow_over_many_paths_is_trained_on_them() -> None:
    """As the plane model is: the blur of each image is that of a BNR of its own."""
    process = FlowMatching(RandomBNR(0.0, 2.0, 0.5))
    clock = torch.full((200,), 0.5, dtype=torch.float64)
    alpha = process.draw_level(clock, SeedStreams(range(200))).alpha  # at β = 1
    assert 0 <= alpha.min() < 0.1
    assert 1.9 < alpha.max() <= 2
    assert process.nearest_path(1.5, 1.0).level(clock[:1]).alpha.item() == pytest.approx(1.5)
    with_blur = FlowMatching(ConstantBNR(0.7))
    assert torch.equal(with_blur.draw_level(clock, SeedStreams(range(200))).alpha, with_blur.level(clock).alpha)


SMALL = {"model.network.model_channels": 8, "model.network.channel_mult": [1]}


def flow(**settings: object) -> DiffusionModel:
    """A small model of the overlay heat_flow for digits, whose network says something."""
    overlay = REPOSITORY / "configs" / "method" / "heat_flow.yaml"
    module, _ = load_config([DIGITS, overlay], SMALL | {name.replace("__", "."): v for name, v in settings.items()})
    for weight in module.ema_network.parameters():
        torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return module.model()


def test_their_loss_and_step_are_options() -> None:
    model = flow(model__loss="HeatVelocityError", model__sampler__rule="AdaptiveHeat")
    _, data = load_config([DIGITS])
    losses, _ = model.loss(InOrder(data.train_images())[range(32)], SeedStreams(range(32)), training=False)
    assert losses.isfinite().all()
    samples = model.sample(model.sampler, range(4))
    assert samples.isfinite().all()
    assert model.own_nfe == 35
    # Another step than Heun's, from the same start.
    assert (samples - flow().sample(flow().sampler, range(4))).abs().max() > 1e-6


def test_trajectories_begin_with_noise_of_unit_spread() -> None:
    """At t = 1, where nothing is left of the image and EDM's noise level would be infinite."""
    model = flow()
    picture = trajectory(model, model.sampler, range(16), columns=4).float()
    first = picture[..., : picture.shape[-1] // 4]  # and below each state the first denoised image
    extreme = ((first == 0) | (first == 255)).float().mean().item()
    assert 0.08 < extreme < 0.3  # of normal pixels 32 % are beyond 1, in half of the rows; there were no others before
