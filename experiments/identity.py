"""What options of `warm fit` mean, whatever files and words say it: so equal trainings are known to be equal."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import chdir
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from warm_lightning.config import resolve
from warm_lightning.data.sources import expand, source_name

REPOSITORY = Path(__file__).resolve().parent.parent
PAPERS = REPOSITORY / "experiments" / "papers"
DATA = REPOSITORY / "experiments" / "data"

CONFIG = "--config="
SAMPLING = ("sampler", "guidance")
"""Sections of the model that only sampling depends on."""
SPEED = ("compile", "channels_last", "num_workers", "cache", "root")
"""Settings that say how fast, not what, or where torchvision's files are."""
LOOKING = ("batch_size", "every", "every_num_images")
"""Settings of scores that a score does not depend on."""
PLACES = ("path", "held_out_path")
"""Settings of the data that say where they are: another copy of a file counts as the same."""
LOCK = Lock()
"""Jobs are threads, and a working directory is the whole process's."""
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
    with LOCK, chdir(REPOSITORY):
        return resolve(options)


def training(options: Sequence[str]) -> dict[str, Any]:
    """The part of it that trained weights depend on."""
    config = resolved(options)
    model = {name: value for name, value in config["model"].items() if name not in (*SAMPLING, *SPEED)}
    return {"model": model, **around(config), "posthoc_ema": config["posthoc_ema"]}


def measuring(options: Sequence[str], scored: bool) -> dict[str, Any]:
    """The part of it that what is measured depends on.

    Args:
        options: of `warm fit`.
        scored: whether scores are what is measured.
    """
    config = resolved(options)
    model = {name: value for name, value in config["model"].items() if name not in SPEED}
    scores = {name: value for name, value in config["scores"].items() if name not in LOOKING} if scored else None
    return {"model": model, **around(config), "scores": scores}


def around(config: Mapping[str, Any]) -> dict[str, Any]:
    """Data, wherever they are, and how the Trainer computes."""
    data = config["data"]
    images = {name: value for name, value in data["init_args"].items() if name not in SPEED}
    images |= {name: source_name(REPOSITORY / images[name]) for name in PLACES if images.get(name)}
    trainer = {name: value for name, value in config["trainer"].items() if name in TRAINER}
    return {"data": data | {"init_args": images}, "trainer": trainer}


def images_file(options: Sequence[str]) -> Path | None:
    """The file with the images, which may not be there; None where they are in a folder or in no one place."""
    path = resolved(options)["data"]["init_args"].get("path")
    place = REPOSITORY / expand(path) if path else None
    return None if place is None or place.is_dir() else place


PART = 1 << 20


def digest(path: Path) -> str | None:
    """SHA-256 of a file; None if it is not there."""
    if not path.is_file():
        return None
    known = path.stat()
    return _digest(path, known.st_mtime_ns, known.st_size)


@cache
def _digest(path: Path, changed: int, size: int) -> str:
    # Checkpoints are gigabytes, and several jobs ask for each.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str | None:
    """Size, beginning and end of a file, which may be of many gigabytes; None if it is not there.

    The end of a zip lists checksums of what is in it.
    """
    if not path.is_file():
        return None
    with path.open("rb") as file:
        size = file.seek(0, 2)
        parts = []
        for start in (0, max(0, size - PART)):
            file.seek(start)
            parts.append(file.read(PART))
    return f"{size}-{hashlib.sha256(b''.join(parts)).hexdigest()[:16]}"
