"""Small runs of the `warm` program for the tests."""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from warm_lightning.cli import main
from warm_lightning.targets import ReferenceBatch

if TYPE_CHECKING:
    from warm_lightning.data import ImageDataModule

REPOSITORY = Path(__file__).resolve().parent.parent
DIGITS = REPOSITORY / "configs" / "digits.yaml"

# The digits configuration without pictures and scores on the way, and with four batches of validation.
PLAIN = [
    f"--config={DIGITS}",
    "--trainer.limit_val_batches=4",
    "--samples.every=0",
    "--samples.seeds=0-3",
    "--samples.trajectory=0",
    "--scores.extractors=[Pixels]",
    "--scores.num_images=16",
]
# The same with a network a fifteenth as large.
SMALL = [
    *PLAIN,
    "--model.network.model_channels=8",
    "--model.network.channel_mult=[1,2]",
    "--data.batch_size=32",
]

# Images that are augmented, of which the network is told.
AUGMENTED = ["--model.network.augment_dim=9", "--model.augment={class_path: NonLeaky, init_args: {p: 0.5}}"]


def environment(**extra: str) -> dict[str, str]:
    """The environment of a subprocess: this repository first on the path, one thread."""
    return os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **extra}


def command(*arguments: str) -> list[str]:
    """A `warm` command as a list for `subprocess`."""
    return [sys.executable, "-m", "warm_lightning.cli", *arguments]


def here(*arguments: str) -> None:
    """Run `warm` in this process, which saves the seconds that importing takes."""
    assert main(arguments) == 0


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command is refused."""
    capsys.readouterr()
    assert main(arguments) == 2
    output = capsys.readouterr()
    lines = [line for line in output.err.splitlines() if line.startswith("warm")]
    assert len(lines) == 1, output.err
    assert "Traceback" not in output.err
    return lines[0]


def warm(*arguments: str, cwd: Path, timeout: float = 300, **extra: str) -> subprocess.CompletedProcess[str]:
    """Run `warm` to its end."""
    return subprocess.run(
        command(*arguments),
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def reference_batch(data: "ImageDataModule", seed: int, count: int) -> ReferenceBatch:
    """Reference images of a data set, as training gets them when it begins."""
    return ReferenceBatch(data.train_images(), data.xflip, seed, count)


def fit(folder: Path, *options: str) -> list[str]:
    """A small training in a folder, as arguments of `warm`."""
    return ["fit", *SMALL, "--model.duration=320", f"--trainer.default_root_dir={folder}", *options]


def last(folder: Path) -> Path:
    """The last checkpoint of a run."""
    return folder / "checkpoints" / "last.ckpt"
