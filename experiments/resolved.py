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
ELSEWHERE = (
    "accelerator", "devices", "num_nodes", "strategy", "accumulate_grad_batches", "sync_batchnorm", "logger",
    "default_root_dir", "log_every_n_steps", "enable_progress_bar", "enable_model_summary", "enable_checkpointing",
    "enable_autolog_hparams", "model_registry", "profiler", "barebones", "benchmark", "inference_mode",
    "val_check_interval", "check_val_every_n_epoch", "num_sanity_val_steps", "limit_val_batches", "limit_test_batches",
    "limit_predict_batches",
)  # fmt: skip
"""Settings of the Trainer that say where a model is trained, and what is looked at on the way."""


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
        "trainer": {name: value for name, value in config["trainer"].items() if name not in ELSEWHERE},
        "posthoc_ema": config["posthoc_ema"],
    }
