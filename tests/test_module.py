"""The LightningModule: Algorithm 1, the optimizer settings and the log."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from small import SMALL, here
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from warm_lightning import load_checkpoint, load_config
from warm_lightning.checkpoints import FORMAT_VERSION, read_checkpoint
from warm_lightning.ema import EMA
from warm_lightning.errors import UserError
from warm_lightning.images import dequantise, read_png
from warm_lightning.model import one_hot
from warm_lightning.module import DiffusionModule
from warm_lightning.networks import DDPMpp
from warm_lightning.processes import Warm
from warm_lightning.rng import BatchDraws
from warm_lightning.samplers import Sampler
from warm_lightning.spectral import dct, frequencies, idct
from warm_lightning.types import Batch


def small_network(branches: int, label_dim: int = 0, dropout: float = 0.0) -> DDPMpp:
    return DDPMpp(branches, resolution=8, image_channels=1, label_dim=label_dim, augment_dim=0, model_channels=8,
                  channel_mult=[1], num_blocks=1, attn_resolutions=[], dropout=dropout)  # fmt: skip


def a_batch(count: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=generator)
    return Batch(images, torch.arange(count) % 3, torch.arange(count))


def test_the_loss_is_algorithm_1_written_out() -> None:
    module, batch = DiffusionModule(small_network, seed=3), a_batch()
    # An untrained network says 0; make it say something.
    torch.nn.init.normal_(module.network.dec["8x8_aux_conv"].weight, generator=torch.Generator().manual_seed(0))
    losses, clock = module.model("raw").loss(batch, BatchDraws(3, 0, 6, batch.positions), training=False)

    draws, sigma_data = BatchDraws(3, 0, 6, batch.positions), 0.5
    x0 = batch.images.float() / 127.5 - 1  # line 4
    epsilon = draws.normal(1, 8, 8)  # line 5
    beta = torch.exp(-1.2 + 1.2 * draws.normal())  # line 6
    alpha = 0.5 * beta  # line 7
    mask = torch.exp(-frequencies(x0) * alpha.view(-1, 1, 1, 1) ** 2 / 2)
    blurred = idct(mask * dct(x0))  # line 8
    b = beta.view(-1, 1, 1, 1)
    x = blurred + b * epsilon  # line 9
    residual = x0 - blurred  # line 10
    raw = module.network(x / (b**2 + sigma_data**2).sqrt(), beta.log() / 4, torch.full([6], math.log(1.5)))
    c_out = b * sigma_data / (b**2 + sigma_data**2).sqrt()
    denoised = sigma_data**2 / (b**2 + sigma_data**2) * x + c_out * raw[:, 0]  # line 11
    weight = (beta**2 + sigma_data**2) / (beta * sigma_data) ** 2
    pairs = ((denoised, blurred), (c_out * raw[:, 1], residual))
    expected = torch.stack([weight * (a - b).square().sum((1, 2, 3)) for a, b in pairs], dim=1)  # line 13
    torch.testing.assert_close(clock, beta)
    # The expm1 route to the residual and this one differ by rounding, which small β divides by.
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=1e-3)


def test_an_untrained_network_starts_at_unit_loss_per_pixel() -> None:
    # EDM's weighting makes the network's own target have unit variance at every level if σ_data is the data's.
    module, data = load_config(Path(__file__).parent.parent / "configs" / "digits.yaml")
    images = data.train_images().images[:512]
    batch = Batch(images, torch.zeros(512, dtype=torch.long), torch.arange(512))
    with torch.no_grad():
        losses, _ = module.model("raw").loss(batch, BatchDraws(0, 0, 512, batch.positions), training=False)
    # The mean of the digits is not 0 and blur lowers their variance, so unit only roughly.
    assert 0.5 < losses[:, 0].mean().item() / 64 < 1.5


def test_label_dropout_hides_the_share_it_says() -> None:
    module = DiffusionModule(lambda branches: small_network(branches, label_dim=3))
    batch = Batch(a_batch().images, torch.arange(6) % 3, torch.arange(6))
    many = Batch(batch.images, torch.arange(3000) % 3, torch.arange(3000))
    labels = module.model().class_labels(many, BatchDraws(0, 0, 3000, many.positions), dropout=0.2)
    assert labels is not None
    hidden = labels.sum(1) == 0
    assert hidden.float().mean().item() == pytest.approx(0.2, abs=0.03)  # standard error 0.007
    assert torch.equal(labels[~hidden].argmax(1), many.labels[~hidden])
    whole = module.model().class_labels(batch, BatchDraws(0, 0, 6, batch.positions), dropout=0)
    assert whole is not None
    assert torch.equal(whole.argmax(1), batch.labels)


def test_classes_that_the_model_has_not_are_refused() -> None:
    assert one_hot(torch.tensor([0, 1]), 0) is None
    model = DiffusionModule(partial(small_network, label_dim=3)).model()
    for wrong in ([0, 3], [-1, 0]):
        with pytest.raises(UserError, match="class"), model.conditioned(wrong):
            pass


def test_class_conditional_samples_follow_the_class() -> None:
    module = DiffusionModule(lambda branches: small_network(branches, label_dim=3))
    for weight in module.ema_network.parameters():  # fresh networks hardly hear what they are told
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    model, seeds = module.model(), [1, 2]
    a, b, c = (model.sample(module.model().sampler, seeds, classes) for classes in ([0, 0], [0, 2], None))
    assert torch.allclose(a[0], b[0], atol=1e-4)
    assert not torch.allclose(a[1], b[1], atol=1e-4)
    assert c.shape == a.shape


def test_raw_weights_in_training_sample_without_dropout() -> None:
    module = DiffusionModule(lambda branches: small_network(branches, dropout=0.5))
    for weight in module.network.parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    a, b = (module.model("raw").sample(module.model().sampler, [1]) for _ in range(2))
    assert torch.equal(a, b)
    assert module.network.training


@pytest.mark.parametrize("ramp", [None, 0.05])
def test_ema_has_its_half_life(ramp: float | None) -> None:
    average, network = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    torch.nn.init.zeros_(average.weight)
    torch.nn.init.ones_(network.weight)
    ema, seen, batch = EMA(half_life=1000, ramp=ramp), 0 if ramp is None else 100_000, 10
    for _ in range(100):  # 1,000 images
        seen += batch
        ema.update(average, network, seen, batch)
    assert average.weight.item() == pytest.approx(0.5, abs=1e-5)


def test_ema_ramps_up() -> None:
    ema = EMA(half_life=1e6, ramp=0.05)
    assert ema.decay(images_seen=1000, batch_size=50) == pytest.approx(0.5)
    assert ema.decay(images_seen=10**9, batch_size=50) == pytest.approx(0.5 ** (50 / 1e6))


def test_non_finite_gradients_are_replaced_and_counted() -> None:
    module = DiffusionModule(small_network)
    module.model("raw").loss(a_batch(), BatchDraws(0, 0, 6, a_batch().positions), training=False)[0].sum().backward()
    gradient = module.network.dec["8x8_aux_conv"].bias.grad
    before = gradient[1].clone()
    gradient[0] = math.nan
    module.on_before_optimizer_step(module.configure_optimizers())
    assert gradient.tolist() == [0.0, before.item()]
    gradient[0], gradient[1] = math.inf, -math.inf
    module.on_before_optimizer_step(module.configure_optimizers())
    assert gradient.tolist() == [1e5, -1e5]
    assert module.nonfinite_gradients == 3


def test_validation_prints_the_losses_of_each_branch(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    here("validate", *SMALL, f"--trainer.default_root_dir={run}")
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    found = {line[0]: float(line[1]) for line in lines if line and line[0].startswith("val/")}
    assert found["val/loss"] == pytest.approx(found["val/loss_denoise"] + found["val/loss_deblur"], rel=1e-3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten steps with everything that a run may leave behind."""
    folder = tmp_path_factory.mktemp("run")
    here(
        "fit", *SMALL, "--model.duration=320", "--model.lr=0.01", "--model.lr_ramp=640",
        f"--trainer.default_root_dir={folder}", "--trainer.log_every_n_steps=5", "--samples.every=160",
        "--samples.trajectory=2", "--scores.every=160", "--scores.every_num_images=16", "--checkpoints.every=160",
        "--checkpoints.keep_every=160", "--checkpoints.monitor=fd16_pixel",
    )  # fmt: skip
    here("test", *SMALL, f"--trainer.default_root_dir={folder}")
    here("validate", *SMALL, f"--trainer.default_root_dir={folder}")
    return folder


