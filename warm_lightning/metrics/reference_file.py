"""Reference statistics as files: `mu` and `sigma` as other programs write them, and more that our scores need.

A file is an `.npz` without pickled objects. Every one has

    mu     float64 [F]      mean of the features
    sigma  float64 [F, F]   their covariance

and one that `warm reference-stats` wrote has also

    features  float32 [n, F]   of n images in random order: for kernel distance, precision and recall
    training  float32 [N, F]   of all images, if asked for: for memorisation
    facts     JSON: the images, the extractor, the protocol, and the scores of halves and Gaussian by the scores' keys

Other arrays are ignored.

A folder of references has such files under names by which they are found again, see `kept_reference`.
"""

import hashlib
import io
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from torch import Tensor

from warm_lightning.data.image_set import ImageSet
from warm_lightning.distributed import rank_and_world_size, total
from warm_lightning.errors import UserError, check
from warm_lightning.metrics.distances import Normal
from warm_lightning.metrics.features import Extraction
from warm_lightning.metrics.scores import DEFAULT, Reference, Score, ScoreProtocol
from warm_lightning.paths import expand
from warm_lightning.records import file_hash, to_json, write_file

FORMAT_VERSION = 2  # 1 had no shape of the images
SUFFIX = ".npz"
ARRAYS = ("mu", "sigma", "features", "training", "facts")
SMALLEST_EIGENVALUE = -1e-6  # of a covariance, relative to the largest: rounding errors of float32 files


def to_bytes(reference: Reference, extraction: Extraction, memorisation: bool = False) -> bytes:
    """The contents of a file from which `read_statistics` reads the same reference.

    Args:
        reference: as `measure` gives it.
        extraction: that it was measured with.
        memorisation: whether to include the features of all images, 4 bytes each: 410 MB for 50,000 images and
            Inception. Without them, scores against the file have no memorisation.
    """
    facts = {
        "format_version": FORMAT_VERSION,
        "source": reference.source,
        "num_images": reference.count,
        "shape": reference.shape,
        "held_out_images": reference.held_out_count,
        "extractor": extraction.extractor.describe(),
        "identity": extraction.extractor.identity(),
        "protocol": asdict(reference.protocol),
        "unseen": reference.unseen_distance,
        "companions": reference.companions,
    }
    arrays = {
        "mu": reference.normal.mean,
        "sigma": reference.normal.covariance,
        "features": reference.features,
        "training": reference.training if memorisation else None,
    }
    content = io.BytesIO()
    kept: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in arrays.items() if tensor is not None}
    np.savez(content, facts=np.array(to_json(facts, indent=None)), **kept)
    return content.getvalue()


def read_statistics(
    path: str | Path, extraction: Extraction, protocol: ScoreProtocol = DEFAULT, companions: bool = True
) -> Reference:
    """The reference that a file holds: only mean and covariance if another program wrote it.

    Args:
        path: the file.
        extraction: that the samples will be scored with.
        protocol: for a file of another program; our files have their own.
        companions: whether to read the scores of halves and Gaussian.

    Raises:
        UserError: the file is not there, damaged, not as above, or of another extractor.
    """
    path = expand(path)
    check(
        path.is_file(), f"{path}: no such file: make it with `warm reference-stats`, or name an .npz with mu and sigma"
    )
    arrays = _read(path)
    normal = _normal(path, arrays["mu"], arrays["sigma"], extraction)
    source = f"{path.name} (sha256 {file_hash(path)[:16]})"
    if "facts" not in arrays:
        return Reference(normal, source, protocol)
    facts = _facts(path, arrays["facts"])
    current, stored = extraction.extractor.identity(), facts["identity"]
    different = [name for name in {**current, **stored} if current.get(name) != stored.get(name)]
    check(
        not different,
        f"{path} was made with another extractor: {', '.join(different)} there "
        f"{[stored.get(name) for name in different]}, here {[current.get(name) for name in different]}: make it again",
    )
    features, training = (
        _matrix(path, name, arrays, len(normal.mean), extraction) for name in ("features", "training")
    )
    with _valid_facts(path):
        return Reference(
            normal,
            f"{facts['source']}, from {source}",
            ScoreProtocol(**facts["protocol"]),
            int(facts["num_images"]),
            facts["held_out_images"],
            features,
            training,
            facts["unseen"],
            {end: _numbers(values) for end, values in facts["companions"].items()} if companions else {},
            tuple(map(int, facts["shape"])),
        )


def is_folder(path: str | Path) -> bool:
    """Whether a path names a folder of references: it is one, or there is no file and its name does not end in .npz."""
    path = expand(path)
    return path.is_dir() or (path.suffix != SUFFIX and not path.exists())


