"""PFGM++ against its paper's law, its posterior, and EDM as its limit (Xu et al. 2023)."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from truths import Prescribed, clocks, digits, gains_at, noise

from warm_lightning.errors import UserError
from warm_lightning.oracles import DatasetOracle
from warm_lightning.processes import Hot, PFGMpp
from warm_lightning.rng import BatchDraws, Draws, SeedStreams
from warm_lightning.samplers import Euler, PowerGrid, Sampler
from warm_lightning.spectral import dct, idct
from warm_lightning.types import Estimate, Level


@pytest.mark.parametrize("extra_dims", [1, 2, 128, 2048])
@pytest.mark.parametrize("source", ["training", "sampling"])
def test_the_norm_of_the_noise_follows_the_papers_law(extra_dims: float, source: str) -> None:
    """R = r√(x/(1-x)) with x ~ Beta(N/2, D/2) and r = σ√D, in a direction that is uniform (their Appendix B)."""
    count, shape = 3000, (1, 4, 4)
    draws: Draws = SeedStreams(range(count)) if source == "sampling" else BatchDraws(3, 0, count, torch.arange(count))
    normal = draws.normal(*shape, dtype=torch.float64)
    z = PFGMpp(extra_dims).noise(normal, draws)
    squares = z.square().sum((1, 2, 3)) / extra_dims
    # Seed fixed: a right law fails at this threshold once in a thousand seeds, D/2 for D or N - 1 for N always.
    assert stats.kstest(squares / (1 + squares), stats.beta(16 / 2, extra_dims / 2).cdf).pvalue > 1e-3
    assert torch.nn.functional.cosine_similarity(z.flatten(1), normal.flatten(1)).min() > 1 - 1e-9
    assert stats.kstest(z[:, 0, 1, 2].numpy(), stats.t(extra_dims).cdf).pvalue > 1e-3  # each pixel is Student's


def test_the_prior_is_the_noise_of_the_first_level() -> None:
    process, draws = PFGMpp(16), SeedStreams(range(5))
    normal = draws.normal(1, 8, 8, dtype=torch.float64)
    chi_square = SeedStreams(range(5))
    chi_square.normal(1, 8, 8)
    scale = (16 / chi_square.chi_square(16)).double().sqrt().view(-1, 1, 1, 1)
    u = process.prior(normal, process.level(clocks(80)), draws)
    torch.testing.assert_close(u, 80 * scale * dct(normal), rtol=1e-6, atol=0)
    assert scale.std() > 0.05


def posterior_mean(x: Tensor, sigma: float, images: Tensor, extra_dims: float) -> Tensor:
    """Σ w_i y_i, w_i ∝ (‖x - y_i‖² + σ²D)^{-(N+D)/2}: image by image, in pixels."""
    exponent = (images[0].numel() + extra_dims) / 2
    means = []
    for one in x:
        logs = [-exponent * math.log((one - y).square().sum().item() + sigma**2 * extra_dims) for y in images]
        weights = [math.exp(value - max(logs)) for value in logs]
        means.append(sum(w * y for w, y in zip(weights, images, strict=True)) / sum(weights))
    return torch.stack(means)


@pytest.mark.parametrize("extra_dims", [1, 64, 2048])
@pytest.mark.parametrize("sigma", [0.3, 2.0, 30.0])
def test_the_dataset_oracle_has_the_papers_kernel(extra_dims: float, sigma: float) -> None:
    images, process = digits(40), PFGMpp(extra_dims)
    x = images[:3] + sigma * noise(3, 1, 8, 8)
    level = process.level(clocks(sigma))
    estimate = DatasetOracle(dct(images), process)(dct(x), level)
    expected = posterior_mean(x, sigma, images, extra_dims)
    torch.testing.assert_close(idct(estimate.clean), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(idct(estimate.noise), (x - expected) / sigma, rtol=0, atol=1e-10)
    normal = DatasetOracle(dct(images), Hot())(dct(x), level)
    if (extra_dims, sigma) == (1, 2.0):
        assert (normal.clean - estimate.clean).abs().max() > 0.1  # the kernel matters


def network(u: Tensor, level: Level) -> Estimate:
    """A random denoiser of pixels, smooth and not linear, with EDM's c_in and c_skip."""
    sigma, mixing = level.beta.item(), noise(8, 8, seed=9) / 3
    x = idct(u)
    clean = (x / (1 + 4 * sigma**2) + 0.5 * torch.tanh(mixing @ x / math.sqrt(sigma**2 + 0.25))) / 2
    return Estimate(dct(clean), (u - dct(clean)) / sigma)


