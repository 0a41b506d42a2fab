"""Whether two trainings, measurements or files are the same, whatever options and paths name them.

Options of `warm fit` are resolved to a whole configuration with all defaults, of which only those settings are kept
that a result depends on. Two results are the same if these are equal.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from functools import cache
from pathlib import Path
from pydoc import locate
from threading import Lock
from typing import Any, cast

from warm_lightning.checkpoints import GUIDANCE, SAMPLING_ARGUMENTS
from warm_lightning.config import resolved_config
from warm_lightning.data.sources import source_name
from warm_lightning.guidance import Guide
from warm_lightning.paths import expand
from warm_lightning.records import file_hash, fingerprint
from warm_lightning.shipped import CHECKOUT, SHIPPED, config_file

PAPERS = SHIPPED / "experiments" / "papers"
DATA = SHIPPED / "experiments" / "data"
BASE = CHECKOUT or Path.cwd()
"""The folder in which jobs run, and from which relative paths in files start: the repository or, where a wheel was
installed, the working directory."""

# ---------------------------------------------------------------------- settings that results depend on

SAMPLING = ("sampler", *GUIDANCE)
"""Sections of the model that only sampling depends on."""
ADDED = {"noise_choice": None, "lr_decay": None, "guidance_interval": None, "guide": None}
"""Settings of the model with the defaults of before they were there, by which earlier results are the same."""
MODEL_SPEED = ("compile", "channels_last")
"""Settings of the model that change its speed only."""
DATA_SPEED = ("num_workers", "cache", "root")
"""Settings of the data that change their speed only, or say where torchvision's files are."""
DATA_PATHS = ("path", "held_out_path")
"""Settings of the data that say where they are: another copy of a file counts as the same."""
SCORE_SPEED = ("batch_size", "every", "every_num_images")
"""Settings of scores that a score does not depend on."""
TRAINER = (
    "precision", "gradient_clip_val", "gradient_clip_algorithm", "max_epochs", "min_epochs", "max_steps",
    "min_steps", "max_time", "limit_train_batches", "overfit_batches", "fast_dev_run", "callbacks", "plugins",
)  # fmt: skip
"""Settings of the Trainer that weights or scores depend on; the others say where and how it works."""

CONFIG = "--config="
NO_PROGRESS_BAR = "--trainer.enable_progress_bar=false"
REFERENCES = "--scores.reference_stats="
FILE_OPTIONS = ("--trainer.default_root_dir=", "--ckpt_path=", "--outdir=", "--grid=", REFERENCES)
"""Options that say where files are."""
SPECTRUM = re.compile("^(--spectrum=).*/")
"""An option whose folder says where a file is, while the file's name says which images it is of."""


def training_identity(options: Sequence[str]) -> dict[str, Any]:
    """All that the weights of a training depend on, as plain data.

    Args:
        options: of `warm fit`.
    """
    config = resolved(options)
    model = without(of_all_versions(config["model"]), (*SAMPLING, *MODEL_SPEED))
    if guide_is_trained(guide := config["model"].get("guide")):
        model["guide"] = guide
    meaning = model["parameterization"]
    arguments = without(meaning.get("init_args", {}), SAMPLING_ARGUMENTS)
    model["parameterization"] = {"class_path": meaning["class_path"]} | ({"init_args": arguments} if arguments else {})
    return {"model": model, **data_and_trainer(config), "posthoc_ema": config["posthoc_ema"]}


def guide_is_trained(guide: Mapping[str, Any] | None) -> bool:
    """Whether the guide of a configuration, if any, is made in the training of its model, and so in its checkpoint."""
    return guide is not None and bool(cast(type[Guide], locate(guide["class_path"])).needs)


def measurement_identity(options: Sequence[str], arguments: Sequence[str], training: str | None) -> dict[str, Any]:
    """All that the result of a call of `warm` depends on, as plain data.

    Args:
        options: of `warm fit`, that describe the model and how it is sampled.
        arguments: the command and its options, among which `options` may be.
        training: name of the training that made the model; None where none is needed.
    """
    config = resolved(options)
    ignored = {*options, NO_PROGRESS_BAR}
    call = [
        SPECTRUM.sub(r"\1", argument)
        for argument in arguments
        if argument not in ignored and not argument.startswith(FILE_OPTIONS)
    ]
    scores = without(config["scores"], SCORE_SPEED) if arguments[0] == "test" else None
    model = without(of_all_versions(config["model"]), MODEL_SPEED)
    return {"call": call, "training": training, "model": model, **data_and_trainer(config), "scores": scores}