def kept_reference(
    folder: str | Path,
    extraction: Extraction,
    images: ImageSet,
    held_out: ImageSet | None,
    scores: Sequence[Score],
    protocol: ScoreProtocol,
    companions: bool,
    measure: Callable[[], Reference],
) -> Reference:
    """The reference that a data set makes, from a folder of references, or measured and kept there.

    The name of its file has a hash of all that it depends on. For that all images are read, which takes less time than
    passing them through a network. A file that is damaged is made anew; where nothing can be written a warning says so.
    With several processes, all must call this.

    Args:
        folder: of the references; made if need be.
        extraction: gives the features.
        images: the training images.
        held_out: images that are not trained on; None where the data have none.
        scores: for which the reference is.
        protocol: see there.
        companions: whether it has the scores of halves of the data and of the moment-matched Gaussian.
        measure: measures it; see `measure_reference`.
    """
    identity = {
        "format_version": FORMAT_VERSION,
        "images": images.pixels_hash(),
        "held_out": None if held_out is None else held_out.pixels_hash(),
        "extractor": extraction.extractor.identity(),
        "device": extraction.device.type,
        "scores": [score.identity() for score in scores],
        "protocol": asdict(protocol),
        "companions": companions,
    }
    digest = hashlib.sha256(to_json(identity).encode()).hexdigest()[:16]
    path = expand(folder) / f"{type(extraction.extractor).__name__}-{len(images)}-{digest}{SUFFIX}"
    rank, world_size = rank_and_world_size()
    present = total(torch.tensor(int(path.is_file()), device=extraction.feature_device))
    if int(present) == world_size:  # on all machines: where one process measures, all must
        try:
            return read_statistics(path, extraction, protocol, companions)
        except UserError as error:
            warnings.warn(f"{error}: this is done now", stacklevel=2)
    reference = measure()
    if rank == 0:
        memorisation = any("training features" in score.needs for score in scores)
        try:
            write_file(path, to_bytes(reference, extraction, memorisation))
        except UserError as error:
            warnings.warn(f"{error}. The reference is not kept, and is measured again next time", stacklevel=2)
    return reference


def _numbers(values: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else float(value) for name, value in values.items()}


@contextmanager
def _valid_facts(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: its facts were not written by `warm reference-stats`: make the file again") from error


def _read(path: Path) -> dict[str, np.ndarray]:
    check(is_zipfile(path), f"{path} is damaged or no .npz file: make or copy it again")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS if name in file.files}
            others = sorted(set(file.files) - set(ARRAYS))
    except Exception as error:  # a damaged zip fails in as many ways as there are bytes
        pickled = "allow_pickle" in str(error)
        problem = "holds pickled objects, which are not loaded" if pickled else f"is damaged ({type(error).__name__})"
        raise UserError(
            f"{path} {problem}: use an .npz of plain arrays, such as `warm reference-stats` makes"
        ) from error
    for name in ("mu", "sigma"):
        held = ", ".join(sorted([*arrays, *others])) or "nothing"
        check(name in arrays, f"{path} has no {name!r}, but {held}: use another file")
    return arrays


def _facts(path: Path, array: np.ndarray) -> dict[str, Any]:
    with _valid_facts(path):
        facts = json.loads(array.item())
        version = facts["format_version"]
    check(
        version == FORMAT_VERSION,
        f"{path} has format {version}, this version reads {FORMAT_VERSION}: make it again with `warm reference-stats`",
    )
    with _valid_facts(path):
        dict(facts["identity"])
    return facts


def _normal(path: Path, mu: np.ndarray, sigma: np.ndarray, extraction: Extraction) -> Normal:
    check(
        mu.ndim == 1 and mu.size > 0 and sigma.shape == 2 * mu.shape and mu.dtype.kind == sigma.dtype.kind == "f",
        f"{path} has mu {mu.dtype} {list(mu.shape)} and sigma {sigma.dtype} {list(sigma.shape)}: they must be floats "
        "[F] and [F, F], F being 1 or more",
    )
    check(
        bool(np.isfinite(mu).all() and np.isfinite(sigma).all()),
        f"{path} has numbers that are not finite: make it again",
    )
    mean, covariance = (
        torch.from_numpy(array.astype(np.float64)).to(extraction.feature_device) for array in (mu, sigma)
    )
    symmetric = torch.allclose(covariance, covariance.T, rtol=1e-6, atol=1e-6 * covariance.abs().max().item())
    check(symmetric, f"{path}: sigma is no covariance, for it is not symmetric: make it again")
    normal = Normal(mean, covariance)
    values = normal.spectrum[0]  # cached, for the distance needs it too
    check(
        bool(values[0] >= SMALLEST_EIGENVALUE * values.abs().max()),
        f"{path}: sigma is no covariance, for it has the eigenvalue {values[0]:.3g}: make it again",
    )
    return normal


def _matrix(
    path: Path, name: str, arrays: dict[str, np.ndarray], num_features: int, extraction: Extraction
) -> Tensor | None:
    if name not in arrays:
        return None
    array = arrays[name]
    fits = array.ndim == 2 and array.shape[1] == num_features and array.dtype == np.float32
    check(fits and bool(np.isfinite(array).all()), f"{path}: {name} is damaged: make it again")
    return torch.from_numpy(array).to(extraction.feature_device)
