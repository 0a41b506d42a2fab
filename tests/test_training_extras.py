"""Options of training beside Algorithm 1: the choice of noise, the learned weight of levels, the falling rate."""

import pytest
import torch
from small import DIGITS, REPOSITORY

from warm_lightning import load_config
from warm_lightning.data.stream import TrainingStream
from warm_lightning.errors import UserError
from warm_lightning.losses import LearnedUncertainty, SquaredError
from warm_lightning.module import DiffusionModule
from warm_lightning.noise_choice import NearestNoise
from warm_lightning.rng import BatchDraws, SeedStreams
from warm_lightning.spectral import frequencies, idct
from warm_lightning.types import Gains

SMALL = {"model.network.init_args.model_channels": 16, "model.network.init_args.channel_mult": [1]}


def draws(seed: int = 0) -> BatchDraws:
    return BatchDraws(seed, 0, 16, torch.arange(16))


def test_one_candidate_is_no_choice_to_the_bit() -> None:
    x0 = torch.rand(16, 3, 8, 8)
    for a, b in ((draws(), draws()), (SeedStreams(range(16)), SeedStreams(range(16)))):
        assert torch.equal(NearestNoise(1)(x0, a), b.normal(3, 8, 8))
        assert torch.equal(a.uniform(), b.uniform())  # and later draws are the same


def test_the_nearest_of_all_candidates_is_chosen_on_every_device() -> None:
    x0 = torch.rand(16, 3, 8, 8) * 2 - 1
    chosen, candidates = NearestNoise(8)(x0, draws()), draws().normal(8, 3, 8, 8)
    distances = [(chosen - candidates[:, k]).square().flatten(1).sum(1) for k in range(8)]
    assert (torch.stack(distances).min(0).values == 0).all()
    all_distances = (candidates - x0[:, None]).square().flatten(2).sum(2)
    torch.testing.assert_close((chosen - x0).square().flatten(1).sum(1), all_distances.min(1).values)
    mine = BatchDraws(0, 0, 16, torch.arange(4, 9))
    assert torch.equal(NearestNoise(8)(x0[4:9], mine), chosen[4:9])


def gains(beta: float) -> Gains:
    return Gains(torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), beta))


@pytest.mark.parametrize("bands", [1, 4])
def test_a_head_that_says_nothing_is_the_squared_error(bands: int) -> None:
    errors = torch.randn(3, 2, 3, 8, 8)
    loss = LearnedUncertainty(branches=2, bands=bands)(errors, gains(0.7))
    torch.testing.assert_close(loss, SquaredError()(errors, gains(0.7)))


@pytest.mark.parametrize("bands", [1, 3])
def test_the_head_learns_the_size_of_errors(bands: int) -> None:
    """The least of L/e^u + u is at u = ln L: with one level, and errors of known size in each band."""
    torch.manual_seed(0)
    loss = LearnedUncertainty(bands=bands)
    size = torch.tensor([0.1, 0.5, 2.0])[:bands]
    rates = frequencies(torch.zeros(8, 8)).sqrt()
    band = (rates / rates.max() * bands).long().clamp(max=bands - 1)
    optimizer = torch.optim.Adam(loss.parameters(), lr=0.02)
    for _ in range(300):
        errors = idct(torch.randn(64, 1, 1, 8, 8) * size[band])
        optimizer.zero_grad()
        loss(errors, gains(0.3)).mean().backward()
        optimizer.step()
    u = loss.uncertainty(gains(0.3), torch.zeros(1, 1, 1, 8, 8))[0, 0, 0]
    torch.testing.assert_close(u, 2 * size[band].log(), rtol=0, atol=0.15)


def trained(overrides: dict, steps: int = 2) -> DiffusionModule:
    module, data = load_config([DIGITS, REPOSITORY / "configs" / "method" / "hot.yaml"], SMALL | overrides)
    stream, optimizer = TrainingStream(data.train_images(), 0), module.configure_optimizers()
    for step in range(steps):
        losses, _ = module.model("raw").loss(stream[range(step * 16, step * 16 + 16)], draws(step))
        optimizer.zero_grad()
        losses.sum(1).mean().backward()
        optimizer.step()
    return module


def test_the_head_is_trained_and_saved_with_the_network() -> None:
    module = trained({"model.loss": "LearnedUncertainty"})
    assert module.cost.head.weight.abs().sum() > 0
    assert "cost.head.weight" in module.state_dict()
    with pytest.raises(UserError, match=r"model.loss.branches is 2, but the network has 1 outputs"):
        trained({"model.loss": {"class_path": "LearnedUncertainty", "init_args": {"branches": 2}}})


def test_the_learning_rate_falls_as_one_over_the_root() -> None:
    module, _ = load_config([DIGITS], SMALL | {"model.lr": 0.01, "model.lr_ramp": 1000, "model.lr_decay": 4000})
    rates = [module.learning_rate(images) for images in (500, 1000, 4000, 16_000, 64_000)]
    assert rates == pytest.approx([0.005, 0.01, 0.01, 0.005, 0.0025])
    constant, _ = load_config([DIGITS], SMALL | {"model.lr": 0.01, "model.lr_ramp": 1000})
    assert constant.learning_rate(10**9) == 0.01
    with pytest.raises(UserError, match="lr_decay is 0"):
        load_config([DIGITS], SMALL | {"model.lr_decay": 0})
