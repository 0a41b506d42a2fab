"""An image depends on its seed alone, whatever is drawn for it: priors, chains, churn, heavy tails."""

import functools
from pathlib import Path

import pytest
import torch
from processes import warm_on_two
from small import DIGITS, REPOSITORY, SMALL, here
from torch import Tensor

from warm_lightning import load_checkpoint, load_config
from warm_lightning.checkpoints import (
    EMA_PREFIX,
    FORMAT_VERSION,
    LEARNED_PREFIX,
    SECTION,
    read_checkpoint,
    without_prefix,
    write_checkpoint,
)
from warm_lightning.cli import main
from warm_lightning.data.image_set import dequantised_batches
from warm_lightning.images import quantise, read_png
from warm_lightning.interop.exported import read_folder
from warm_lightning.module import DiffusionModule

METHODS = REPOSITORY / "configs" / "method"
CHAIN = {"sampler.grid.init_args.steps": 8}
# Overlays and short settings of their own; a chain that must be taken whole gets few steps.
COLD = {"process.init_args.steps": 8, "clock_law.init_args.steps": 8, **CHAIN, "sampler.grid.init_args.first": 8}
RUNS = {
    "ddpm": CHAIN,
    "blurring": CHAIN,
    "progressive_deblurring": CHAIN,
    "ihdm": {**COLD, "process.init_args.blur_max": 6.0},
    "cold": {**COLD, "process.init_args.blur_max": 8.0},
    "soft": {**CHAIN, "process.init_args.blur_max": 6.0},
    "pfgmpp": {"process.init_args.extra_dims": 16, "sampler.grid.init_args.steps": 4},
    "hot": {
        "sampler.grid.init_args.steps": 6,
        "sampler.churn": "{class_path: warm_lightning.samplers.Churn, init_args: {churn: 10}}",
    },
    "warm": {"sampler.grid.init_args.steps": 6, "sampler.rule": "{class_path: Heun, init_args: {eta: 0.6}}"},
}
STOCHASTIC = dict.fromkeys(RUNS, True) | {"cold": False, "pfgmpp": False}


@functools.cache
def module_of(name: str) -> DiffusionModule:
    """A random network in float64, in the method's process and with its sampler."""
    settings = {"model.network.model_channels": 8, "model.network.channel_mult": "[1, 1]"}
    settings |= {f"model.{setting}": value for setting, value in RUNS[name].items()}
    module, data = load_config([DIGITS, METHODS / f"{name}.yaml"], settings)
    if module.model().process.learned is None:
        module.model().process.learned = module.model().process.learn(
            dequantised_batches(data.train_images(), "Learning")
        )
    generator = torch.Generator().manual_seed(0)
    for parameter in module.ema_network.parameters():
        torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return module.double()


def images(name: str, seeds: list[int]) -> Tensor:
    module = module_of(name)
    return module.model().sample(module.model().sampler, seeds)


@pytest.mark.parametrize("name", RUNS)
def test_a_seed_makes_the_same_bytes_in_any_batch(name: str) -> None:
    together = images(name, [0, 1, 2, 3, 4])
    assert len(quantise(together).unique(dim=0)) == 5
    for seeds in ([3], [4, 1], [2, 0, 3]):
        again = images(name, seeds)
        assert torch.equal(quantise(again), quantise(together[seeds]))
        # float64, in which a product of matrices of other sizes differs in the last digits
        torch.testing.assert_close(again, together[seeds], rtol=1e-7, atol=1e-9)
    assert torch.equal(images(name, [2**32 + 3]), images(name, [3]))


