"""Classifier-free guidance, and what the module tells its network."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from small import DIGITS, fit, here, refusal
from test_module import a_batch, small_network
from torch.nn.utils import parameters_to_vector

from warm_lightning import load_checkpoint, load_config
from warm_lightning.augment import Augmentation
from warm_lightning.callbacks.samples import trajectory
from warm_lightning.checkpoints import write_checkpoint
from warm_lightning.cli import main
from warm_lightning.data import Digits
from warm_lightning.data.stream import TrainingStream
from warm_lightning.errors import UserError
from warm_lightning.guidance import Guide
from warm_lightning.images import dequantise
from warm_lightning.model import one_hot
from warm_lightning.module import DiffusionModule
from warm_lightning.networks import DDPMpp
from warm_lightning.parameterizations import DenoiseDeblur
from warm_lightning.rng import BatchDraws, Draws, SeedStreams
from warm_lightning.samplers import Euler, PowerGrid, Sampler
from warm_lightning.spectral import dct


def module_of_classes(guidance: float = 1.0) -> DiffusionModule:
    module = DiffusionModule(
        lambda branches: small_network(branches, label_dim=3), label_dropout=0.1, guidance=guidance
    )
    for weight in module.ema_network.parameters():  # fresh networks hardly hear what they are told
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return module


def test_guidance_extrapolates_from_no_class_to_the_class() -> None:
    model = module_of_classes().model()
    u = dct(torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    level, labels = model.process.level(torch.tensor([0.5, 2.0])), one_hot(torch.tensor([0, 2]), 3)
    free, told = model.estimate(u, level), model.estimate(u, level, labels)
    for weight in (0.0, 1.0, 2.5):
        guided = model.replaced(guidance=weight).estimate(u, level, labels)
        # Estimates are affine in the outputs, so what holds for outputs holds for them. The network is float32.
        torch.testing.assert_close(guided.clean, free.clean + weight * (told.clean - free.clean), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(guided.noise, free.noise + weight * (told.noise - free.noise), rtol=1e-4, atol=1e-4)


def test_samples_are_guided() -> None:
    plain, guided = module_of_classes().model(), module_of_classes(guidance=30.0).model()
    a, b = (model.sample(model.sampler, [1, 2], [0, 1]) for model in (plain, guided))
    assert (a - b).abs().max() > 1e-3
    assert (plain.own_nfe, guided.own_nfe) == (35, 70)


def test_guidance_is_at_the_levels_of_an_interval_only() -> None:
    """Above the first and up to the second; there the estimate is guided, elsewhere it is not, to the bit."""
    model = module_of_classes(guidance=3.0).model()
    within = model.replaced(guidance_interval=(0.5, 2.0))
    u, labels = dct(torch.randn(4, 1, 8, 8, dtype=torch.float64)), one_hot(torch.tensor([0, 2, 1, 1]), 3)
    level = model.process.level(torch.tensor([0.5, 0.51, 2.0, 2.1], dtype=torch.float64))
    plain, guided = (m.estimate(u, level, labels).clean for m in (model.replaced(guidance=1.0), model))
    torch.testing.assert_close(within.estimate(u, level, labels).clean, torch.stack([plain[0], *guided[1:3], plain[3]]))
    for at in (0.5, 2.1):
        here = model.process.level(torch.tensor([at], dtype=torch.float64))
        alone = model.replaced(guidance=1.0).estimate(u, here, labels)
        assert torch.equal(within.estimate(u, here, labels).clean, alone.clean)
    # Levels 80, …, 0.002 and 0: of 18 levels, those inside count twice, and each twice again but for the first.
    inside = sum(0.5 < clock <= 2 for clock in model.sampler.grid.clocks().tolist())
    assert within.own_nfe == 35 + 2 * inside
    with pytest.raises(UserError, match="guidance_interval is"):
        DiffusionModule(small_network, guidance_interval=(2.0, 1.0))


@pytest.fixture
def weaker(tmp_path: Path) -> Path:
    """A checkpoint of a smaller network without classes."""
    module, _ = load_config([DIGITS], {"model.network.model_channels": 8, "model.network.channel_mult": [1]})
    for weight in module.ema_network.parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(1))
    path = tmp_path / "weaker.ckpt"
    write_checkpoint(path, module.state_dict(), {"config": module.config, "images_seen": 10, "source": None})
    return path


def test_autoguidance_leads_away_from_a_weaker_model(weaker: Path) -> None:
    module, _ = load_config([DIGITS], {"model.network.model_channels": 16, "model.network.channel_mult": [1]})
    for weight in module.ema_network.parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    model, other = module.model(), load_checkpoint(weaker).model()
    guided = model.replaced(guidance=2.5, guide=Guide(str(weaker)))
    u = dct(torch.randn(2, 1, 8, 8, dtype=torch.float64))
    level = model.process.level(torch.tensor([0.5, 2.0], dtype=torch.float64))
    own, weak = (m.estimate(u, level) for m in (model, other))
    found = guided.estimate(u, level)
    torch.testing.assert_close(found.clean, weak.clean + 2.5 * (own.clean - weak.clean), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.noise, weak.noise + 2.5 * (own.noise - weak.noise), rtol=1e-4, atol=1e-4)
    assert guided.own_nfe == 70
    same = model.replaced(guide=Guide(str(weaker))).estimate(u, level)
    assert torch.equal(same.clean, own.clean)
    assert torch.equal(same.noise, own.noise)
    with pytest.raises(UserError, match=r"its outputs, images and classes are"):
        module_of_classes().model().replaced(guidance=2.0, guide=Guide(str(weaker))).estimate(u, level)


def test_images_of_a_guided_model_name_their_guide(weaker: Path, tmp_path: Path) -> None:
    """`warm generate` with another guide, or another interval, does not add to the same folder."""
    out, guide = tmp_path / "images", ["--override+=guidance=2", f"--override+=guide={{path: {weaker}}}"]
    command = ["generate", f"--ckpt_path={weaker}", "--seeds=0-1", f"--outdir={out}", "--steps=2"]
    assert main([*command, *guide]) == 0
    record = json.loads((out / "generated.json").read_text())["protocol"]
    assert record["guide"]["init_args"]["path"] == str(weaker)
    assert record["guide_sha256"] == record["weights_sha256"]  # it guides itself here
    assert main([*command, *guide, "--override+=guidance_interval=[0.1,2]"]) == 2
    assert main([*command, *guide, "--override+=guide={path: nowhere.ckpt}"]) == 2


def test_guidance_needs_a_network_that_knows_both() -> None:
    with pytest.raises(UserError, match="label_dropout"):
        DiffusionModule(lambda branches: small_network(branches, label_dim=3), guidance=2.0)


def test_label_dropout_without_classes_is_refused() -> None:
    with pytest.raises(UserError, match="label_dim"):
        DiffusionModule(small_network, label_dropout=0.1)


class Shift(Augmentation):
    """Rolls each image by one pixel, and says so."""

    dim = 2

    def __call__(self, images: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        return images.roll(1, dims=-1), images.new_tensor([1.0, 0.0]).expand(len(images), 2)


def told_network(branches: int, augment_dim: int = 2) -> DDPMpp:
    return DDPMpp(branches, resolution=8, image_channels=1, augment_dim=augment_dim, model_channels=8,
                  channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=0.0)  # fmt: skip


def test_training_augments_and_tells_the_network_and_nothing_else_does(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[torch.Tensor | None] = []
    forward = DDPMpp.forward

    def note(self, x, c_noise, c_blur, class_labels, augment_labels):
        told.append(augment_labels)
        return forward(self, x, c_noise, c_blur, class_labels, augment_labels)

    seen: list[torch.Tensor] = []
    targets = DenoiseDeblur.targets
    monkeypatch.setattr(DDPMpp, "forward", note)
    monkeypatch.setattr(DenoiseDeblur, "targets", lambda self, x, g: seen.append(x.clean) or targets(self, x, g))
    module = DiffusionModule(told_network, parameterization=DenoiseDeblur(), augment=Shift(), duration=32)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        limit_val_batches=1,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    data = Digits(batch_size=32)
    trainer.fit(module, datamodule=data)  # a step, and a validation batch at its end
    assert len(seen) == len(told) == 2
    assert torch.equal(told[0], torch.tensor([[1.0, 0.0]]).expand(32, 2))
    assert told[1] is None
    stream = TrainingStream(data.train_images(), module.seed)
    torch.testing.assert_close(seen[0], dct(dequantise(stream[range(32)].images).roll(1, -1)))
    torch.testing.assert_close(seen[1], dct(dequantise(data.train_images().images[:32])))
    told.clear()
    module.model().sample(module.model().sampler, [0])
    assert told
    assert all(labels is None for labels in told)


def test_an_augmentation_that_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match="augment_dim"):
        DiffusionModule(lambda branches: told_network(branches, 9), augment=Shift())


def test_channels_last_gives_the_same_losses_and_gradients() -> None:
    found = []
    for channels_last in (False, True):
        module, batch = DiffusionModule(small_network, channels_last=channels_last, seed=3), a_batch()
        loud = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
        module.network.dec["8x8_aux_conv"].weight.data.copy_(loud)  # or it would say next to nothing
        losses, _ = module.model("raw").loss(batch, BatchDraws(3, 0, 6, batch.positions), training=False)
        losses.sum().backward()
        weight = module.network.enc["8x8_block0"].conv0.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
        found.append([losses, *(p.grad for p in module.network.parameters())])
    for a, b in zip(*found, strict=True):
        # Another order of summation: rounding of float32 relative to each tensor's size.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * a.abs().max().item() + 1e-12)


def test_a_class_that_is_asked_for_leaves_the_other_draws_alone() -> None:
    """Seed 5 draws a class of its own; asked for that class, it makes the same image, fresh noise on the way too."""
    model, sampler = module_of_classes().model(), Sampler(PowerGrid(4), Euler(1.0))
    drawn = SeedStreams([5])
    drawn.normal(*model.image_shape)
    own = drawn.integers(3).tolist()
    torch.testing.assert_close(model.sample(sampler, [5]), model.sample(sampler, [5], own), rtol=0, atol=0)


def test_a_trajectory_shows_the_estimates_that_the_sampler_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call of the network gets a class: a model without label dropout knows no other input."""
    model = module_of_classes().model()
    given: list[bool] = []
    forward = type(model.network).forward

    def recorded(self: Any, x: torch.Tensor, c_noise: Any, c_blur: Any, labels: Any, augment: Any) -> torch.Tensor:
        given.append(labels is not None)
        return forward(self, x, c_noise, c_blur, labels, augment)

    monkeypatch.setattr(type(model.network), "forward", recorded)
    trajectory(model, Sampler(PowerGrid(3)), range(2), columns=3)
    assert given == [True] * len(given)
    assert len(given) > 5


