"""`warm compare`: two models by their images or scores of the same seeds."""

import json
from pathlib import Path
from pathlib import PurePosixPath as Name
from typing import Any

import numpy as np
import torch

from warm_lightning.commands.shared import make_extraction, open_images
from warm_lightning.data.listing import list_images
from warm_lightning.data.sources import open_reader
from warm_lightning.defaults import default
from warm_lightning.errors import UserError, check
from warm_lightning.metrics import (
    BATCH_SIZE,
    Evaluation,
    Extraction,
    FeatureExtractor,
    FrechetDistance,
    InceptionFeatures,
    measure_reference,
    read_statistics,
    split_rounds,
)
from warm_lightning.metrics.features import identity
from warm_lightning.metrics.paired import BLOCKS, MEANING, Difference, paired_frechet, paired_rounds, too_few
from warm_lightning.metrics.reference_file import SUFFIX
from warm_lightning.paths import PathText
from warm_lightning.records import check_out, provenance, text_table, to_json, write_file


def compare(
    a: PathText,
    b: PathText,
    reference: PathText | None = None,
    extractor: FeatureExtractor = default(InceptionFeatures),
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    out: PathText | None = None,
) -> None:
    """Compare two models, with 95 % confidence intervals over paired seeds.

    For two folders or zips of images that `warm generate` made of the same seeds: the difference of their Fréchet
    distances to a reference, by a jackknife over blocks of seeds. For two files `scores.json` of `warm test` with the
    same seeds in two rounds or more: the difference of every score, by Student's t over rounds.

    An interval is for the difference of the expected scores at this number of images, given these two trained models
    and this reference; it says nothing of other trainings or of more images. Generate several times as many images as
    the extractor has features. Where both models are nearly perfect, the jackknife's intervals are too wide.

    Args:
        a: the first model's images or scores.json.
        b: the second's.
        reference: for images, a folder or zip, or an .npz file of statistics.
        extractor: for images, gives their features.
        device: auto, cpu, cuda or mps.
        batch_size: images that pass the extractor at once.
        out: JSON file for the result.
    """
    check_out(out)
    files = [path for path in (a, b) if path.endswith(".json")]
    check(len(files) != 1, f"{files[:1]} is a file of scores and the other is not: give two scores.json or two sets")
    if files:
        check(reference is None, "scores.json files hold their reference: leave --reference out")
        differences, about = compare_rounds(Path(a), Path(b))
    else:
        check(reference is not None, "images need --reference, a folder or zip of data, or an .npz file of statistics")
        names = same_names(a, b)
        extraction = make_extraction(extractor, device, batch_size)
        differences, about = compare_images(a, b, str(reference), extraction)
        about |= {"images": [names[0], names[-1]], "device": str(extraction.device)}
    rows = [["score", "A", "B", "A − B", "95 % confidence interval"]]
    for name, d in differences.items():
        rows.append([name, *(f"{value:.4g}" for value in (d.a, d.b, d.value)), f"{d.low:.4g} to {d.high:.4g}"])
    if out:
        values = {
            name: {"a": d.a, "b": d.b, "difference": d.value, "interval": [d.low, d.high]}
            for name, d in differences.items()
        }
        about = {"a": a, "b": b, "interval": MEANING, **provenance("cpu"), **about}
        write_file(Path(out), to_json({**values, "protocol": about}).encode())
    print(text_table(rows, "<>>><"))
    if about.get("note"):
        print(about["note"])
    if out:
        print(f"\nwritten to {out}")


def compare_images(
    a: str, b: str, reference: str, extraction: Extraction
) -> tuple[dict[str, Difference], dict[str, Any]]:
    """The difference of Fréchet distances of two sets of images of the same names, and its protocol."""
    sets = [open_images(path) for path in (a, b)]
    count = len(sets[0])
    check(count >= 2 * BLOCKS, f"{a} has {count} images: an interval needs at least {2 * BLOCKS}")
    if reference.endswith(SUFFIX):
        statistics = read_statistics(reference, extraction)
    else:
        statistics = measure_reference(
            extraction, open_images(reference), source=reference, companions=False, samples=count
        )
    for images in sets:
        Evaluation(extraction, statistics, images.shape)  # raises where the images do not fit the data
    order, named = torch.arange(count), zip((a, b), sets, strict=True)
    features = [extraction.extract(images, order, path)[0] for path, images in named]
    extractor = extraction.extractor
    about = {
        "num_images": count,
        "blocks": BLOCKS,
        "extractor": extractor.describe(),
        "reference": statistics.source,
        "reference_images": statistics.count,
        "note": too_few(count, features[0].shape[1]),
    }
    name = FrechetDistance().full_name(extractor, count, statistics)
    return {name: paired_frechet(features[0], features[1], statistics.normal)}, about


def same_names(a: str, b: str) -> list[str]:
    """The names of the images of two sources, in order.

    Raises:
        UserError: they are not the same; the first missing file is named.
    """
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
    return names[0]


def compare_rounds(a: Path, b: Path) -> tuple[dict[str, Difference], dict[str, Any]]:
    """The differences of all scores that two files have in two rounds or more, and their protocol."""
    scores = [read_scores(path) for path in (a, b)]
    protocols = [values["protocol"] for values in scores]
    seeds_a, seeds_b = (protocol["seeds"] for protocol in protocols)
    check(seeds_a == seeds_b, f"{a} is of seeds {seeds_a}, {b} of {seeds_b}: score the same seeds with both")
    check(isinstance(seeds_a, list), f"{a} has one round: an interval needs at least two, --scores.rounds 3")
    first, second = (comparable(protocol) for protocol in protocols)
    different = [name for name in {**first, **second} if first.get(name) != second.get(name)]
    check(
        not different,
        f"{a} and {b} differ in {', '.join(different)} ({[first.get(n) for n in different]} and "
        f"{[second.get(n) for n in different]}): score both by one protocol",
    )
    here, there = (np.ravel(protocol.get("reference_moments", [])) for protocol in protocols)
    check(
        len(here) != len(there) or np.allclose(here, there, rtol=1e-3),  # earlier versions did not write them
        f"{a} and {b} were scored against different images, though both name them {first['reference']}: score both "
        "against the same",
    )
    of_a, of_b = (split_rounds(values, len(seeds_a)) for values in scores)
    known = {
        name: paired_rounds(of_a[name], of_b[name])
        for name in of_a
        if name in of_b and all(isinstance(value, int | float) for value in [*of_a[name], *of_b[name]])
    }
    check(bool(known), f"{a} and {b} have no score in common in each of {len(seeds_a)} rounds: score both again")
    return known, {"seeds": seeds_a, **first, "weights_sha256": [p.get("weights_sha256") for p in protocols]}


def comparable(protocol: dict[str, Any]) -> dict[str, Any]:
    """The part of a protocol that must be equal for scores to be compared."""
    extractors = protocol["extractors"]
    return {
        "num_images": protocol["num_images"],
        "reference": protocol["reference"],
        "extractors": [identity(entry["extractor"]) for entry in extractors],
        "max_neighbours": [entry["max_neighbours"] for entry in extractors],
    }


def read_scores(path: Path) -> dict[str, Any]:
    """The contents of a `scores.json`.

    Raises:
        UserError: it is not there, or something else.
    """
    check(path.is_file(), f"{path}: no such file: give the scores.json of a run")
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        scores["protocol"]["seeds"]
        comparable(scores["protocol"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no scores.json of `warm test`: give that of a run") from error
    return scores
