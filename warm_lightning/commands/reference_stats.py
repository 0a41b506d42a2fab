"""`warm reference-stats`: the reference statistics of a data set, in a file to score samples against."""

from pathlib import Path

from warm_lightning.commands.shared import make_extraction, open_images
from warm_lightning.errors import check
from warm_lightning.metrics import (
    BATCH_SIZE,
    FeatureExtractor,
    InceptionFeatures,
    Score,
    ScoreProtocol,
    measure_reference,
)
from warm_lightning.metrics.reference import LARGE
from warm_lightning.metrics.reference_file import SUFFIX, to_bytes
from warm_lightning.paths import PathText
from warm_lightning.records import check_out, write_file
from warm_lightning.shipped import config_file, shipped_configs


def reference_stats(
    source: PathText,
    out: PathText,
    extractor: FeatureExtractor | None = None,
    held_out: PathText | None = None,
    memorisation: bool = False,
    device: str = "auto",
    batch_size: int = BATCH_SIZE,
    max_neighbours: int = 10_000,
    override: list[str] | None = None,
) -> None:
    """Write the statistics of a data set for `warm test` (`scores.reference_stats`), `warm score` and other programs.

    The file has the mean and covariance of the features as `mu` and `sigma`, as other programs expect them; the
    features that the other scores need; and the scores of halves of the data and of a Gaussian.

    Args:
        source: YAML file, or the name of a shipped one, of whose data the training images are used; or a folder or zip,
            of which all images are or, where it has splits, the training images.
        out: file to write, *.npz.
        extractor: gives the features; by default the first of a YAML file's, or InceptionFeatures.
        held_out: folder or zip of images that are not trained on, for memorisation; a YAML file's data have their own.
        memorisation: whether to store the features of all images, which that score needs: 4 bytes each, 410 MB for
            50,000 images and Inception's 2,048 features.
        device: auto, cpu, cuda or mps.
        batch_size: images that pass the extractor at once.
        max_neighbours: number of images whose features are stored for kernel distance, precision and recall.
        override: other settings of a YAML file, such as --override+=data.path=images.zip.
    """
    check(out.endswith(SUFFIX), f"{out}: call the file *{SUFFIX}")
    check_out(out)
    held_out_images = open_images(held_out) if held_out else None
    scores: list[Score] | None = None
    if source.endswith((".yaml", ".yml")) or (source in shipped_configs() and not Path(source).exists()):
        from warm_lightning.trainer_cli import WarmCLI  # here, since Lightning takes seconds to import

        cli = WarmCLI([f"--config={config_file(source)}", *(f"--{setting}" for setting in override or [])], run=False)
        module, settings = cli.datamodule, cli.config_init["scores"]
        module.prepare_data()
        data, held_out_images = module.train_images(), held_out_images or module.held_out_images()
        name = f"{type(module).__name__}: {len(data)} training images"
        extractor, scores = extractor or settings.extractors(module)[0], settings.given_scores
    else:
        data, name = open_images(source), source
    check(
        not memorisation or len(data) <= LARGE,
        f"--memorisation: features of {len(data):,} images are too many to store, more than {LARGE:,}: leave it out",
    )
    extraction = make_extraction(extractor or InceptionFeatures(), device, batch_size)
    protocol = ScoreProtocol(max_neighbours)
    reference = measure_reference(extraction, data, held_out_images, scores=scores, source=name, protocol=protocol)
    write_file(Path(out), to_bytes(reference, extraction, memorisation))
    print(f"{len(data):,} images, {len(reference.normal.mean):,} features: {out}")
