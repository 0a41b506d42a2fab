"""Configurations, checkpoints and exported folders of earlier versions go on working."""

import json
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small import REPOSITORY, SMALL, here

from warm_lightning import load_checkpoint, load_config
from warm_lightning.checkpoints import read_checkpoint
from warm_lightning.cli import main
from warm_lightning.migrations import MODULES, current, current_option
from warm_lightning.processes import GaussianKernel
from warm_lightning.samplers import ClippedImage

OLD = Path(__file__).parent / "data" / "format3"
EXPECTED = json.loads((OLD / "expected.json").read_text(encoding="utf-8"))
CPU = ("--accelerator=cpu", "--precision=64-true")


@pytest.mark.parametrize("source", ["last.ckpt", "exported"])
def test_an_old_model_samples_the_same_bytes(source: str, tmp_path: Path) -> None:
    here("generate", f"--ckpt_path={OLD / source}", "--seeds=0-3", f"--outdir={tmp_path}", *CPU)
    for picture in sorted((OLD / "images").glob("*.png")):
        assert (tmp_path / picture.name).read_bytes() == picture.read_bytes()


def test_an_old_run_goes_on_to_the_same_weights_and_scores(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(OLD / "last.ckpt", tmp_path / "checkpoints" / "last.ckpt")
    options = [f"--config={OLD / 'old.yaml'}", f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"]
    # Other transformations than mirrored images are EDM's since, and were not then.
    options += ["--trainer.precision=64-true", "--model.augment.init_args.p=0"]
    here("fit", *options, "--ckpt_path=last", "--posthoc_ema.sigma_rel=[0.1]")
    checkpoint = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert checkpoint["warm_lightning"]["images_seen"] == EXPECTED["resumed_to"]
    for name, expected in load_file(OLD / "resumed.safetensors").items():
        # The same bits on one machine; other processors round sums differently.
        torch.testing.assert_close(checkpoint["state_dict"][name], expected, rtol=1e-8, atol=1e-11)
    here("test", *options, "--num_images=60", "--scores.companions=false")
    scores = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert {name: scores[name] for name in EXPECTED["scores"]} == pytest.approx(EXPECTED["scores"], rel=1e-6)


def test_an_old_configuration_means_the_same() -> None:
    old, new = load_config(OLD / "old.yaml")[0].config, load_checkpoint(OLD / "last.ckpt").config
    assert old is not None
    assert new is not None
    assert {**old, "duration": None} == {"lr_decay": None, **new, "duration": None}  # its run ended earlier


def test_old_settings_are_understood_wherever_they_stand(tmp_path: Path) -> None:
    overlay = tmp_path / "old.yaml"
    overlay.write_text("model: {sampler: {belief: {class_path: warm_lightning.samplers.loop.ClippedImage}}}")
    for module, _ in (
        load_config([OLD / "old.yaml", overlay]),
        load_config(OLD / "old.yaml", {"model.sampler.belief": "warm_lightning.samplers.loop.ClippedImage"}),
    ):
        assert isinstance(module.model().sampler.estimate_transform, ClippedImage)
    images = [
        load_checkpoint(OLD / "exported", {f"sampler.{name}": "ClippedImage"})
        for name in ("belief", "estimate_transform")
    ]
    first, second = (trained.model().sample(trained.sampler, [5]) for trained in images)
    assert torch.equal(first, second)
    old = ["--model.sampler.belief", "warm_lightning.samplers.loop.ClippedImage", "--extractor=Pixels", "a.belief.png"]
    new = ["--model.sampler.estimate_transform", "warm_lightning.samplers.sampler.ClippedImage", *old[2:]]
    assert [current_option(word) for word in old] == new


def test_a_checkpoint_of_format_4_keeps_the_blur_that_it_was_trained_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lee et al.'s blur was the Gaussian one then, and their code's, now the default, is far weaker."""
    overlay = REPOSITORY / "configs" / "method" / "progressive_deblurring.yaml"
    lee = [f"--config={overlay}", "--model.sampler.grid.init_args.steps=4", "--model.duration=32"]
    gaussian = ["--model.process.kernel=GaussianKernel", f"--trainer.default_root_dir={tmp_path}"]
    here("fit", *SMALL, *lee, *gaussian)
    path = tmp_path / "checkpoints" / "last.ckpt"
    old = torch.load(path, weights_only=True)
    assert old["warm_lightning"]["config"]["process"]["init_args"].pop("kernel")
    old["warm_lightning"]["format_version"] = 4
    torch.save(old, path)
    here("export", str(path), str(tmp_path / "exported"))
    for source in (path, tmp_path / "exported"):
        assert isinstance(load_checkpoint(source).model().process.kernel, GaussianKernel)
    # A configuration without the setting means the new blur, and does not go with these weights.
    for command in (["fit", "--ckpt_path=last"], ["test"]):
        run = [command[0], *SMALL, *lee, *gaussian[1:], *command[1:]]
        assert main(run) == 2
        assert "add --model.process.kernel=GaussianKernel" in capsys.readouterr().err
    here("fit", *SMALL, *lee, *gaussian, "--model.duration=64", "--ckpt_path=last")


MOVED = {
    "callbacks.interrupt": "Interrupt",
    "callbacks.log": "TrainingLog",
    "callbacks.progress": "ImageProgressBar",
    "data.base": "ImageDataModule",
    "data.cifar10": "CIFAR10",
    "data.digits": "Digits",
    "data.ffhq": "FFHQ",
    "data.folder": "ImageFolder",
    "data.lsun": "LSUNChurch",
    "metrics.digits": "DigitsFeatures",
    "metrics.extractors": "Pixels",
    "networks.ddpm": "DDPM",
    "processes.paths": "PowerLaw",
    "samplers.grids": "EvenGrid",
    "samplers.loop": "Churn",
}
"""A class of each module that is gone, as commit b0100c7 had it."""


def test_the_classes_of_modules_that_are_gone_are_found() -> None:
    assert {f"warm_lightning.{module}" for module in MOVED} == set(MODULES)
    for module, name in MOVED.items():
        path = current({"class_path": f"warm_lightning.{module}.{name}"})["class_path"]
        home, _, found = path.rpartition(".")
        assert getattr(import_module(home), found).__module__ == home
