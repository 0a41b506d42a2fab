"""`warm score`: scores of any images against others, or against reference statistics."""

from pathlib import Path

import torch

from warm_lightning.commands.shared import make_extraction, open_images
from warm_lightning.defaults import default
from warm_lightning.distributed import progress
from warm_lightning.errors import check
from warm_lightning.metrics import (
    BATCH_SIZE,
    Evaluation,
    FeatureExtractor,
    InceptionFeatures,
    ScoreProtocol,
    measure_reference,
    read_statistics,
)
from warm_lightning.metrics.reference_file import SUFFIX
from warm_lightning.metrics.scores import DEFAULT
from warm_lightning.paths import PathText
from warm_lightning.records import check_out, provenance, to_json, write_file


def score(
    images: PathText,
    reference: PathText,
    extractor: FeatureExtractor = default(InceptionFeatures),
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    companions: bool = True,
    max_neighbours: int | None = None,
    out: PathText | None = None,
) -> None:
    """Score a folder or zip of images against another one, or against reference statistics.

    Args:
        images: the samples, in any format that training reads; of a source with splits, the training images.
        reference: the data, likewise; or an .npz file that `warm reference-stats` wrote, or with mu and sigma alone.
        extractor: gives the features: InceptionFeatures, TorchScriptFeatures, ImportedFeatures, DigitsFeatures or
            Pixels.
        device: auto, cpu, cuda or mps.
        batch_size: images that pass the extractor at once.
        companions: whether to score halves of the data and the moment-matched Gaussian, too.
        max_neighbours: number of images of each side that kernel distance, precision and recall compare; 10,000 if not
            given. A file of `warm reference-stats` has its own number.
        out: JSON file for the scores and their protocol.
    """
    check_out(out)
    samples = open_images(images)
    protocol = DEFAULT if max_neighbours is None else ScoreProtocol(max_neighbours)
    extraction = make_extraction(extractor, device, batch_size)
    if reference.endswith(SUFFIX):
        statistics = read_statistics(reference, extraction, protocol, companions)
        stored = statistics.protocol.max_neighbours
        check(
            max_neighbours in (None, stored),
            f"--max_neighbours {max_neighbours}: {reference} was made with {stored}: leave it out, or make the file "
            "again",
        )
    else:
        data = open_images(reference)
        statistics = measure_reference(
            extraction, data, source=reference, protocol=protocol, companions=companions, samples=len(samples)
        )
    scores = Evaluation(extraction, statistics, samples.shape)
    for index in progress(torch.arange(len(samples)).split(batch_size), "samples"):
        scores.update(samples.take(index))
    count, values = scores.compute()
    values |= scores.companions(count)
    if out:
        about = {"images": images, **scores.describe(count), **provenance(extraction.device)}
        write_file(Path(out), to_json({**values, "protocol": about}).encode())
    print(scores.table(values, count))
    if out:
        print(f"\nwritten to {out}")
