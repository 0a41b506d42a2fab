"""Restoration with oracles in the place of networks: where it starts, and where it ends."""

import math
from pathlib import Path
from unittest.mock import patch
from urllib.error import URLError

import pytest
import torch
import torchvision
from torch import Tensor
from torchmetrics.image import LearnedPerceptualImagePatchSimilarity

from warm_lightning.data import Digits
from warm_lightning.errors import UserError
from warm_lightning.images import dequantise
from warm_lightning.metrics.fidelity import SMALLEST, Fidelity, ssim_window
from warm_lightning.oracles import DatasetOracle, GaussianOracle
from warm_lightning.processes import (
    IHDM,
    BlurredNoise,
    BlurringDiffusion,
    BlurringSchedule,
    ColdDiffusion,
    ColouredNoise,
    ConstantBNR,
    CosineSchedule,
    FlowMatching,
    GaussianKernel,
    HeatDissipation,
    Hot,
    LinearSchedule,
    LowPassFlowMatching,
    PFGMpp,
    PowerBand,
    PowerLaw,
    Process,
    ProgressiveDeblurring,
    QuarticRate,
    RandomBNR,
    SoftDiffusion,
    VariancePreserving,
    Warm,
)
from warm_lightning.restoration import Start, find_level, find_start, observe, restore
from warm_lightning.rng import SeedStreams
from warm_lightning.samplers import Euler, EvenGrid, Grid, Multistep, PowerGrid, Sampler
from warm_lightning.spectral import dct, frequencies, idct, power_spectrum

DDPM = VariancePreserving(LinearSchedule())
LEE = ProgressiveDeblurring(LinearSchedule(), QuarticRate(), kernel=GaussianKernel())
STEPS, POWER = EvenGrid(1000, 1000), PowerGrid()
FLOW, RED = EvenGrid(100, 1.0, whole=False), PowerBand(-1.0)
# Processes, a grid for each, and clock readings on it.
KNOWN: list[tuple[Process, Grid, list[float]]] = [
    (Warm(ConstantBNR(0.5)), POWER, [0.002, 0.3, 1.0, 80.0]),
    (Warm(PowerLaw(0.3, 2.0)), POWER, [0.05, 3.0]),
    (Warm(BlurringSchedule()), POWER, [0.05, 0.3, 3.0]),
    (Warm(RandomBNR(0.0, 2.0, 0.7)), POWER, [0.05, 3.0]),
    (Hot(), POWER, [0.002, 1.0, 80.0]),
    (PFGMpp(128), POWER, [1.0]),
    (DDPM, STEPS, [1.0, 37.5, 500.0, 1000.0]),
    (VariancePreserving(CosineSchedule()), STEPS, [3.0, 700.0]),
    (LEE, STEPS, [3.0, 120.0, 700.0]),
    (BlurringDiffusion(), EvenGrid(1000, 1.0, whole=False), [0.01, 0.3, 0.99]),
    (IHDM(), EvenGrid(200, 200), [0.5, 1.0, 57.25, 200.0]),
    (SoftDiffusion(), STEPS, [1.0, 300.0, 1000.0]),
    (ColdDiffusion(), EvenGrid(50, 50), [1.0, 17.5, 50.0]),
    (FlowMatching(), FLOW, [0.01, 0.3, 0.95]),
    (FlowMatching(HeatDissipation()), FLOW, [0.01, 0.3, 0.95]),
    (ColouredNoise(DDPM, RED), STEPS, [1.0, 500.0]),
]


@pytest.fixture(scope="module")
def digits() -> Tensor:
    """Float64 [1797, 1, 8, 8]."""
    return dequantise(Digits().train_images().as_tensor(), torch.float64)


def start_at(process: Process, grid: Grid, alpha: float, beta: float, add_noise: bool = False) -> Start:
    return find_start(process, grid, torch.zeros(1, 1, 8, 8, dtype=torch.float64), alpha, beta, add_noise)


@pytest.mark.parametrize(("process", "grid", "readings"), KNOWN, ids=lambda v: type(v).__name__)
def test_a_level_of_the_path_is_found_again(process: Process, grid: Grid, readings: list[float]) -> None:
    for reading in readings:
        clock = torch.tensor([reading], dtype=torch.float64)
        level = process.level(clock)
        found = find_level(process, grid.clocks()[:1], level.alpha.item(), level.beta.item())
        assert found is not None
        # A bisection in float64; where cosine's last steps are steep in the noise, rounding of that is what is left.
        torch.testing.assert_close(found.clock, clock, rtol=1e-6, atol=0)