def test_guidance_is_everywhere_without_an_interval() -> None:
    """At levels without noise, too: Cold Diffusion has no others."""
    model = module_of_classes(guidance=3.0).model()
    levels = [model.process.level(torch.tensor([clock])) for clock in (0.0, 1e-6, 80.0)]
    assert [bool(model.guided(level)) for level in levels] == [True, True, True]
    assert not model.replaced(guidance=1.0).guided(levels[2])


def test_a_guide_of_another_process_is_refused(weaker: Path) -> None:
    small = {"model.network.model_channels": 8, "model.network.channel_mult": [1]}
    module, _ = load_config([DIGITS], small | {"model.process.path.bnr": 1.0})
    guided = module.model().replaced(guidance=2.0, guide=Guide(str(weaker)))
    u, level = dct(torch.randn(1, 1, 8, 8, dtype=torch.float64)), guided.process.level(torch.tensor([0.5]))
    with pytest.raises(UserError, match="its process has other blur or noise"):
        guided.estimate(u, level)


def test_a_guide_that_is_not_there_ends_a_training_before_it_begins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model.network.model_channels=8", "--model.network.channel_mult=[1]", "--model.duration=64"]
    folder = tmp_path / "run"
    guide = ["--model.guide={path: nowhere.ckpt}", "--model.guidance=2"]
    said = refusal(capsys, "fit", f"--config={DIGITS}", *options, *guide, f"--trainer.default_root_dir={folder}")
    assert "nowhere.ckpt: no such checkpoint" in said
    assert not (folder / "checkpoints").exists()