def test_the_log_counts_in_images(run: Path) -> None:
    events = EventAccumulator(str(run))
    events.Reload()
    losses = events.Scalars("train/loss")
    assert [event.step for event in losses] == [160, 320]
    assert losses[0].value == pytest.approx(
        events.Scalars("train/loss_denoise")[0].value + events.Scalars("train/loss_deblur")[0].value, rel=1e-5
    )
    quartiles = [events.Scalars(f"train_quartile{q}/loss_denoise")[0].value for q in range(1, 5)]
    assert all(math.isfinite(q) for q in quartiles)
    assert len(set(quartiles)) == 4
    assert events.Scalars("train/images_per_second")[0].value > 0
    assert events.Scalars("train/nonfinite_gradients")[0].value == 0
    assert events.Scalars("train/lr")[-1].value == pytest.approx(0.01 * 320 / 640)  # half-way up the ramp
    assert [event.step for event in events.Scalars("score/fd16_pixel")] == [160, 320]
    assert events.Scalars("val/loss")[-1].step == 320
    assert {"samples/ema", "trajectory/ema"} <= set(events.Tags()["images"])


def test_pictures_and_checkpoints_are_named_by_images(run: Path) -> None:
    assert sorted(p.name for p in (run / "samples").glob("*.png")) == [
        f"{what}-{seen:09d}.png" for what in ("samples", "trajectory") for seen in (160, 320)
    ]
    assert read_png(run / "samples" / "samples-000000320.png").float().std() > 1
    names = {p.name for p in (run / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "images-000000160.ckpt", "images-000000320.ckpt", "best-fd16_pixel.ckpt"}
    for name in names:
        section = read_checkpoint(run / "checkpoints" / name)["warm_lightning"]
        assert section["format_version"] == FORMAT_VERSION
    assert read_checkpoint(run / "checkpoints" / "images-000000160.ckpt")["warm_lightning"]["images_seen"] == 160


def test_a_checkpoint_makes_its_model_again(run: Path) -> None:
    trained = load_checkpoint(run / "checkpoints" / "last.ckpt")
    saved = read_checkpoint(run / "checkpoints" / "last.ckpt")
    stored = dict(saved["state_dict"])
    for weights, prefix in (("raw", "network."), ("ema", "ema_network.")):
        model = trained.model(weights)
        assert not model.network.training
        for name, value in model.network.state_dict().items():
            assert torch.equal(value, stored.pop(prefix + name))
    assert not stored
    raw, ema = (trained.model(weights).network.dec["8x8_aux_conv"].weight for weights in ("raw", "ema"))
    assert not torch.equal(raw, ema)
    assert trained.config == saved["warm_lightning"]["config"]


def test_the_scores_file_says_what_was_measured(run: Path) -> None:
    scores = json.loads((run / "scores.json").read_text())
    assert {"fd16_pixel", "fd16_pixel_halves", "fd16_pixel_gaussian", "precision16_pixel"} <= set(scores)
    protocol = scores["protocol"]
    assert (protocol["num_images"], protocol["seeds"], protocol["nfe"]) == (16, "0-15", 35)
    assert protocol["weights"] == "ema"
    assert protocol["config"]["network"]["class_path"].endswith("DDPMpp")


def test_validation_needs_no_global_randomness() -> None:
    module = DiffusionModule(small_network)
    values = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        logged: dict[str, torch.Tensor] = {}
        module.log = lambda name, value, logged=logged, **kwargs: logged.update({name: value})
        with torch.no_grad():
            module.validation_step(a_batch(), 0)
        values.append(logged)
    assert values[0].keys() == {"val/loss", "val/loss_denoise", "val/loss_deblur"}
    assert all(torch.equal(values[0][name], values[1][name]) for name in values[0])


def test_dequantise_spans_the_range() -> None:
    assert dequantise(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_objects_that_are_defaults_have_their_attributes() -> None:
    assert Warm().path.bnr == 0.5
    sampler = Sampler()
    assert (sampler.grid.steps, sampler.nfe) == (18, 35)
    assert DiffusionModule(small_network).model().preconditioning.sigma_data == 0.5