def test_levels_beside_the_path_are_refused() -> None:
    first = POWER.clocks()[:1]
    assert find_level(Warm(ConstantBNR(0.5)), first, 0.504, 1.0) is not None  # within 1 %
    for alpha, beta in [(0.51, 1.0), (0.5, 1.05), (0.0, 1.0), (0.5, 0.0), (50.0, 100.0)]:
        assert find_level(Warm(ConstantBNR(0.5)), first, alpha, beta) is None


# The amplitudes of `RED` on 8×8 are √(c/λ), with a mean square of 1: at the highest frequency √(1/98/S) = 0.317, where
# S is the mean of 1/(i² + j²) over all i, j < 8, with 1 at (0, 0).
REFUSED = [
    (Warm(), POWER, 0.7, 1.0, False, ["the model has a blur of 0.5 pixels", "0.7 pixels, noise 1.4; with add"]),
    (Warm(), POWER, 0.2, 1.0, True, ["the model has a blur of 0.5 pixels", "0.2 pixels, noise 0.4; restore"]),
    (Warm(), POWER, 0.0, 1.0, True, ["the model has a blur of 0.5 pixels"]),
    (Warm(), POWER, 50.0, 100.0, True, ["its blur is 0 to 40 pixels and its noise 0 to 80"]),
    (Warm(RandomBNR()), POWER, 3.0, 1.0, False, ["a blur of 0 to 2 pixels", "noise 1.5 or more", "add_noise"]),
    (Warm(RandomBNR(0.2, 1)), POWER, 0.1, 1.0, True, ["a blur of 0.2 to 1 pixels", "noise 0.1 to 0.5"]),
    (Hot(), POWER, 0.5, 1.0, True, ["the model has a blur of 0 pixels"]),
    (DDPM, STEPS, 0.0, 200.0, True, ["its noise 0 to 157.4"]),
    (IHDM(), EvenGrid(200, 200), 2.0, 0.01, False, ["at a blur of 2 pixels, noise 0.02", "add_noise"]),
    (IHDM(), EvenGrid(200, 200), 2.0, 0.1, True, ["at a blur of 2 pixels, noise 0.02"]),
    (ColdDiffusion(), EvenGrid(50, 50), 2.0, 0.1, True, ["at a blur of 2 pixels, noise 0"]),
    (BlurringDiffusion(d_min=0.05), EvenGrid(9, 1.0, whole=False), 10.0, 1.0, True, ["is not Gaussian"]),
    (ProgressiveDeblurring(), STEPS, 0.0745, 1.234, True, ["is not Gaussian"]),
    (LEE, STEPS, 0.1048, 1.234, False, ["not white", "1.05 times", "add_noise"]),
    (ColouredNoise(DDPM, RED), STEPS, 0.0, 0.5, False, ["not white", "0.317 times", "level 1.577", "add_noise"]),
    (ColouredNoise(DDPM, RED), STEPS, 0.0, 100.0, True, ["not white", "too little at some frequencies"]),
    (Warm(), POWER, -0.5, 1.0, False, ["blur is -0.5"]),
    (Warm(), POWER, 0.5, -1.0, False, ["noise is -1"]),
    (Warm(), POWER, 0.5, math.nan, False, ["noise is nan"]),
    (Warm(), POWER, math.inf, math.inf, False, ["blur is inf"]),
    (Warm(), POWER, 0.0, 0.0, False, ["nothing to restore"]),
]  # fmt: skip


@pytest.mark.parametrize(("process", "grid", "alpha", "beta", "add_noise", "words"), REFUSED)
def test_a_level_that_the_model_does_not_know_is_refused_with_those_that_it_knows(
    process: Process, grid: Grid, alpha: float, beta: float, add_noise: bool, words: list[str]
) -> None:
    with pytest.raises(UserError) as error:
        start_at(process, grid, alpha, beta, add_noise)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_restoring_with_a_model_of_the_plane() -> None:
    start = start_at(Warm(RandomBNR(0.0, 2.0, bnr=0.5)), POWER, 1.2, 1.0)
    levels = start.levels(POWER)
    for level in levels[:-1]:
        torch.testing.assert_close(level.alpha / level.beta, torch.tensor([1.2], dtype=torch.float64))
    assert isinstance(PFGMpp(128).nearest_path(0.0, 1.0), PFGMpp)