@pytest.mark.parametrize("asked", ["network", "oracle"])
def test_in_a_million_extra_dimensions_it_is_edm_path_by_path(asked: str) -> None:
    """Prior, all that is on the way and samples of the same seeds, relative to EDM's, to 1e-3 (root mean square).

    √(D/χ²_D) - 1 itself has a standard deviation of 1/√(2D) = 7e-4.
    """
    images, seeds = digits(), range(48)
    paths = []
    for process in (Hot(), PFGMpp(1e6)):
        ask = network if asked == "network" else DatasetOracle(dct(images), process)
        draws, path = SeedStreams(seeds), []
        start = draws.normal(1, 8, 8, dtype=torch.float64)
        run = Sampler(PowerGrid(18))
        run(ask, process, start, draws, watch=lambda u, level, path=path: path.append(u))
        paths.append(path)
    for step, (edm, ours) in enumerate(zip(*paths, strict=True)):
        off = (ours - edm).flatten(1).norm(dim=1) / edm.flatten(1).norm(dim=1)
        assert off.square().mean().sqrt() < 1e-3, step
        assert off.max() < 1e-2, step  # where the oracle is about to decide for an image
    assert not torch.equal(paths[0][0], paths[1][0])


def test_in_a_million_extra_dimensions_it_trains_as_edm() -> None:
    draws, same = (BatchDraws(0, 0, 500, torch.arange(500)) for _ in range(2))
    normal = draws.normal(1, 8, 8)
    z = PFGMpp(1e6).noise(normal, draws)
    assert ((z - normal).norm() / normal.norm()).item() == pytest.approx(7.1e-4, abs=1e-4)
    assert torch.equal(Hot().noise(same.normal(1, 8, 8), same), normal)


@pytest.mark.parametrize("extra_dims", [0.5, 16, 1e6])
def test_chi_square_draws_keep_the_contract(extra_dims: float) -> None:
    together = SeedStreams(range(8)).chi_square(extra_dims)
    assert torch.equal(SeedStreams([5]).chi_square(extra_dims), together[5:6])
    assert torch.equal(SeedStreams([7, 2]).chi_square(extra_dims), together[[7, 2]])
    assert len(together.unique()) == 8
    everyone = BatchDraws(1, 512, 8, torch.arange(8))
    drawn, after = everyone.chi_square(extra_dims), everyone.uniform()
    for rows in (torch.arange(4), torch.arange(4, 8), torch.tensor([6])):
        mine = BatchDraws(1, 512, 8, rows)
        assert torch.equal(mine.chi_square(extra_dims), drawn[rows])
        assert torch.equal(mine.uniform(), after[rows])  # what is drawn next is not shifted either
    assert (
        stats.kstest(
            BatchDraws(2, 0, 3000, torch.arange(3000)).chi_square(extra_dims), stats.chi2(extra_dims).cdf
        ).pvalue
        > 1e-3
    )


def test_paths_are_edms_given_the_noise() -> None:
    """The sampler is EDM's: dx/dσ = (x - D)/σ, whatever D."""
    process, u = PFGMpp(128), noise(2, 1, 8, 8)
    for rule in (Euler(), Sampler().rule):
        ends = [
            Sampler(rule=rule).descend(network, p, 80 * u, PowerGrid(6).levels(p), Prescribed(u))
            for p in (process, Hot())
        ]
        assert torch.equal(*ends)
    assert gains_at(process, 3.0, u).noise.item() == 3


@pytest.mark.parametrize("extra_dims", [0, 0.5, -3])
def test_impossible_dimensions_are_refused(extra_dims: float) -> None:
    with pytest.raises(UserError, match="extra_dims is"):
        PFGMpp(extra_dims)