@pytest.mark.parametrize("name", [name for name in RUNS if STOCHASTIC[name]])
def test_fresh_noise_is_drawn_on_the_way(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without fresh noise the test above would not test it."""
    before = images(name, [0])
    monkeypatch.setattr("warm_lightning.samplers.rules.fresh_noise", lambda draws, like: 0 * like)
    monkeypatch.setattr("warm_lightning.samplers.sampler.fresh_noise", lambda draws, like: 0 * like)
    assert not torch.equal(images(name, [0]), before)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_make_the_same_bytes(name: str, tmp_path: Path) -> None:
    """`warm generate` on two devices, of which each has every second seed, and what Python makes in one batch."""
    module, path = module_of(name), tmp_path / "random.ckpt"
    learned = module.model().process.learned or {}
    write_checkpoint(
        path, module.state_dict(), {"config": module.config, "images_seen": 0, "source": None, "learned": learned}
    )
    where = [f"--ckpt_path={path}", f"--outdir={tmp_path / 'out'}"]
    warm_on_two(tmp_path, "generate", *where, "--precision=64-true", "--seeds=0-4")
    for seed, image in enumerate(quantise(images(name, list(range(5))))):
        assert torch.equal(read_png(tmp_path / "out" / f"{seed:06d}.png"), image)


# ---------------------------------------------------------------------- what was learned, in files


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def settings_of(name: str) -> list[str]:
    return [f"--config={METHODS / name}.yaml", *(f"--model.{setting}={value}" for setting, value in RUNS[name].items())]


@pytest.fixture(scope="module", params=["cold", "ihdm"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A method and the folder of two steps of training, of which the second went on from a checkpoint."""
    folder = tmp_path_factory.mktemp(request.param)
    run = ["fit", *SMALL, *settings_of(request.param), f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    here(*run, "--posthoc_ema.sigma_rel=[0.05,0.1]", "--posthoc_ema.every=32", "--model.duration=32")
    first = read_checkpoint(last(folder))[SECTION]["learned"]
    here(*run, "--posthoc_ema.sigma_rel=[0.05,0.1]", "--posthoc_ema.every=32", "--model.duration=64")
    assert_equal(read_checkpoint(last(folder))[SECTION]["learned"], first)
    return request.param, folder


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    assert ours
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_learned_tensors_go_where_the_weights_go(trained: tuple[str, Path], tmp_path: Path) -> None:
    """Checkpoint, exported folder, post-hoc average: the same start of sampling, and the same samples."""
    name, folder = trained
    learned = read_checkpoint(last(folder))[SECTION]["learned"]
    _, data = load_config([DIGITS, METHODS / f"{name}.yaml"])
    fresh = load_checkpoint(last(folder))
    assert_equal(fresh.model().process.checked_learned(), learned)
    expected = fresh.model().process.learn(dequantised_batches(data.train_images(), "Learning"))
    for part_name, tensor in expected.items():
        torch.testing.assert_close(learned[part_name], tensor)
    here("export", str(last(folder)), str(tmp_path / "exported"))
    here("ema", str(folder), str(tmp_path / "average.ckpt"), "0.08")
    assert_equal(read_checkpoint(tmp_path / "average.ckpt")[SECTION]["learned"], learned)
    tensors, _ = read_folder(tmp_path / "exported")
    assert_equal(without_prefix(tensors, LEARNED_PREFIX), learned)
    assert (
        without_prefix(read_checkpoint(tmp_path / "exported")["state_dict"], EMA_PREFIX).keys()
        == fresh.model().network.state_dict().keys()
    )
    for path in (last(folder), tmp_path / "exported"):
        module = load_checkpoint(path)
        assert torch.equal(module.model().sample(module.model().sampler, [1]), fresh.model().sample(fresh.sampler, [1]))
    for index, path in enumerate((last(folder), tmp_path / "exported", tmp_path / "average.ckpt")):
        here("generate", f"--ckpt_path={path}", "--seeds=0-3", f"--outdir={tmp_path / str(index)}")
    for seed in range(4):
        one, other = (read_png(tmp_path / index / f"{seed:06d}.png") for index in ("0", "1"))
        assert torch.equal(one, other)


def test_a_model_that_has_not_learned_says_so_in_one_line(
    trained: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, folder = trained
    checkpoint = torch.load(last(folder), weights_only=True)
    checkpoint[SECTION]["learned"] = {}
    torch.save(checkpoint, tmp_path / "empty.ckpt")
    capsys.readouterr()
    assert main(["generate", f"--ckpt_path={tmp_path / 'empty.ckpt'}", "--seeds=0", f"--outdir={tmp_path / 'x'}"]) == 2
    error = capsys.readouterr().err
    assert "has learned nothing: train it" in error
    assert "Traceback" not in error


def test_format_2_is_migrated(tmp_path: Path) -> None:
    """As written before processes learned anything: loading, sampling, going on."""
    hot = [*settings_of("hot")[:1], f"--trainer.default_root_dir={tmp_path}"]
    here("fit", *SMALL, *hot, "--model.duration=32")
    old = torch.load(last(tmp_path), weights_only=True)
    assert old[SECTION].pop("learned") == {}
    old[SECTION]["format_version"] = 2
    torch.save(old, last(tmp_path))
    assert (read_checkpoint(last(tmp_path))[SECTION]["format_version"], FORMAT_VERSION) == (5, 5)
    assert read_checkpoint(last(tmp_path))[SECTION]["learned"] == {}
    module = load_checkpoint(last(tmp_path))
    assert module.model().sample(module.model().sampler, [0]).isfinite().all()
    here("fit", *SMALL, *hot, "--model.duration=64", "--ckpt_path=last")
    assert read_checkpoint(last(tmp_path))[SECTION]["images_seen"] == 64