def test_the_grid_begins_at_the_start() -> None:
    process, clocks = Warm(ConstantBNR(0.5)), POWER.clocks()
    between = start_at(process, POWER, 0.5, 1.0).levels(POWER)
    assert between[0].clock.item() == pytest.approx(1.0)
    assert [level.clock.item() for level in between[1:]] == clocks[clocks < 1].tolist()
    # On a level of the grid, or so little above one that a step of its own would be a waste: the same number of steps.
    reading = clocks[9].item()
    for factor in (1 - 1e-12, 1, 1 + 1e-12, 1.01):
        start = start_at(process, POWER, 0.5 * reading * factor, reading * factor)
        assert len(start.levels(POWER)) - 1 == len(clocks[10:]), factor


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize(
    ("process", "grid", "alpha", "beta"),
    [
        (Warm(ConstantBNR(0.5)), POWER, 0.1, 0.2),
        (Warm(RandomBNR()), POWER, 0.3, 0.2),
        (Hot(), POWER, 0.0, 0.2),
        (DDPM, EvenGrid(100, 1000), 0.0, 0.2),
        (BlurringDiffusion(blur_max=2.0), EvenGrid(100, 1.0, whole=False), 0.0731, 0.2),
        (IHDM(), EvenGrid(200, 200), 0.6, 0.02),
        (FlowMatching(), FLOW, 0.0, 0.1),
        (FlowMatching(HeatDissipation()), FLOW, 0.309, 0.1),
        (ColouredNoise(DDPM, RED), EvenGrid(100, 1000), 0.0, 0.05),
    ],
    ids=lambda v: type(v).__name__,
)
@pytest.mark.parametrize("rule", [Euler(), Multistep()], ids=lambda r: type(r).__name__)
def test_the_dataset_oracle_finds_the_image_that_was_degraded(
    process: Process, grid: Grid, alpha: float, beta: float, rule: Euler, mean: bool, digits: Tensor
) -> None:
    # At this noise an image is nearer to its own degraded self than to any other: the posterior is a point.
    x, draws = digits[:300:10], SeedStreams(range(30))
    start = start_at(process, grid, alpha, beta, add_noise=isinstance(process, ColouredNoise))
    y = observe(x, start.level.alpha.item(), beta, draws)
    assert (y - x).square().mean() > 1e-4
    found = restore(DatasetOracle(dct(digits), start.process), Sampler(grid, rule), start, y, draws, mean)
    # Blurring Diffusion's images are blurred a little otherwise, to which d_min = 0.001 is the limit.
    torch.testing.assert_close(found, x, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("process", "grid", "alpha", "beta"),
    [
        (Warm(ConstantBNR(0.5)), POWER, 0.5, 1.0),
        (Warm(RandomBNR()), POWER, 1.5, 1.0),
        (DDPM, STEPS, 0.0, 1.0),
        (IHDM(), EvenGrid(200, 200), 1.0, 0.02),
        (FlowMatching(), FLOW, 0.0, 1.0),
    ],
    ids=lambda v: type(v).__name__,
)
def test_the_mean_of_the_gaussian_oracle_is_wieners_filter(
    process: Process, grid: Grid, alpha: float, beta: float, digits: Tensor
) -> None:
    spectrum = power_spectrum(digits)
    y = observe(digits[:5], alpha, beta, SeedStreams(range(5)))
    start = start_at(process, grid, alpha, beta)
    found = restore(GaussianOracle(spectrum, start.process), Sampler(grid), start, y, SeedStreams(range(5)), mean=True)
    blur = torch.exp(-frequencies(y) * alpha**2 / 2)
    wiener = idct(blur * spectrum / (blur**2 * spectrum + beta**2) * dct(y))
    # The level is found to 1e-13; DDPM's is within 1e-12 of the noise asked for.
    torch.testing.assert_close(found, wiener, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("process", "grid", "alpha", "beta"),
    [
        (Warm(ConstantBNR(0.5)), POWER, 0.5, 0.4),  # from 0.4 to 1
        (Warm(ConstantBNR(0.5)), POWER, 0.5, 0.0),
        (LEE, STEPS, 0.1048, 1.234),  # more at high frequencies
        (SoftDiffusion(), STEPS, 1.0, 0.02),
        (ColouredNoise(DDPM, RED), STEPS, 0.0, 0.5),  # more at low frequencies, and none at the highest
        (ColouredNoise(DDPM, BlurredNoise()), STEPS, 0.0, 0.5),
        (LowPassFlowMatching(), FLOW, 0.0, 0.5),
    ],
    ids=lambda v: type(v).__name__,
)
def test_noise_is_added_up_to_that_of_the_level(process: Process, grid: Grid, alpha: float, beta: float) -> None:
    count = 4000
    start = start_at(process, grid, alpha, beta, add_noise=True)
    y = observe(torch.zeros(count, 1, 8, 8, dtype=torch.float64), alpha, beta, SeedStreams(range(count)))
    u = start.enter(y, SeedStreams(range(count, 2 * count)))
    expected = start.process.gains(start.level, u).noise.expand(1, 1, 8, 8)[0]
    # The standard error of a standard deviation is σ/√(2·4000) = 1.1 % of it; of 64, the largest is below 4.5 of these.
    torch.testing.assert_close(u.std(0), expected, rtol=0.05, atol=0)
    # The pooled one's is an eighth of that.
    assert (u / expected).std().item() == pytest.approx(1, abs=0.006)


