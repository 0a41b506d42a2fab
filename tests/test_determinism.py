"""Training is a pure function of configuration, seed and images seen; sampling of weights and seed."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import start_warm, warm_on_two
from small import AUGMENTED, SMALL, here, warm

from warm_lightning import load_checkpoint
from warm_lightning.checkpoints import read_checkpoint
from warm_lightning.images import quantise, read_png

STEPS, BATCH = 80, 64


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


def assert_same_bits(a: Any, b: Any, where: str = "") -> None:
    """All tensors and numbers of two nested structures are equal."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for name in a:
            assert_same_bits(a[name], b[name], f"{where}.{name}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same_bits(x, y, f"{where}[{i}]")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def fit(folder: Path, *arguments: str) -> list[str]:
    return ["fit", *SMALL, f"--trainer.default_root_dir={folder}", *arguments]


def fit_digits(folder: Path) -> list[str]:
    """80 steps of a small network, with dropout and augmentation so that their randomness counts too."""
    changes = [
        f"--model.duration={STEPS * BATCH}",
        f"--data.batch_size={BATCH}",
        "--model.network.dropout=0.1",
        "--checkpoints.every=640",
        *AUGMENTED,
    ]
    return fit(folder, "--ckpt_path=last", *changes)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of these 80 steps that is not interrupted."""
    folder = tmp_path_factory.mktemp("straight")
    here(*fit_digits(folder))
    return folder


def test_killed_and_resumed_is_the_same_to_the_bit(straight: Path, tmp_path: Path) -> None:
    arguments = fit_digits(tmp_path)
    process = start_warm(tmp_path, *arguments)
    while not last(tmp_path).exists():
        assert process.is_alive(), "ended before the first checkpoint"
        time.sleep(0.005)
    time.sleep(random.SystemRandom().uniform(0, 1))
    process.kill()
    process.join()
    seen = read_checkpoint(last(tmp_path))["warm_lightning"]["images_seen"]
    assert 0 < seen < STEPS * BATCH, f"killed too late to test anything: {seen} images"
    here(*arguments)
    a, b = read_checkpoint(last(straight)), read_checkpoint(last(tmp_path))
    assert a["warm_lightning"]["images_seen"] == b["warm_lightning"]["images_seen"] == STEPS * BATCH
    for part in ("state_dict", "optimizer_states"):
        assert_same_bits(a[part], b[part], part)


def test_gradient_accumulation_changes_neither_result_nor_resumption(tmp_path: Path) -> None:
    # Saved every 64 images, in the middle of nothing: three steps straight through, and two and then one.
    same = ["--trainer.accumulate_grad_batches=2", "--checkpoints.every=32", "--trainer.precision=64-true"]
    here(*fit(tmp_path / "straight", *same, "--model.duration=96"))
    here(*fit(tmp_path / "halves", *same, "--model.duration=64"))
    here(*fit(tmp_path / "halves", *same, "--model.duration=96", "--ckpt_path=last"))
    here(*fit(tmp_path / "whole", *same[1:], "--model.duration=96"))
    straight, halves, whole = (read_checkpoint(last(tmp_path / name)) for name in ("straight", "halves", "whole"))
    assert_same_bits(straight["state_dict"], halves["state_dict"])
    for name, value in whole["state_dict"].items():
        torch.testing.assert_close(straight["state_dict"][name], value, rtol=0, atol=1e-9)


def test_another_seed_is_another_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        here(*fit(tmp_path / str(seed), "--model.duration=32", f"--model.seed={seed}"))
    one, other = (read_checkpoint(last(tmp_path / str(seed)))["state_dict"] for seed in (0, 1))
    assert not torch.equal(one["network.map_layer0.weight"], other["network.map_layer0.weight"])


@pytest.mark.parametrize(("precision", "tolerance"), [("64-true", 1e-9), ("32-true", None)])
def test_two_processes_with_accumulation_train_as_one(tmp_path: Path, precision: str, tolerance: float | None) -> None:
    same = ["--model.duration=640", f"--trainer.precision={precision}", "--trainer.accelerator=cpu", *AUGMENTED]
    here(*fit(tmp_path / "one", *same))
    two = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accumulate_grad_batches=2"]
    if tolerance:  # as a user starts it: Lightning's launcher starts the second process
        done = warm(*fit(tmp_path / "two", *same, *two), cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    else:
        warm_on_two(tmp_path, *fit(tmp_path / "two", *same, *two))
    modules = [load_checkpoint(last(tmp_path / name)) for name in ("one", "two")]
    if tolerance:
        a, b = (read_checkpoint(last(tmp_path / name))["state_dict"] for name in ("one", "two"))
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=tolerance)
        return
    # Not weights: attention's key biases have zero gradient, and Adam turns its rounding into steps.
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    beta = torch.logspace(-2, 1, 8)
    with torch.no_grad():
        for weights in ("raw", "ema"):
            a, b = (m.model(weights).outputs(x, m.model().process.level(beta)) for m in modules)
            torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["64-true", "32-true"])
def test_an_image_depends_on_its_seed_alone(straight: Path, tmp_path: Path, precision: str) -> None:
    # Stochastic sampling, so that the noise drawn on the way has to keep the contract too.
    same = [
        "generate",
        f"--ckpt_path={last(straight)}",
        f"--precision={precision}",
        "--accelerator=cpu",
        "--eta=0.5",
    ]
    here(*same, "--seeds=0-9", f"--outdir={tmp_path / 'together'}")
    here(*same, "--seeds=4", "--batch_size=1", f"--outdir={tmp_path / 'alone'}")
    shared = [*same, "--seeds=0-9", "--devices=2", f"--outdir={tmp_path / 'shared'}"]
    if precision == "64-true":  # as a user starts it: Fabric's launcher starts the second process
        done = warm(*shared, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    else:
        warm_on_two(tmp_path, *shared)
    assert [len(list((tmp_path / name).glob("*.png"))) for name in ("together", "alone", "shared")] == [
        10,
        1,
        10,
    ]
    image = read_png(tmp_path / "together" / "000004.png").int()
    for name in ("alone", "shared"):
        difference = (read_png(tmp_path / name / "000004.png").int() - image).abs()
        if precision == "64-true":
            assert difference.max() == 0
        else:
            # At most one grey level on 0.1 % of the pixels: of 64 pixels, none.
            assert (difference > 0).float().mean() <= 1e-3


def test_the_notebook_makes_the_programs_images(straight: Path, tmp_path: Path) -> None:
    here("generate", f"--ckpt_path={last(straight)}", "--seeds=7,3", f"--outdir={tmp_path}", "--steps=5")
    module = load_checkpoint(last(straight), {"sampler.grid.steps": 5})
    images = quantise(module.model().sample(module.model().sampler, [7, 3]))
    for seed, image in zip((7, 3), images, strict=True):
        assert torch.equal(read_png(tmp_path / f"{seed:06d}.png"), image)


def test_ctrl_c_saves_and_exits_with_130(tmp_path: Path) -> None:
    arguments = fit(tmp_path, "--model.duration=1e6", "--checkpoints.every=0")
    process = start_warm(tmp_path, *arguments)
    output = tmp_path / "output.txt"
    while not output.exists() or not all(word in output.read_text() for word in ("Training:", "loss=")):
        assert process.is_alive(), output.read_text()
        time.sleep(0.005)
    assert process.pid
    os.kill(process.pid, signal.SIGINT)
    process.join(60)
    assert process.exitcode == 130, output.read_text()
    assert "Traceback" not in output.read_text()
    seen = read_checkpoint(last(tmp_path))["warm_lightning"]["images_seen"]
    assert 0 < seen < 1e6
    here(*fit(tmp_path, f"--model.duration={seen + 64}", "--ckpt_path=last"))
    assert read_checkpoint(last(tmp_path))["warm_lightning"]["images_seen"] == seen + 64
