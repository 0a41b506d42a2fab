"""Options of training beside Algorithm 1: the choice of noise, the learned weight of levels, the falling rate."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from small import DIGITS, REPOSITORY, here, refusal

from experiments.identity import ADDED, training_identity
from warm_lightning import load_config
from warm_lightning.checkpoints import read_checkpoint, write_checkpoint
from warm_lightning.data.image_set import dequantised_batches
from warm_lightning.data.stream import TrainingStream
from warm_lightning.errors import UserError
from warm_lightning.losses import LearnedUncertainty, NearestNoise, SquaredError
from warm_lightning.module import DiffusionModule
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


def test_a_head_that_says_the_same_of_all_levels_leaves_their_weights_alone() -> None:
    """L/e^u + u with one u: the squared error up to a factor and a constant."""
    loss = LearnedUncertainty()
    loss.uncertainty = lambda gains, like: torch.full((1, 1, 1, 1, 1), 0.8)
    errors = torch.randn(3, 1, 3, 8, 8)
    for beta in (0.02, 3.0):
        expected = SquaredError()(errors, gains(beta)) * math.exp(-0.8) + 0.8 * errors[0].numel()
        torch.testing.assert_close(loss(errors, gains(beta)), expected)


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


OPTIONS = [
    f"--config={DIGITS}",
    f"--config={REPOSITORY / 'configs' / 'method' / 'edm2.yaml'}",
    "--model.network.model_channels=8",
    "--model.network.channel_mult=[1]",
    "--model.duration=64",
    "--data.batch_size=32",
    "--scores.num_images=16",
    "--scores.max_neighbours=16",
    "--scores.every=0",
    "--samples.every=0",
]


def test_a_model_with_a_loss_that_learns_is_exported_scored_and_measured(tmp_path: Path) -> None:
    """Its head is in checkpoints and not in exported folders, and is of no use but in training."""
    run, folder = tmp_path / "run", tmp_path / "exported"
    here("fit", *OPTIONS, f"--trainer.default_root_dir={run}")
    last = run / "checkpoints" / "last.ckpt"
    assert read_checkpoint(last)["state_dict"]["cost.head.weight"].abs().sum() > 0
    here("export", str(last), str(folder))
    for checkpoint, out in ((last, "a"), (folder, "b")):
        here("test", *OPTIONS, f"--ckpt_path={checkpoint}", f"--trainer.default_root_dir={tmp_path / out}")
    scores = [json.loads((tmp_path / out / "scores.json").read_text()) for out in "ab"]
    assert [s.pop("protocol") is not None for s in scores] == [True, True]
    assert scores[0] == scores[1]
    here(
        "bits",
        *OPTIONS[:5],
        f"--ckpt_path={folder}",
        f"--outdir={tmp_path / 'bits'}",
        "--num_images=2",
        "--steps=2",
        "--split=train",
    )
    # Another loss evaluates the same model, and trains no further.
    other = [*OPTIONS, "--model.loss=SquaredError"]
    here("test", *other, f"--ckpt_path={last}", f"--trainer.default_root_dir={tmp_path / 'c'}")


@pytest.mark.parametrize(
    ("first", "then"),
    [(None, "NearestNoise"), ("NearestNoise", None)],
)
def test_a_run_is_not_resumed_with_a_part_that_it_lacked_or_had(
    first: str | None, then: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*OPTIONS, f"--trainer.default_root_dir={tmp_path}"]

    def choice(name: str | None) -> str:
        return f"--model.noise_choice={name or 'null'}"

    here("fit", *options, choice(first))
    said = refusal(capsys, "fit", *options, choice(then), "--model.duration=128", "--ckpt_path=last")
    assert "model.noise_choice" in said
    assert "a training cannot change it" in said


def test_weights_bring_the_spectrum_that_they_mean(tmp_path: Path) -> None:
    """With spectral preconditioning outputs mean something else by another spectrum."""
    options = {"model.preconditioning": "SpectralPreconditioning"} | SMALL
    module, data = load_config([DIGITS], options)
    module.model().learn(partial(dequantised_batches, data.train_images()))
    module.model().preconditioning.learned["second_moment"] *= 2  # of other images
    path = tmp_path / "other.ckpt"
    section = {"config": module.config, "images_seen": 10, "source": None, "learned": module.model().learned}
    write_checkpoint(path, module.state_dict(), section)
    started, _ = load_config([DIGITS], options | {"model.init_from": str(path)})
    started.model().learn(partial(dequantised_batches, data.train_images()))
    assert torch.equal(started.model().learned["second_moment"], module.model().learned["second_moment"])


def test_new_settings_with_their_defaults_leave_earlier_trainings_valid() -> None:
    plain = training_identity([f"--config={DIGITS}"])["model"]
    assert not ADDED.keys() & plain.keys()
    other = training_identity([f"--config={DIGITS}", "--model.noise_choice=NearestNoise"])["model"]
    assert other["noise_choice"]["class_path"].endswith("NearestNoise")
    assert {name: value for name, value in other.items() if name != "noise_choice"} == plain


def test_a_score_that_no_extractor_is_for_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here("fit", *OPTIONS, f"--trainer.default_root_dir={tmp_path}")
    only = ["--scores.extractors=[DigitsFeatures]", "--scores.scores=[LowPower]"]
    said = refusal(capsys, "test", *OPTIONS, *only, f"--trainer.default_root_dir={tmp_path}")
    assert "scores.scores LowPower means nothing on the features of DigitsFeatures" in said
