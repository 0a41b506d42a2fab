"""Evaluation of generated images with one feature extractor: scores by name, companions, rounds and the table."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.metrics.features import Extraction
from warm_lightning.metrics.reference import Summariser
from warm_lightning.metrics.scores import NEIGHBOURS, SCORES, Better, Reference, Score, all_scores, evaluate, usable
from warm_lightning.records import text_table
from warm_lightning.spectral import full_precision

BEST = {"lower": "min", "higher": "max"}
"""The ending of the name of the best of several rounds, by the direction of better values."""


class Evaluation:
    """Scores of generated images against a reference, with one feature extractor.

    Names are those of `Score.full_name`, such as `fd_digits` for the digits' extractor and as many samples as there are
    images of data. A spread, such as `kid_digits_subset_std`, stands beside its score; `companions` gives the scores of
    halves of the data and of a Gaussian, such as `fd_digits_halves`; see `Score`.

    Args:
        extraction: gives the features.
        reference: to compare the samples with.
        shape: C, H, W of the samples.
        scores: to compute, as far as the extractor and the reference have what they need; all by default.

    Attributes:
        usable: the scores that are computed.

    Raises:
        UserError: the extractor does not take such images, or the reference is of other features.
    """

    def __init__(
        self,
        extraction: Extraction,
        reference: Reference,
        shape: tuple[int, int, int],
        scores: Sequence[Score] | None = None,
    ) -> None:
        self.extraction = extraction
        self.extractor = extraction.extractor
        self.reference = reference
        self.shape = tuple(shape)
        self._check_shape(reference.shape or self.shape, self.shape)
        features, logits = extraction(torch.zeros(1, *shape, dtype=torch.uint8))
        given, expected = features.shape[1], len(reference.normal.mean)
        check(
            given == expected,
            f"{reference.source} has {expected} features per image, but the extractor gives {given}: use statistics "
            "that were made with this extractor",
        )
        self.requested = all_scores() if scores is None else scores
        self.usable = usable(self.requested, self.extractor, reference, logits is not None)
        limit = reference.protocol.max_neighbours
        self._samples = Summariser(self.usable, self.extractor, features, logits, limit, over_processes=True)

    def update(self, images: Tensor) -> None:
        """Add this process's next samples, uint8 [B, C, H, W].

        Of W processes, process r is expected to have samples r, r + W, r + 2W, …
        """
        self._check_shape(self.shape, tuple(images.shape[1:]))
        for batch in images.split(self.extraction.batch_size):
            self._samples.update(*self.extraction(batch))

    @staticmethod
    def _check_shape(expected: tuple[int, ...], given: tuple[int, ...]) -> None:
        check(given == expected, f"images of {given} cannot be scored against data of {expected}")

    def reset(self) -> None:
        """Forget the samples and keep the reference."""
        self._samples.reset()

    def compute(self) -> tuple[int, dict[str, float]]:
        """Number and scores of the samples of all processes, which must all call this and get the same.

        Raises:
            UserError: there are fewer than 4 samples.
        """
        samples = self._samples.compute()
        enough = samples.count > NEIGHBOURS
        check(enough, f"scores need at least {NEIGHBOURS + 1} samples, not {samples.count}")
        with full_precision(self.extraction.device):
            values = evaluate(self.usable, self.extractor, samples, self.reference)
        return samples.count, dict(zip(self.names(samples.count, spreads=True), values.values(), strict=True))

    def names(self, count: int, spreads: bool = False) -> list[str]:
        """The names of the scores of `count` samples; with `spreads`, of all that `compute` gives."""
        names = [(score, score.full_name(self.extractor, count, self.reference)) for score in self.usable]
        if not spreads:
            return [name for _, name in names]
        return [each for score, name in names for each in score.with_spread(name, self.extractor)]

    def better(self, count: int) -> dict[str, Better]:
        """The direction of each score of `count` samples by its name."""
        return dict(zip(self.names(count), (score.better for score in self.usable), strict=True))

    def undefined(self, count: int) -> list[str]:
        """The names of the scores of `count` samples that may be not a number."""
        return [name for name, score in zip(self.names(count), self.usable, strict=True) if score.can_be_undefined]

    def companions(self, count: int) -> dict[str, float]:
        """The companions of the scores of `count` samples by name, such as `fd_digits_halves`."""
        return {
            f"{name}_{ending}": values[score.key]
            for name, score in zip(self.names(count), self.usable, strict=True)
            for ending, values in self.reference.companions.items()
            if score.key in values
        }

    def describe(self, count: int) -> dict[str, Any]:
        """The protocol by which `count` samples are scored; plain data."""
        known = {
            score.protocol_key: score.protocol(self.extractor, count, self.reference)
            for score in self.usable
            if score.protocol_key
        }
        return {
            "extractor": self.extractor.describe(),
            "samples": count,
            **self.reference.describe(),
            **{score.protocol_key: known.get(score.protocol_key) for score in self.requested if score.protocol_key},
            **self.describe_others(),
        }

    def describe_others(self) -> dict[str, Any]:
        """Class paths and settings of the scores that are not among `SCORES`, if there are any."""
        others = [score.identity() for score in self.requested if type(score) not in SCORES]
        return {"score_classes": others} if others else {}

    # ------------------------------------------------------------------ the table

    def table(self, values: Mapping[str, float], count: int, rounds: int = 1) -> str:
        """A row for each of this extractor's scores beside its companions, and notes, for people to read.

        Args:
            values: scores and companions; with several rounds as `summarise_rounds` gives them.
            count: number of samples, in each round.
            rounds: number of rounds.
        """
        columns = [f"best of {rounds}", "mean", "std"] if rounds > 1 else ["samples"]
        rows = [["score", *columns, "halves of the data", "Gaussian", "better is"]]
        for name, score in zip(self.names(count), self.usable, strict=True):
            best = BEST.get(score.better)
            endings = [best and f"_{best}", "_mean", "_std"] if rounds > 1 else [""]
            endings += ["_data" if score.whole_data else "_halves", "_gaussian"]
            cells = ["–" if e is None or name + e not in values else f"{values[name + e]:.4g}" for e in endings]
            rows.append([name, *cells, score.better])
        header, *lines = text_table(rows, "<" + ">" * (len(rows[0]) - 1)).splitlines()
        return "\n".join([header, "─" * len(header), *lines, *self._notes(count, rounds)])

    def _notes(self, count: int, rounds: int) -> list[str]:
        reference, limit = self.reference, self.reference.protocol.max_neighbours
        times = f" in each of {rounds} rounds" if rounds > 1 else ""
        size = "an unknown number of" if reference.count is None else f"{reference.count:,}"
        companions = reference.describe_companions()
        notes = [f"{count:,} samples{times}, {size} images of data, {companions['gaussian_images']:,} of the Gaussian."]
        if companions["halves_images"]:
            more = [score.halves_note for score in self.usable if score.halves_note]
            notes += ["; ".join(["halves: of the data, against each other", *more]) + "."]
        if self.extractor.describe().get("published_weights") is False:
            notes += ["NOT COMPARABLE WITH PUBLISHED SCORES: the Inception weights are not the published file."]
        for score in self.usable:
            if score.whole_data and "data" in reference.companions:
                notes += [f"{score.key}: of all the data instead of halves."]
            notes += score.notes(self.extractor)
        meant = [score for score in self.requested if score.applies(self.extractor)]
        missing = [score.key for score in meant if score.lacks(reference)]
        if missing:
            notes += [f"{', '.join(missing)}: not computed, because the reference statistics lack the features."]
        limited = [score.key for score in meant if "features" in score.needs]
        if limited and max(count, reference.count or 0) > limit:
            notes += [f"{', '.join(limited)}: of {limit:,} images at most."]
        return notes


# ---------------------------------------------------------------------- rounds


def summarise_rounds(rounds: Sequence[Mapping[str, float]], better: Mapping[str, Better]) -> dict[str, float]:
    """One set of scores from the scores of several rounds of equally many samples.

    The scores of a single round keep their names. Those of several rounds are `<name>_round1`, …; and for each name in
    `better` there are the mean over rounds as `<name>_mean`, the sample standard deviation as `_std` and the best, as
    `_min` where lower is better and `_max` where higher is. (A score that should be near 1 has no best.)

    Args:
        rounds: scores by name, of each round.
        better: directions by name, of the scores that are summarised.
    """
    if len(rounds) == 1:
        return dict(rounds[0])
    values: dict[str, float] = {}
    for name in rounds[0]:
        each = [scores[name] for scores in rounds]
        values |= {f"{name}_round{k}": value for k, value in enumerate(each, start=1)}
        if name in better:
            best = BEST.get(better[name])
            if best:
                values[f"{name}_{best}"] = min(each) if best == "min" else max(each)
            values |= {f"{name}_mean": float(np.mean(each)), f"{name}_std": float(np.std(each, ddof=1))}
    return values


def split_rounds(values: Mapping[str, Any], rounds: int) -> dict[str, list[Any]]:
    """The scores of each round by name, from what `summarise_rounds` gave for several; None where one is missing."""
    names = [name.removesuffix("_mean") for name in values if name.endswith("_mean")]
    return {name: [values.get(f"{name}_round{k}") for k in range(1, rounds + 1)] for name in names}
