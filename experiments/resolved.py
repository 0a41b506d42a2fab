"""What options of `warm fit` mean, whatever files and words say it: so equal trainings are known to be equal."""

from collections.abc import Sequence
from contextlib import chdir
from functools import cache
from typing import Any

from experiments.jobs import digest
from experiments.schema import REPOSITORY
from warm_lightning.tools.configured import resolve

CONFIG = "--config="
SAMPLING = ("sampler", "guidance")
"""Sections of the model that only sampling depends on."""
SPEED = ("compile", "channels_last", "num_workers")
"""Settings that say how fast, not what."""
TRAINER = (
    "precision", "gradient_clip_val", "gradient_clip_algorithm", "max_steps", "max_epochs", "max_time",
    "limit_train_batches", "overfit_batches",
)  # fmt: skip
"""Settings of the Trainer that weights depend on."""


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
    data = config["data"]["init_args"]
    return {
        "model": {name: value for name, value in config["model"].items() if name not in (*SAMPLING, *SPEED)},
        "data": config["data"] | {"init_args": {name: value for name, value in data.items() if name not in SPEED}},
        "trainer": {name: config["trainer"][name] for name in TRAINER},
        "posthoc_ema": config["posthoc_ema"],
    }
