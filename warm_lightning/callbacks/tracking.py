"""The one way from the callbacks to the loggers of a run: values, pictures and the configuration, over images seen."""

import csv
import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import yaml
from lightning import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.images import pil_image
from warm_lightning.module import DiffusionModule
from warm_lightning.records import write_file

PACKAGES = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}
"""Loggers of Lightning, and the packages of the extra `trackers` that they need."""
PICTURES = "pictures.csv"
"""The table of pictures beside the `metrics.csv` of a `CSVLogger`, whose columns stay numeric."""


def check_trackers(loggers: Any) -> None:
    """Check the loggers of a configuration before they are made.

    Args:
        loggers: the setting `trainer.logger`: a list, one logger with its `class_path`, a bool or None.

    Raises:
        UserError: the package of a logger is not installed, or it is to upload checkpoints.
    """
    for settings in loggers if isinstance(loggers, list) else [loggers]:
        if not hasattr(settings, "class_path"):
            continue
        name = settings.class_path.rpartition(".")[2]
        package = PACKAGES.get(name)
        check(
            package is None or find_spec(package) is not None,
            f"{name} needs {package}: pip install 'warm-lightning[trackers]'",
        )
        check(
            not settings.get("init_args", {}).get("log_model"),
            f"{name}: log_model would upload nothing, since it is for Lightning's ModelCheckpoint: leave it out, and "
            "upload the files of checkpoints/ after the training",
        )


def log_values(trainer: Trainer, values: Mapping[str, float]) -> None:
    """Give values to all loggers of a run; every process may call this.

    Args:
        trainer: of the run.
        values: by their names, such as "train/loss".
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(values), step=images_seen(trainer))
        if isinstance(logger, CSVLogger):
            logger.save()  # by itself it writes at every hundredth step, which images seen hardly ever are


def log_picture(trainer: Trainer, key: str, picture: Tensor, path: Path) -> None:
    """Give a picture to all loggers of a run, to each by its own convention; the first process calls this.

    Args:
        trainer: of the run.
        key: of the series that the picture belongs to, such as "samples/ema".
        picture: uint8 [3, height, width].
        path: the picture as a PNG file in the run's folder.
    """
    step, image = images_seen(trainer), pil_image(picture)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, picture, step)
        elif isinstance(logger, MLFlowLogger):
            cast(Any, logger.experiment).log_image(logger.run_id, image, key=key, step=step)
        elif isinstance(logger, CSVLogger):
            add_row(Path(logger.log_dir) / PICTURES, step, key, path.relative_to(trainer.default_root_dir))
        elif hasattr(logger, "log_image"):  # the method of WandbLogger
            logger.log_image(key, [image], step=step)


def takes_pictures(logger: Logger) -> bool:
    """Whether `log_picture` can give pictures to a logger."""
    return isinstance(logger, TensorBoardLogger | MLFlowLogger | CSVLogger) or hasattr(logger, "log_image")


def add_row(path: Path, step: int, key: str, picture: Path) -> None:
    """Add a row to the table of pictures, which is made with the first one."""
    table = io.StringIO(path.read_text(encoding="utf-8") if path.exists() else "step,key,path\n")
    table.seek(0, io.SEEK_END)
    csv.writer(table, lineterminator="\n").writerow([step, key, picture])
    write_file(path, table.getvalue().encode())


def log_configuration(trainer: Trainer, name: str, text: str) -> None:
    """Give the configuration of a run to all loggers as its hyperparameters; the first process calls this.

    MLflow refuses another value for a parameter of a run, and some settings may change when a run goes on; its page
    shows all parameters above each picture. So its parameters are those of model and data at the first start, and its
    artifact `name` is the newest configuration.

    Args:
        trainer: of the run.
        name: of the file.
        text: the configuration in YAML.
    """
    settings = yaml.safe_load(text)
    for logger in trainer.loggers:
        if not isinstance(logger, MLFlowLogger):
            logger.log_hyperparams(settings)
            continue
        client: Any = logger.experiment
        client.log_text(logger.run_id, text, name)
        if not client.get_run(logger.run_id).data.params:
            logger.log_hyperparams({part: settings[part] for part in ("model", "data")})


def images_seen(trainer: Trainer) -> int:
    """The number of training images seen, which is the axis of all that is logged."""
    return cast(DiffusionModule, trainer.lightning_module).images_seen
