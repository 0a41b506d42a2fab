"""Scores of generated images against a data set, each beside what is needed to read it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.images import quantise
from warm_lightning.metrics.extractors import FeatureExtractor
from warm_lightning.metrics.gaussian import moment_matched
from warm_lightning.metrics.progress import progress
from warm_lightning.metrics.summary import Reference, Summariser, Summary, evaluate
from warm_lightning.metrics.table import table
from warm_lightning.rng import key

NEIGHBOURS = 3  # k of precision and recall, as Kynkäänniemi et al. 2019 recommend


class Scores:
    """Scores of generated images against a data set, with one feature extractor.

    `compute` gives, for the digits' extractor (see `FeatureExtractor.score_name` for the others' names):

    * `fd_digits`: Fréchet distance between the features of the samples and of the whole reference.
    * `is_digits`: Inception-style score of the samples; only where the extractor has classes.
    * `precision_digits`, `recall_digits`: with 3rd neighbours.
    * `memorisation_digits`: how near samples are to training images, relative to held-out images.

    And beside each, under the same name with an ending, the same score of two other things:

    * `_halves`: one random half of the reference as if it were the samples, with the other as the
      reference: about what the best model can reach. For the Inception-style score, `_data`: that of the
      whole reference.
    * `_gaussian`: images drawn from the normal distribution that has the reference's pixel mean and
      covariance, as many as the reference has and at most `max_neighbours`, against the whole reference.

    Precision, recall and memorisation are of the first `max_neighbours` samples; precision and recall
    against as many images of the reference, drawn at random, and memorisation against all of it.

    Every device computes the reference's side for itself.

    Args:
        extractor: what sees the images. It is moved to `device` and frozen.
        reference: the training images, uint8 [N, C, H, W], N ≥ 8. Kept, but not copied.
        held_out: images that are not trained on, uint8 [H, C, H, W]; None where the data has none.
        seed: of the halves and the Gaussian.
        batch_size: images that pass the extractor at once.
        max_neighbours: see above.
        device: where to compute. With several processes, one that they communicate from.

    Raises:
        UserError: the images are too few or not as above, or the extractor does not take them.
    """

    def __init__(
        self,
        extractor: FeatureExtractor,
        reference: Tensor,
        held_out: Tensor | None = None,
        *,
        seed: int = 0,
        batch_size: int = 500,
        max_neighbours: int = 10_000,
        device: torch.device | str = "cpu",
    ) -> None:
        smallest = 2 * (NEIGHBOURS + 1)
        enough = len(reference) >= smallest
        check(enough, f"scores need at least {smallest} images of data, not {len(reference)}")
        self.extractor = extractor.to(device).eval().requires_grad_(False)
        self.seed = seed
        self.batch_size = batch_size
        self.max_neighbours = max_neighbours
        self.device = torch.device(device)
        # Moments are in float64, which Apple's GPUs do not have.
        self._home = torch.device("cpu") if self.device.type == "mps" else self.device
        self._images = reference
        # In random order, or the first images of a folder would all be of its first classes.
        features, logits = self._extract(reference, "reference features")
        unseen = None if held_out is None else self._extract(held_out, "held-out features")[0]
        self._reference = Reference(self._summarise(features, logits), features, unseen)
        num_classes = 0 if logits is None else logits.shape[1]
        self._samples = self._summariser(features.shape[1], num_classes, over_devices=True)
        self._names: list[str] = []
        self._count = 0

    def update(self, images: Tensor) -> None:
        """Take in this device's next samples, uint8 [B, C, H, W].

        Of several devices, device r of W is expected to have samples r, r + W, r + 2W, …
        """
        for batch in images.split(self.batch_size):
            self._samples.update(*self._features(batch))

    def reset(self) -> None:
        """Forget the samples and keep the reference."""
        self._samples.reset()

    def compute(self) -> dict[str, float]:
        """All scores of the samples on all devices, which must all call this and get the same.

        Raises:
            UserError: there are fewer than 4 samples.
        """
        samples = self._samples.compute()
        enough = samples.count > NEIGHBOURS
        check(enough, f"scores need at least {NEIGHBOURS + 1} samples, not {samples.count}")
        with full_precision(self.device):
            scores = evaluate(samples, self._reference, NEIGHBOURS)
        values: dict[str, float] = {}
        self._names, self._count = [], samples.count
        for score, value in scores.items():
            over_all = score in ("frechet", "is")
            name = self.extractor.score_name(score, samples.count if over_all else len(samples.features))
            self._names.append(name)
            values[name] = value
            values |= {f"{name}_{end}": of[score] for end, of in self.baselines.items() if score in of}
        return values

    @cached_property
    def baselines(self) -> dict[str, dict[str, float]]:
        """What is beside the scores, by the ending of its name and by score; computed when first needed."""
        whole = self._reference
        a, b = whole.training.tensor_split([len(whole.training) // 2])
        half = Reference(self._summarise(b), b, whole.held_out)
        score = whole.summary.inception_score
        with full_precision(self.device):
            gaussian = moment_matched(self._images, self._gaussian_count, self.seed, self.device)
            drawn = self._summarise(*self._extract(quantise(gaussian), "Gaussian's features"))
            return {
                "halves": evaluate(self._summarise(a), half, NEIGHBOURS),
                "data": {} if score is None else {"is": score},
                "gaussian": evaluate(drawn, whole, NEIGHBOURS),
            }

    def table(self, values: Mapping[str, float]) -> str:
        """Those of `values` that the last `compute` gave, for people to read."""
        size = len(self._images)
        sizes = f"{self._count:,} samples, {size:,} images of data, {self._gaussian_count:,} of the Gaussian."
        notes = [sizes]
        if self._reference.summary.inception_score is not None:
            notes += ["is: of all the data instead of halves."]
        if max(self._count, size) > self.max_neighbours:
            notes += [f"precision, recall, memorisation: of {self.max_neighbours:,} images at most."]
        return table(values, self._names, notes)

    def describe(self) -> dict[str, Any]:
        """By what protocol the last `compute` scored; plain data."""
        held_out = self._reference.held_out
        return {
            "extractor": self.extractor.describe(),
            "samples": self._count,
            "reference_images": len(self._images),
            "held_out_images": 0 if held_out is None else len(held_out),
            "gaussian_images": self._gaussian_count,
            "neighbours": NEIGHBOURS,
            "max_neighbours": self.max_neighbours,
            "seed": self.seed,
        }

    @property
    def _gaussian_count(self) -> int:
        return min(len(self._images), self.max_neighbours)

    def _features(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        expected, found = tuple(self._images.shape[1:]), tuple(images.shape[1:])
        check(images.dtype == torch.uint8, f"scores take uint8 images, not {images.dtype}: quantise them")
        check(found == expected, f"images of {found} cannot be scored against data of {expected}")
        with full_precision(self.device), torch.no_grad():
            features, logits = self.extractor(images.to(self.device))
        return features.to(self._home), None if logits is None else logits.to(self._home)

    def _extract(self, images: Tensor, what: str) -> tuple[Tensor, Tensor | None]:
        """Features and logits of all images, in an order that is random but the same each time."""
        generator = torch.Generator().manual_seed(key(self.seed, "order"))
        order = torch.randperm(len(images), generator=generator)
        parts = [self._features(images[index]) for index in progress(order.split(self.batch_size), what)]
        logits = [part for _, part in parts if part is not None]
        return torch.cat([part for part, _ in parts]), torch.cat(logits) if logits else None

    def _summariser(self, num_features: int, num_classes: int, over_devices: bool) -> Summariser:
        return Summariser(num_features, num_classes, self.max_neighbours, self._home, over_devices)

    def _summarise(self, features: Tensor, logits: Tensor | None = None) -> Summary:
        num_classes = 0 if logits is None else logits.shape[1]
        summariser = self._summariser(features.shape[1], num_classes, over_devices=False)
        summariser.update(features, logits)
        return summariser.compute()


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Full float32 whatever precision training uses: no autocast, and no TF32 in matrix products."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