def test_nothing_is_added_on_the_path() -> None:
    start = start_at(Warm(ConstantBNR(0.5)), POWER, 0.5, 0.995, add_noise=True)
    y = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    assert torch.equal(start.enter(y, SeedStreams([0, 1])), dct(y))


def test_blur_and_noise_are_what_they_are_called() -> None:
    x = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    x[0, 0, 32, 20] = 1
    blurred = observe(x, 2.0, 0.0, SeedStreams([0]))[0, 0]
    rows, columns = torch.meshgrid(torch.arange(64) - 32, torch.arange(64) - 20, indexing="ij")
    gaussian = torch.exp(-(rows**2 + columns**2).double() / 8) / (8 * math.pi)
    # Sampling a Gaussian of 2 pixels folds the tail of its spectrum, exp(-2π²) of the peak.
    torch.testing.assert_close(blurred, gaussian, rtol=0, atol=1e-7)
    noisy = observe(torch.zeros(50, 1, 64, 64), 2.0, 0.3, SeedStreams(range(50)))
    assert noisy.std().item() == pytest.approx(0.3, rel=0.01)
    pixels = noisy[:, 0, :, 1:] * noisy[:, 0, :, :-1]
    assert pixels.mean().item() / 0.09 == pytest.approx(0, abs=0.01)  # white: neighbours are independent


def test_measures() -> None:
    truth = torch.randint(0, 256, (3, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = (truth.int() + torch.tensor([0, 3, -40]).view(3, 1, 1, 1)).clamp(0, 255).to(torch.uint8)
    found = Fidelity(image.shape[-1])(image, truth)
    mse = (image.double() - truth.double()).square().mean((1, 2, 3))
    torch.testing.assert_close(found["psnr"], 10 * torch.log10(255**2 / mse))
    assert found["ssim"][0].item() == pytest.approx(1)
    # Of plain images only the means are left: SSIM = (2ab + c1)/(a² + b² + c1), c1 = (0.01·255)².
    a, b = (torch.full((1, 1, 8, 8), v, dtype=torch.uint8) for v in (100, 150))
    expected = (2 * 100 * 150 + 2.55**2) / (100**2 + 150**2 + 2.55**2)
    assert Fidelity(a.shape[-1])(a, b)["ssim"].item() == pytest.approx(expected)
    assert [ssim_window(size)[0] for size in (2, 7, 8, 11, 12, 32)] == [1, 7, 7, 11, 11, 11]
    assert ssim_window(32)[1] == 1.5


def test_lpips_is_torchmetrics_on_images_in_its_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With random weights in torch hub's cache; without them the error is one line."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with patch("torch.hub.urlopen", side_effect=URLError("no route")), pytest.raises(UserError, match="TORCH_HOME"):
        Fidelity(32, "squeeze")
    with pytest.raises(UserError, match="at least 32×32, not 31×31"):
        Fidelity(SMALLEST - 1, "squeeze")
    torch.manual_seed(0)
    weights = torchvision.models.squeezenet1_1().state_dict()
    cached = tmp_path / "hub" / "checkpoints" / torchvision.models.SqueezeNet1_1_Weights.DEFAULT.url.split("/")[-1]
    cached.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, cached)
    truth = torch.randint(0, 256, (2, 1, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    images = torch.stack([truth[0], truth[1].flip(-1)])
    found = Fidelity(32, "squeeze")(images, truth)["lpips"]
    of_unit_range = (x.float().repeat(1, 3, 1, 1) / 255 for x in (images, truth))
    metric = LearnedPerceptualImagePatchSimilarity("squeeze", reduction="sum", normalize=True)
    assert found[0] == 0
    assert found[1].item() == pytest.approx(metric(*of_unit_range).item(), rel=1e-4)
    assert found[1] > 0.01


def test_the_last_level_is_no_start() -> None:
    # IHDM's last level has noise, but sampling ends there: no network would be called.
    with pytest.raises(UserError, match="at which sampling ends"):
        find_start(IHDM(), EvenGrid(200, 200), torch.zeros(1, 1, 8, 8, dtype=torch.float64), 0.0, 0.02)
