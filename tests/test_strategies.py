"""Several devices: sharded training, torchrun, and strategies that would break a promise."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.strategies import FSDPStrategy
from processes import start_warm, warm_on_two
from small import AUGMENTED, SMALL, command, environment, here
from torch import nn

from warm_lightning.callbacks import SampleGrid, ScoreSamples
from warm_lightning.checkpoints import read_checkpoint
from warm_lightning.cli import main
from warm_lightning.errors import UserError
from warm_lightning.metrics import Pixels
from warm_lightning.strategies import check_strategy, check_unsharded, gathered, local

# Dropout off: its generator is seeded by the images a device has, and the split of the batch decides that.
SAME = ["--trainer.accelerator=cpu", "--model.network.dropout=0.0", "--checkpoints.every=0", *AUGMENTED]


def fit(folder: Path, *arguments: str) -> list[str]:
    return ["fit", *SMALL, *SAME, f"--trainer.default_root_dir={folder}", *arguments]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = read_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert checkpoint["warm_lightning"]["images_seen"] == 320
    return checkpoint["state_dict"]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """Weights after ten steps in one process."""
    folder = tmp_path_factory.mktemp("one")
    here(*fit(folder, "--model.duration=320"))
    return weights(folder)


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Weights that differ by rounding: each step of Adam is at most lr, here 1.5e-3 · 320/3200 at the end."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # Key biases have no gradient but rounding, of which Adam makes whole steps: ten of 8e-5 on average.
        tolerance = 1e-3 if name.endswith("qkv.bias") else 1e-5
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance)


def test_sharded_training_is_that_of_one_process(tmp_path: Path, one: dict[str, torch.Tensor]) -> None:
    # Three steps of one process, four sharded ones from its checkpoint, and three of one process from theirs: sharding
    # takes weights and Adam's state apart, and leaves them whole.
    here(*fit(tmp_path, "--model.duration=96"))
    sharded = ["--trainer.devices=2", "--trainer.strategy=fsdp2", "--trainer.accumulate_grad_batches=2"]
    warm_on_two(tmp_path, *fit(tmp_path, *sharded, "--model.duration=224", "--ckpt_path=last"))
    here(*fit(tmp_path, "--model.duration=320", "--ckpt_path=last"))
    assert_close(weights(tmp_path), one)


def torchrun(arguments: list[str]) -> list[subprocess.Popen]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    return [start([*launcher, "warm_lightning.cli", *arguments])]


def srun(arguments: list[str]) -> list[subprocess.Popen]:
    """Start two processes as `srun --ntasks-per-node=2` does on one node: their ranks are in the environment."""
    job = {"SLURM_JOB_ID": str(20000 + os.getpid() % 10000), "SLURM_JOB_NAME": "train", "SLURM_NTASKS": "2",
           "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0", "SLURM_STEP_NODELIST": "127.0.0.1"}  # fmt: skip
    tasks = [{"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)} for i in range(2)]
    return [start(command(*arguments), **job, **task) for task in tasks]


def start(arguments: list[str], **extra: str) -> subprocess.Popen:
    return subprocess.Popen(
        arguments, env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.mark.parametrize("launch", [torchrun, srun])
def test_a_cluster_starts_the_processes_of_a_run(
    launch: Callable, tmp_path: Path, one: dict[str, torch.Tensor]
) -> None:
    two = ["--trainer.devices=2", "--trainer.num_nodes=1", "--trainer.strategy=ddp"]
    for process in launch(fit(tmp_path, *two, "--model.duration=320")):
        printed, _ = process.communicate(timeout=300)
        assert process.returncode == 0, printed
        assert "MEMBER: 2/2" in printed or "MEMBER: 1/2" in printed
    assert_close(weights(tmp_path), one)


def test_another_models_checkpoint_is_one_line_under_sharding_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here(*fit(tmp_path / "a", "--model.duration=32"))
    checkpoint = f"--ckpt_path={tmp_path / 'a' / 'checkpoints' / 'last.ckpt'}"
    other = fit(tmp_path / "b", "--model.network.model_channels=16", checkpoint)
    capsys.readouterr()
    assert main(other) == 2
    assert "another model" in capsys.readouterr().err.splitlines()[-1]
    process = start_warm(tmp_path, *other, "--trainer.strategy=fsdp2")
    process.join(300)
    assert process.exitcode == 2
    printed = (tmp_path / "output.txt").read_text()
    assert "another model" in printed.splitlines()[-1]
    assert "Traceback" not in printed


def test_strategies_that_would_average_the_wrong_weights_are_refused() -> None:
    for strategy in ("auto", "ddp"):
        check_strategy(Trainer(accelerator="cpu", strategy=strategy, logger=False).strategy, nn.Identity())
    with pytest.raises(UserError, match="fsdp2"):
        check_strategy(FSDPStrategy(), nn.Identity())


def test_raw_weights_are_not_sampled_by_one_device_of_many() -> None:
    sharded = Trainer(accelerator="cpu", strategy="fsdp2", logger=False).strategy
    check_unsharded(sharded, "ema")
    check_unsharded(Trainer(accelerator="cpu", logger=False).strategy, "raw")
    with pytest.raises(UserError, match="weights ema"):
        check_unsharded(sharded, "raw")


def test_raw_weights_that_are_sharded_are_not_scored() -> None:
    sharded = Trainer(accelerator="cpu", strategy="fsdp2", logger=False)
    for callback in (ScoreSamples([Pixels()], weights="raw"), SampleGrid(weights="raw")):
        with pytest.raises(UserError, match="weights ema"):
            callback.setup(sharded, SimpleNamespace(), "fit")


def test_channels_last_is_not_sharded() -> None:
    sharded = Trainer(accelerator="cpu", strategy="fsdp2", logger=False).strategy
    network = nn.Conv2d(4, 4, 3)
    check_strategy(sharded, network)
    with pytest.raises(UserError, match="channels_last"):
        check_strategy(sharded, network.to(memory_format=torch.channels_last))


def test_gathering_keeps_unsharded_weights() -> None:
    network = nn.Linear(2, 2)
    with gathered(network):
        assert local(network.weight) is network.weight
