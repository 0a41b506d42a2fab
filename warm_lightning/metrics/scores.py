"""Scores of generated images against a data set, each beside what is needed to read it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.metrics.distances import SUBSETS, subset_size
from warm_lightning.metrics.features import Observer
from warm_lightning.metrics.reference import NEIGHBOURS, Reference, Summariser, evaluate
from warm_lightning.spectral import full_precision

BESIDE = {"halves of the data": ("_halves", "_data"), "Gaussian": ("_gaussian",)}
BETTER = {"f": "lower", "i": "higher", "k": "lower", "p": "higher", "r": "higher", "m": "near 1"}  # by first letter
BEST = {"lower": "min", "higher": "max"}


def summarise_rounds(rounds: Sequence[Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    """One set of scores from those of rounds of as many samples each.

    A single round's keep their names. Of several, all are there as `<name>_round1`, …; and of those in `names` the
    mean over rounds as `<name>_mean`, the sample standard deviation as `_std` and the best, as `_min` where lower is
    better and `_max` where higher is. (Memorisation, which should be 1, has no best.)
    """
    if len(rounds) == 1:
        return dict(rounds[0])
    values: dict[str, float] = {}
    for name in rounds[0]:
        over = [scores[name] for scores in rounds]
        values |= {f"{name}_round{k}": value for k, value in enumerate(over, start=1)}
        if name in names:
            best = BEST.get(BETTER[name[0]])
            if best:
                values[f"{name}_{best}"] = min(over) if best == "min" else max(over)
            values |= {f"{name}_mean": float(np.mean(over)), f"{name}_std": float(np.std(over, ddof=1))}
    return values


def table(values: Mapping[str, float], names: Sequence[str], rounds: int = 1, notes: Sequence[str] = ()) -> str:
    """A row for each score, with what halves of the data and the moment-matched Gaussian get beside it.

    Args:
        values: scores by name, with companions under `<name>_halves` or `<name>_data` and `<name>_gaussian`; of
            several rounds as `summarise_rounds` gives them.
        names: which scores, in order.
        rounds: number of rounds.
        notes: lines to put below.
    """
    columns: dict[str, tuple[str, ...]] = {"samples": ("",)}
    if rounds > 1:
        columns = {f"best of {rounds}": ("_min", "_max"), "mean": ("_mean",), "std": ("_std",)}
    columns |= BESIDE
    rows = [["score", *columns, "better is"]]
    for name in names:
        cells = [_find(values, name, endings) for endings in columns.values()]
        rows.append([name, *cells, BETTER[name[0]]])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]
    return "\n".join([lines[0], "─" * len(lines[0]), *lines[1:], *notes])


def _find(values: Mapping[str, float], name: str, endings: Sequence[str]) -> str:
    found = [values[name + ending] for ending in endings if name + ending in values]
    return f"{found[0]:.4g}" if found else "–"


SPREAD = "_std"  # of scores' names: not a score by itself


class Scores:
    """Scores of generated images against a reference, with one feature extractor.

    `compute` gives, for the digits' extractor and as many samples as there are images of data (see
    `FeatureExtractor.score_name` for other names):

    * `fd_digits`: Fréchet distance between the features of the samples and of the whole reference.
    * `is_digits`: Inception-style score of the samples; only where the extractor has classes. Over the extractor's
      number of splits, with the standard deviation over them as `is_digits_split_std` if there are several.
    * `kid_digits`: kernel distance, with its standard deviation over subsets as `kid_digits_subset_std`.
    * `precision_digits`, `recall_digits`: with 3rd neighbours, in this extractor's features; published ones are often
      in VGG-16's.
    * `memorisation_digits`: how near samples are to training images, relative to held-out images.

    And `companions` beside each, under the same name with an ending, the same score of two other things:

    * `_halves`: one random half of the reference as if it were the samples, with the other as the
      reference. A Fréchet distance between finite sets is biased upwards by about 1/N for each of them: the halves'
      is about twice that of a perfect model with as many samples as the reference has. For the Inception-style
      score, `_data`: that of the whole reference.
    * `_gaussian`: images drawn from the normal distribution that has the reference's pixel mean and
      covariance, as many as the reference has and at most `max_neighbours`, against the whole reference.

    Of how many images kernel distance, precision, recall and memorisation are, see `ScoreProtocol`.

    Args:
        observer: what sees the images.
        reference: what to compare them with.
        shape: C, H, W of the samples.

    Raises:
        UserError: the extractor does not take such images, or the reference is of other features.
    """

    def __init__(self, observer: Observer, reference: Reference, shape: tuple[int, int, int]) -> None:
        self.observer = observer
        self.extractor = observer.extractor
        self.reference = reference
        self.shape = tuple(shape)
        self._check_shape(reference.shape or self.shape, self.shape)
        features, logits = observer(torch.zeros(1, *shape, dtype=torch.uint8))
        ours, theirs = features.shape[1], len(reference.normal.mean)
        check(
            ours == theirs,
            f"{reference.source} has {theirs} features an image, but the extractor gives {ours}: use statistics that "
            "were made with this extractor",
        )
        self.num_classes = 0 if logits is None else logits.shape[1]
        self._samples = Summariser(
            ours,
            self.num_classes,
            self.extractor.splits,
            reference.protocol.max_neighbours,
            observer.home,
            over_devices=True,
        )

    def update(self, images: Tensor) -> None:
        """Take in this device's next samples, uint8 [B, C, H, W].

        Of several devices, device r of W is expected to have samples r, r + W, r + 2W, …
        """
        self._check_shape(self.shape, tuple(images.shape[1:]))
        for batch in images.split(self.observer.batch_size):
            self._samples.update(*self.observer(batch))

    @staticmethod
    def _check_shape(expected: tuple[int, ...], found: tuple[int, ...]) -> None:
        check(found == expected, f"images of {found} cannot be scored against data of {expected}")

    def reset(self) -> None:
        """Forget the samples and keep the reference."""
        self._samples.reset()

    def compute(self) -> tuple[int, dict[str, float]]:
        """Number and scores of the samples on all devices, which must all call this and get the same.

        Raises:
            UserError: there are fewer than 4 samples.
        """
        samples = self._samples.compute()
        enough = samples.count > NEIGHBOURS
        check(enough, f"scores need at least {NEIGHBOURS + 1} samples, not {samples.count}")
        with full_precision(self.observer.device):
            scores = evaluate(samples, self.reference)
        return samples.count, {self._name(score, samples.count): value for score, value in scores.items()}

    def companions(self, count: int) -> dict[str, float]:
        """What is beside the scores of `count` samples."""
        ends = self.reference.companions.items()
        return {
            f"{self._name(score, count)}_{end}": of[score]
            for score in self._scores()
            for end, of in ends
            if score in of and not score.endswith(SPREAD)
        }

    def names(self, count: int, spreads: bool = False) -> list[str]:
        """The names of the scores of `count` samples; with `spreads`, of all that `compute` gives."""
        return [self._name(score, count) for score in self._scores() if spreads or not score.endswith(SPREAD)]

    def _scores(self) -> list[str]:
        scores = ["frechet"]
        if self.num_classes:
            scores += ["is"] if self.extractor.splits == 1 else ["is", f"is_split{SPREAD}"]
        if self.reference.features is not None:
            scores += ["kid", f"kid_subset{SPREAD}", "precision", "recall"]
        return scores + (["memorisation"] if self.reference.training is not None else [])

    def table(self, values: Mapping[str, float], count: int, rounds: int = 1) -> str:
        """Those of `values` that are of this extractor, for people to read.

        Args:
            values: scores and companions; with several rounds as `summarise_rounds` gives them.
            count: number of samples, in each round.
            rounds: number of rounds.
        """
        reference, limit = self.reference, self.reference.protocol.max_neighbours
        times = f" in each of {rounds} rounds" if rounds > 1 else ""
        size = "an unknown number of" if reference.count is None else f"{reference.count:,}"
        beside = reference.describe_companions()
        notes = [f"{count:,} samples{times}, {size} images of data, {beside['gaussian_images']:,} of the Gaussian."]
        if beside["halves_images"]:
            notes += ["halves: of the data, against each other; a Fréchet distance about twice a perfect model's bias."]
        if self.extractor.describe().get("published_weights") is False:
            notes += ["NOT COMPARABLE WITH PUBLISHED SCORES: the Inception weights are not the published file."]
        if self.num_classes and "data" in reference.companions:
            notes += ["is: of all the data instead of halves."]
        if self.num_classes and self.extractor.splits > 1:
            notes += [f"is: mean over {self.extractor.splits} splits."]
        missing = ["kid", "precision", "recall"] if reference.features is None else []
        missing += ["memorisation"] if reference.training is None else []
        if missing:
            notes += [f"{', '.join(missing)}: the reference statistics have not what it takes."]
        if max(count, reference.count or 0) > limit:
            notes += [f"kid, precision, recall, memorisation: of {limit:,} images at most."]
        return table(values, self.names(count), rounds, notes)

    def describe(self, count: int) -> dict[str, Any]:
        """By what protocol `count` samples are scored; plain data."""
        reference = self.reference.features
        subsets = pairs = None
        if reference is not None:
            kept = min(count, self.reference.protocol.max_neighbours)
            size = subset_size(kept, len(reference))
            subsets = {"subsets": SUBSETS, "subset_size": size, "kernel": "(x·y/F + 1)^3"}
            pairs = {"images_of_each": min(kept, len(reference)), "features": "the extractor's, not VGG-16's"}
        return {
            "extractor": self.extractor.describe(),
            "samples": count,
            **self.reference.describe(),
            "inception_score_splits": self.extractor.splits if self.num_classes else None,
            "kernel_distance": subsets,
            "precision_recall": pairs,
        }

    def _name(self, score: str, count: int) -> str:
        base, _, rest = score.partition("_")
        if base not in ("frechet", "is"):
            count = min(count, self.reference.protocol.max_neighbours)
        if base in ("precision", "recall") and self.reference.features is not None:
            count = min(count, len(self.reference.features))
        name = self.extractor.score_name(base, count, self.reference.count)
        return f"{name}_{rest}" if rest else name