GUIDED = ["--model.guide={class_path: EarlierAverage, init_args: {share: 0.5}}", "--model.guidance=2"]


@pytest.fixture(scope="module")
def guided_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training of 320 images, 32 a step, whose guide is its average after half of them; and the half without."""
    folder = tmp_path_factory.mktemp("guided")
    here(*fit(folder / "whole", *GUIDED))
    here(*fit(folder / "half", *GUIDED, "--trainer.max_steps=5"))
    shutil.copytree(folder / "half", folder / "resumed")
    here(*fit(folder / "resumed", *GUIDED), "--ckpt_path=last")
    here(*fit(folder / "plain"))
    return folder


def test_a_guide_of_the_same_training_is_its_average_of_before(guided_run: Path) -> None:
    """To the bit, also where the training was interrupted; the NFE doubles, and weight 1 changes no bit."""
    whole, half, resumed = (load_checkpoint(guided_run / name) for name in ("whole", "half", "resumed"))
    early = parameters_to_vector(half.model().network.parameters())
    model = whole.model()
    assert torch.equal(model.learned["guide_weights"], early)
    assert torch.equal(resumed.model().learned["guide_weights"], early)
    assert whole.record("ema")["weights_sha256"] == resumed.record("ema")["weights_sha256"]
    assert model.guide_hash() == half.record("ema")["weights_sha256"]
    assert model.own_nfe == 2 * model.replaced(guidance=1.0).own_nfe
    u = dct(torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    level = model.process.level(torch.tensor([0.5, 2.0], dtype=torch.float64))
    own, weak = (m.replaced(guide=None, guidance=1.0).estimate(u, level) for m in (model, half.model()))
    found = model.estimate(u, level)
    torch.testing.assert_close(found.clean, 2 * own.clean - weak.clean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.noise, 2 * own.noise - weak.noise, rtol=1e-5, atol=1e-5)
    assert torch.equal(model.replaced(guidance=1.0).estimate(u, level).clean, own.clean)


def test_a_guide_of_the_same_training_goes_where_the_model_goes(guided_run: Path, tmp_path: Path) -> None:
    """An exported folder makes the images of the checkpoint."""
    assert main(["export", str(guided_run / "whole"), str(tmp_path / "exported")]) == 0
    images = []
    for path in (guided_run / "whole", tmp_path / "exported"):
        trained = load_checkpoint(path)
        images.append(trained.model().sample(trained.sampler, [3]))
    assert torch.equal(*images)
    plain = trained.model().replaced(guidance=1.0)
    assert (plain.sample(trained.sampler, [3]) - images[0]).abs().max() > 1e-4


def test_a_guide_of_the_same_training_that_was_not_kept_is_refused(
    guided_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = ["generate", "--seeds=0", "--steps=2", f"--ckpt_path={guided_run / 'plain'}", f"--outdir={tmp_path}"]
    plain.append("--override+=guide=EarlierAverage")
    said = refusal(capsys, *plain, "--override+=guidance=2")
    assert (
        "EarlierAverage needs what it learns in training (guide_weights, guide_share), and has learned nothing" in said
    )
    assert main(plain) == 0  # no guidance needs no guide
    late = [*fit(guided_run / "plain"), "--ckpt_path=last", "--model.guide=EarlierAverage", "--model.duration=640"]
    said = refusal(capsys, *late)
    assert "320 of 640 images are done, and the checkpoint has no average of the first 0.0625 of them" in said
    assert "model.guide.share is 1.5" in refusal(capsys, *late, "--model.guide.share=1.5")
    assert "model.guide.share is None" in refusal(capsys, *late, "--model.guide.share=null")


def test_the_share_of_a_guide_cannot_be_changed_afterwards(
    guided_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The record of a sample would name a guide that it has not."""
    other, whole = "guide.init_args.share=0.25", guided_run / "whole"
    generated = ["generate", f"--ckpt_path={whole}", "--seeds=0", f"--outdir={tmp_path}", f"--override+={other}"]
    for command in (generated, [*fit(whole), "--ckpt_path=last", *GUIDED, f"--model.{other}", "--model.duration=640"]):
        assert "model.guide.share is 0.25, but the average that was kept is that after 0.5" in refusal(capsys, *command)


def test_the_guide_has_been_trained_for_a_step_at_least(tmp_path: Path) -> None:
    """Also with the order of memory that GPUs like."""
    here(*fit(tmp_path / "one", "--trainer.max_steps=1"))
    here(*fit(tmp_path / "more", *GUIDED, "--model.guide.share=1e-6", "--model.channels_last=true"))
    guide = load_checkpoint(tmp_path / "more").model().learned["guide_weights"]
    after_one = parameters_to_vector(load_checkpoint(tmp_path / "one").model().network.parameters())
    torch.testing.assert_close(guide, after_one, rtol=1e-4, atol=1e-5)  # another order of summation


def test_a_guide_does_not_drop_features_out(guided_run: Path) -> None:
    """A model in training mode, of which it is a copy, would."""
    model = load_checkpoint(guided_run / "whole").model()
    model.network.train()
    assert not model.guide.model(model).network.training


def test_an_interval_without_a_level_of_the_sampler_is_refused(guided_run: Path) -> None:
    model = load_checkpoint(guided_run / "whole").model().replaced(guidance_interval=(100.0, 200.0))
    with pytest.raises(UserError, match=r"guidance_interval \(100.0, 200.0\) has none of the sampler's noise levels"):
        model.sample(model.sampler, [0])