def images_identity(options: Sequence[str]) -> str:
    """The images that options of `warm fit` name, as 10 hexadecimal digits."""
    options = [option for option in options if option.startswith((CONFIG, "--data"))]  # others leave the images alone
    file = images_file(options)
    images = [data_and_trainer(resolved(options))["data"], fingerprint(file) if file else None]
    return short_hash(images)


def data_and_trainer(config: Mapping[str, Any]) -> dict[str, Any]:
    """The parts of a configuration that say which data are used, wherever they are, and how the Trainer computes."""
    data = config["data"]
    images = without(data["init_args"], DATA_SPEED)
    images |= {name: source_name(BASE / images[name]) for name in DATA_PATHS if images.get(name)}
    trainer = {name: value for name, value in config["trainer"].items() if name in TRAINER}
    return {"data": data | {"init_args": images}, "trainer": trainer}


def of_all_versions(model: Mapping[str, Any]) -> dict[str, Any]:
    """The model's settings without those of `ADDED` that have their defaults."""
    return {name: value for name, value in model.items() if name not in ADDED or value != ADDED[name]}


def without(settings: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The settings whose names are not among some."""
    return {name: value for name, value in settings.items() if name not in names}


def short_hash(identity: Any) -> str:
    """The first 10 hexadecimal digits of the SHA-256 of plain data."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:10]


# ---------------------------------------------------------------------- notes of jobs


def job_identity(result: Mapping[str, Any], checkpoint: Path | None, images: Path | None) -> dict[str, Any]:
    """The entries that the note of a job must have for its result to count, as JSON gives them back.

    Args:
        result: all that the result depends on, beside the contents of files.
        checkpoint: the file with the model, where one is needed.
        images: the file with the images, where they are in one.
    """
    identity: dict[str, Any] = {"meaning": json.loads(json.dumps(result))}
    if checkpoint:
        identity["needs"] = file_sha256(checkpoint)
    if images:
        identity["images"] = fingerprint(images)
    return identity


def is_same_job(note: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether a note is of the job with an identity.

    A checkpoint or a file of images that is not there any more counts as unchanged: it may have been removed to save
    space, and the identity still holds the name of the training and of the file.
    """
    removed = [name for name in ("needs", "images") if identity.get(name, "present") is None]
    return all(note.get(name) == value for name, value in identity.items() if name not in removed)


# ---------------------------------------------------------------------- configurations and files

WORKING_DIRECTORY = Lock()
"""Held while the working directory is changed, which belongs to all threads of the process."""


def resolved(options: Sequence[str]) -> dict[str, Any]:
    """The whole configuration of options of `warm fit`, with all defaults, from its files as they are now.

    Raises:
        UserError: a file, name or value is wrong.
    """
    names = [option.removeprefix(CONFIG) for option in options if option.startswith(CONFIG)]
    return _resolved(tuple(options), tuple(file_sha256(BASE / config_file(name, BASE)) for name in names))


@cache
def _resolved(options: tuple[str, ...], hashes: tuple[str | None, ...]) -> dict[str, Any]:
    with in_base():
        return resolved_config(options)


@contextmanager
def in_base() -> Iterator[None]:
    """Have the working directory be `BASE` inside the `with` block, in one thread at a time."""
    with WORKING_DIRECTORY, chdir(BASE):
        yield


def images_file(options: Sequence[str]) -> Path | None:
    """The file with the images of a configuration, which may not exist; None where they are not in a single file."""
    path = resolved(options)["data"]["init_args"].get("path")
    place = BASE / expand(path) if path else None
    return None if place is None or place.is_dir() else place


def file_sha256(path: Path) -> str | None:
    """The SHA-256 of a file in hexadecimal digits; None if there is no such file."""
    if not path.is_file():
        return None
    status = path.stat()
    return _file_sha256(path, status.st_mtime_ns, status.st_size)


@cache
def _file_sha256(path: Path, modified: int, size: int) -> str:
    return file_hash(path)  # once: checkpoints may have gigabytes, and several jobs ask for each
