"""Records of generated and restored images: a file beside them lists them with the settings that they have.

Images of different settings in one folder would be scored as one set. `check_unmixed` refuses to add such images, and
`check_listed` to read a folder that holds others than its record lists.
"""

import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from warm_lightning.checkpoints import GUIDANCE, dotted_settings
from warm_lightning.data.listing import SUFFIXES
from warm_lightning.data.readers import FolderReader, Reader
from warm_lightning.errors import UserError, check
from warm_lightning.model import TrainedModel
from warm_lightning.records import provenance, tensors_hash, to_json, whole_file
from warm_lightning.types import Weights

GENERATED, RESTORED = "generated.json", "restored.json"
FILES = "files"
"""The entry of a record's protocol with the names of the images, and what is particular to each: its class or seed."""
MODEL = ("network", "preconditioning")
SHOWN = 3  # differences in an error


def model_settings(trained: TrainedModel, weights: Weights, precision: str) -> dict[str, Any]:
    """The settings of a model that its images depend on; plain data."""
    model, config = trained.model(weights), trained.config or {}
    return {
        **trained.record(weights),
        **{name: config.get(name) for name in MODEL},
        "learned_sha256": tensors_hash(model.learned.items()),
        **{name: config.get(name) for name in GUIDANCE},
        "guide_sha256": model.guide_hash(),
        "precision": precision,
        **{name: provenance(model.device)[name] for name in ("package_version", "device")},
    }


def check_unmixed(path: Path, settings: Mapping[str, Any], files: Mapping[str, Any], alone: bool = True) -> None:
    """Check that images can be added to those of a record.

    Args:
        path: of the record, which may not exist.
        settings: that the images have in common.
        files: the names of the images; see `FILES`.
        alone: whether there must be no other images in the folder.

    Raises:
        UserError: the folder holds images of other settings, or `alone` and some that are not listed.
    """
    protocol = _read(path)
    listed = protocol.get(FILES, {})
    advice = "choose another --outdir, or delete it"
    if alone and path.parent.is_dir():
        there = _images(FolderReader(path.parent).names())
        unlisted = sorted(there - listed.keys())
        known = f"that {path.name} does not list" if protocol else f"of unknown settings, without a {path.name}"
        check(not unlisted, f"{path.parent} holds {_some(unlisted)} {known}: {advice}")
    if not protocol:
        return
    before = _dotted({name: protocol.get(name) for name in settings})
    now = _dotted(json.loads(to_json(settings)))
    different = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    shown = [f"{name} {before.get(name)} there, {now.get(name)} here" for name in different[:SHOWN]]
    check(not different, f"{path.parent} holds images of other settings ({'; '.join(shown)}): {advice}")
    changed = [name for name in files if listed.get(name, files[name]) != files[name]]
    check(not changed, f"{path.parent} holds {_some(changed)} of another class or seed: {advice}")


def add_to_record(
    path: Path,
    settings: Mapping[str, Any],
    files: Mapping[str, Any],
    others: Mapping[str, Any],
    values: Mapping[str, Any] | None = None,
) -> None:
    """Write a record, with the images that it lists already.

    Args:
        path: of the record.
        settings: see `check_unmixed`.
        files: see `check_unmixed`.
        others: further entries of the protocol.
        values: further entries beside the protocol.

    Raises:
        UserError: another process has recorded images of other settings meanwhile.
    """
    with whole_file(path) as temporary:  # whose lock other processes that add images wait for
        check_unmixed(path, settings, files, alone=False)
        listed = dict(sorted({**_read(path).get(FILES, {}), **files}.items()))
        record = {**(values or {}), "protocol": {**settings, **others, FILES: listed}}
        temporary.write_bytes(to_json(record).encode())


def check_listed(reader: Reader, source: str) -> None:
    """Check that the images of a source are those that the records in it list, where there are records.

    Raises:
        UserError: there are other images beside them, or some are missing.
    """
    names = reader.names()
    images = {PurePosixPath(name) for name in _images(names)}
    for name in names:
        record = PurePosixPath(name)
        if record.name not in (GENERATED, RESTORED):
            continue
        listed = {record.parent / file for file in _protocol(reader.read(name)).get(FILES, {})}
        there = {image for image in images if image.is_relative_to(record.parent)}
        advice = f"or delete {name} to use the images that are there"
        unlisted, missing = (sorted(map(str, rest)) for rest in (there - listed, listed - there))
        check(
            not listed or not unlisted, f"{source} holds {_some(unlisted)} that {name} does not list: remove, {advice}"
        )
        check(not missing, f"{source} lacks {_some(missing)} that {name} lists: run the same command again, {advice}")


def _dotted(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name.removeprefix("."): value for name, value in dotted_settings(settings, "")}


def _images(names: list[str]) -> set[str]:
    return {name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES}


def _some(names: list[str]) -> str:
    return names[0] + (f" and {len(names) - 1} more" if len(names) > 1 else "") if names else ""


def _read(path: Path) -> dict[str, Any]:
    try:
        return _protocol(path.read_bytes()) if path.exists() else {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); choose another --outdir") from error


def _protocol(content: bytes) -> dict[str, Any]:
    """The protocol of a record; empty if it is damaged or the file of another program."""
    try:
        protocol = json.loads(content)["protocol"]
        return dict(protocol) if isinstance(protocol.get(FILES, {}), dict) else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
