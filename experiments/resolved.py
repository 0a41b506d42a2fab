"""What options of `warm fit` mean, whatever files and words say it: so equal trainings are known to be equal."""

from collections.abc import Mapping, Sequence
from contextlib import chdir
from functools import cache
from pathlib import Path
from typing import Any

from experiments.jobs import digest
from experiments.schema import REPOSITORY
from warm_lightning.tools.configured import resolve

CONFIG = "--config="
SAMPLING = ("sampler", "guidance")
"""Sections of the model that only sampling depends on."""
SPEED = ("compile", "channels_last", "num_workers", "cache")
"""Settings that say how fast, not what."""
LOOKING = ("batch_size", "every", "every_num_images")
"""Settings of scores that a score does not depend on."""
PLACES = ("path", "root", "held_out_path")
"""Settings of the data that say where they are: another copy of the same name and size counts as the same."""
TRAINER = (
    "precision", "gradient_clip_val", "gradient_clip_algorithm", "max_epochs", "min_epochs", "max_steps",
    "min_steps", "max_time", "limit_train_batches", "overfit_batches", "fast_dev_run", "callbacks", "plugins",
)  # fmt: skip
"""Settings of the Trainer that weights or scores depend on; others say where and how it works."""


def resolved(options: Sequence[str]) -> dict[str, Any]:
    """The whole configuration of some options, with all defaults; its files are those of this moment.

    Raises:
        UserError: a file, name or value is wrong.
    """
    paths = [option.removeprefix(CONFIG) for option in options if option.startswith(CONFIG)]
    return _resolved(tuple(options), tuple(digest(REPOSITORY / path) for path in paths))


@cache
def _resolved(options: tuple[str, ...], digests: tuple[str | None, ...]) -> dict[str, Any]:
    with chdir(REPOSITORY):
        return resolve(options)


def training(options: Sequence[str]) -> dict[str, Any]:
    """The part of it that trained weights depend on."""
    config = resolved(options)
    model = {name: value for name, value in config["model"].items() if name not in (*SAMPLING, *SPEED)}
    return {"model": model, **around(config), "posthoc_ema": config["posthoc_ema"]}


def measuring(options: Sequence[str]) -> dict[str, Any]:
    """The part of it that what is measured of a trained model depends on."""
    config = resolved(options)
    model = {name: value for name, value in config["model"].items() if name not in SPEED}
    scores = {name: value for name, value in config["scores"].items() if name not in LOOKING}
    return {"model": model, **around(config), "scores": scores}


def around(config: Mapping[str, Any]) -> dict[str, Any]:
    """Data, wherever they are, and how the Trainer computes."""
    data = config["data"]
    images = {name: contents(value) if name in PLACES else value for name, value in data["init_args"].items()}
    images = {name: value for name, value in images.items() if name not in SPEED}
    trainer = {name: value for name, value in config["trainer"].items() if name in TRAINER}
    return {"data": data | {"init_args": images}, "trainer": trainer}


def contents(path: str | None) -> list[Any] | None:
    """What is known of a file or folder wherever it is: its name and size, which is None of a folder."""
    if path is None:
        return None
    place = REPOSITORY / Path(path).expanduser()
    return [place.name, place.stat().st_size if place.is_file() else None]
