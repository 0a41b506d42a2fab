"""`warm compare`: two models by what they make of the same seeds."""

import json
from pathlib import Path
from pathlib import PurePosixPath as Name
from typing import Any

import torch
from jsonargparse import lazy_instance
from torch import Tensor

from warm_lightning.data.layout import list_images
from warm_lightning.data.sources import open_reader
from warm_lightning.errors import UserError, check
from warm_lightning.metrics import FeatureExtractor, InceptionFeatures, Observer, measure, read_statistics
from warm_lightning.metrics.paired import BLOCKS, Difference, paired_frechet, paired_rounds
from warm_lightning.metrics.statistics import SUFFIX
from warm_lightning.pictures import write_file
from warm_lightning.tools.observing import make_observer, open_images


def compare(
    a: str,
    b: str,
    reference: str | None = None,
    extractor: FeatureExtractor = lazy_instance(InceptionFeatures),
    device: str = "auto",
    batch_size: int = 250,
    out: str | None = None,
) -> None:
    """Differences between two models, with 95 % confidence intervals over paired seeds.

    Of two folders or zips of images that `warm generate` made of the same seeds, against a reference: the difference of
    their Fréchet distances, by a jackknife over blocks of seeds. Or of two files `scores.json` of `warm test` with the
    same seeds in two rounds or more: the difference of every score, by Student's t over rounds.

    Args:
        a: the first model's images or scores.json.
        b: the second's.
        reference: for images, a folder or zip, or an .npz file of statistics.
        extractor: for images, what sees them.
        device: auto, cpu, cuda or mps.
        batch_size: images that pass the extractor at once.
        out: JSON file for the result.
    """
    if a.endswith(".json") and b.endswith(".json"):
        check(reference is None, "scores.json files hold their reference: leave --reference out")
        differences = compare_rounds(Path(a), Path(b))
    else:
        check(reference is not None, "images need --reference, a folder or zip of data, or an .npz file of statistics")
        same_names(a, b)
        observer = make_observer(extractor, device, batch_size)
        differences = compare_images(a, b, str(reference), observer)
    width = max(map(len, differences))
    print(f"{'score':<{width}}  {'A':>10}  {'B':>10}  {'A − B':>10}  95 % confidence interval")
    for name, d in differences.items():
        print(f"{name:<{width}}  {d.a:>10.4g}  {d.b:>10.4g}  {d.value:>10.4g}  {d.low:.4g} to {d.high:.4g}")
    if out:
        values = {
            name: {"a": d.a, "b": d.b, "difference": d.value, "interval": [d.low, d.high]}
            for name, d in differences.items()
        }
        about = {"a": a, "b": b, "reference": reference, "confidence": 0.95}
        write_file(Path(out), json.dumps({**values, "protocol": about}, indent=2).encode())
        print(f"\nwritten to {out}")


def compare_images(a: str, b: str, reference: str, observer: Observer) -> dict[str, Difference]:
    """The difference of Fréchet distances of two sets of images of the same names."""
    if reference.endswith(SUFFIX):
        against = read_statistics(reference, observer)
    else:
        against = measure(observer, open_images(reference), source=reference, companions=False)
    sets = [open_images(path) for path in (a, b)]
    features: list[Tensor] = []
    for path, images in zip((a, b), sets, strict=True):
        enough = len(images) >= 2 * BLOCKS
        check(enough, f"{path} has {len(images)} images: an interval needs at least {2 * BLOCKS}")
        features.append(observer.all(images, torch.arange(len(images)), path)[0])
    found, expected = features[0].shape[1], len(against.normal.mean)
    check(found == expected, f"{reference} has {expected} features an image, but the extractor gives {found}")
    name = observer.extractor.score_name("frechet", len(sets[0]))
    return {name: paired_frechet(features[0], features[1], against.normal)}


def same_names(a: str, b: str) -> None:
    """Raise UserError, naming the first missing file, unless two sources have images of the same names."""
    names = []
    for path in (a, b):
        reader = open_reader(path)
        names.append([Name(name).name for name in list_images(reader)["train"].names])
    for here, there, path in ((names[0], names[1], b), (names[1], names[0], a)):
        missing = sorted(set(here) - set(there))
        check(
            not missing,
            f"{path} lacks {missing[:1]} and {max(0, len(missing) - 1)} more: generate the same seeds with both models",
        )
    check(names[0] == names[1], f"{a} and {b} have the same files in another order: put them into flat folders")


def compare_rounds(a: Path, b: Path) -> dict[str, Difference]:
    """The differences of all scores that two files have in two rounds or more."""
    scores = [read_scores(path) for path in (a, b)]
    seeds = [s["protocol"]["seeds"] for s in scores]
    check(seeds[0] == seeds[1], f"{a} is of seeds {seeds[0]}, {b} of {seeds[1]}: score the same seeds with both")
    check(isinstance(seeds[0], list), f"{a} has one round: an interval needs at least two, --scores.rounds 3")
    first = "_round1"
    names = [name.removesuffix(first) for name in scores[0] if name.endswith(first) and name in scores[1]]
    names = [name for name in names if f"{name}_mean" in scores[0]]
    check(bool(names), f"{a} and {b} have no score in common: score both with the same extractor")
    rounds = range(1, len(seeds[0]) + 1)
    return {name: paired_rounds(*([s[f"{name}_round{r}"] for r in rounds] for s in scores)) for name in names}


def read_scores(path: Path) -> dict[str, Any]:
    """The contents of a `scores.json`.

    Raises:
        UserError: it is not there, or something else.
    """
    check(path.is_file(), f"{path}: no such file: give the scores.json of a run")
    try:
        scores = json.loads(path.read_text())
        scores["protocol"]["seeds"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no scores.json of `warm test`: give that of a run") from error
    return scores
