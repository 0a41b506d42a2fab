"""Loggers of every kind get pictures, or one line says that they get none; CSV files are written as the run goes."""

import csv
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from lightning import Callback, Trainer
from lightning.pytorch.loggers.logger import Logger
from PIL import Image
from small import fit, here, refusal

from warm_lightning.callbacks import tracking


class Plain(Logger):
    """A logger without pictures, which keeps what it is given."""

    settings: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        return "plain"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        Plain.settings = params


class WithPictures(Plain):
    """A logger with the method of WandbLogger."""

    pictures: ClassVar[list[tuple[str, int, np.ndarray]]] = []

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        assert step is not None
        self.pictures.extend((key, step, np.array(image)) for image in images)


def test_a_logger_of_another_kind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A logger with `log_image` has the pixels of the PNG file; one without is named once, and gets the settings."""
    loggers = "--trainer.logger=[{class_path: test_loggers.Plain}, {class_path: test_loggers.WithPictures}]"
    here(*fit(tmp_path, loggers, "--samples.every=160"))
    lines = [line for line in capsys.readouterr().out.splitlines() if "takes no pictures" in line]
    assert len(lines) == 1
    assert lines[0].endswith(f"Plain takes no pictures: they are in {tmp_path / 'samples'} only.")
    assert Plain.settings["model"]["duration"] == 320
    assert [(key, step) for key, step, _ in WithPictures.pictures] == [("samples/ema", 160), ("samples/ema", 320)]
    for _, step, picture in WithPictures.pictures:
        png = Image.open(tmp_path / "samples" / f"samples-{step:09d}.png")
        np.testing.assert_array_equal(picture, np.array(png))


class Reader(Callback):
    """Reads the steps in the table of values after each batch, as if the training were killed there."""

    seen: ClassVar[dict[int, list[str]]] = {}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        path = Path(trainer.default_root_dir) / "csv" / "version_0" / "metrics.csv"
        rows = csv.DictReader(path.read_text().splitlines()) if path.exists() else ()
        self.seen[pl_module.images_seen] = [row["step"] for row in rows]


def test_csv_files_hold_every_entry_of_a_run_that_is_killed(tmp_path: Path) -> None:
    """By itself CSVLogger writes at steps 99, 199 …, which numbers of images seen hardly are, and at the end."""
    logger = ["--trainer.logger=CSVLogger", f"--trainer.logger.save_dir={tmp_path}", "--trainer.logger.name=csv"]
    options = ["--trainer.callbacks+=test_loggers.Reader", "--trainer.log_every_n_steps=2", "--scores.every=0"]
    here(*fit(tmp_path, *logger, *options))
    assert Reader.seen[160] == ["64", "128"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["WandbLogger"], "WandbLogger needs wandb: pip install 'warm-lightning[trackers]'"),
        (["MLFlowLogger"], "MLFlowLogger needs mlflow: pip install 'warm-lightning[trackers]'"),
        (["MLFlowLogger", "--trainer.logger.log_model=all"], "log_model would upload nothing"),
    ],
    ids=["wandb", "mlflow", "log_model"],
)
def test_what_trackers_cannot_do_is_one_line(
    options: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed = "log_model" in words
    monkeypatch.setattr(tracking, "find_spec", lambda name: True if installed else None)
    assert words in refusal(capsys, *fit(tmp_path, f"--trainer.logger={options[0]}", *options[1:]))
