"""Paired comparisons of the arms of an experiment, over trainings of the same seeds.

Trainings of one seed share their initial weights, the order of the data and the noise, whatever else differs. What a
seed does to all arms cancels in their differences, which therefore vary less than the scores: an effect needs fewer
trainings to be seen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, expm1, inf, log, log1p, sqrt
from statistics import mean, stdev

from scipy.special import stdtrit

from warm_lightning.records import markdown_table

from .experiment import Plot
from .results import Group, labels_of

CONFIDENCE = 0.95
POWER = 0.8
"""Probability with which an effect is to be seen, in the number of trainings that it needs."""
EFFECT = 0.05
"""The relative effect whose number of trainings reports say."""


@dataclass(frozen=True)
class Comparison:
    """The paired differences of one arm from the baseline, one for each seed.

    The interval is Student's over trainings. A bootstrap's is too short for so few: of 1,500 normal samples of 5, 95 %
    of Student's intervals contained the mean, and 85 % of the bootstrap's (percentiles or BCa; 74 and 72 % of 3).

    Attributes:
        arm: label of the arm.
        differences: of ln score where all scores are positive, otherwise of the scores.
        relative: whether they are of ln score.
        place: label of the place along a plot where the arm is compared; empty without a plot.
    """

    arm: str
    differences: tuple[float, ...]
    relative: bool
    place: str = ""

    @property
    def value(self) -> float:
        """The mean difference: relative, such as -0.06 for 6 % below the baseline, or in units of the score."""
        centre = mean(self.differences)
        return expm1(centre) if self.relative else centre

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the 95 % interval of the expected difference; None with fewer than two trainings."""
        if len(self.differences) < 2:
            return None
        half = half_width(self.differences)
        ends = mean(self.differences) - half, mean(self.differences) + half
        return (expm1(ends[0]), expm1(ends[1])) if self.relative else ends

    def trainings_for(self, effect: float) -> int | None:
        """The number of trainings of each arm with which a relative effect is seen with a probability of 80 %.

        It is the number for a normal law of the spread found here. None where the spread is not known, or the
        differences are not relative.
        """
        if len(self.differences) < 2 or not self.relative:
            return None
        spread, needed = stdev(self.differences), 2
        while needed < 10_000:
            freedom = needed - 1
            quantiles = float(stdtrit(freedom, (1 + CONFIDENCE) / 2) + stdtrit(freedom, POWER))
            if quantiles * spread / sqrt(needed) <= log1p(effect):
                return needed
            needed = max(needed + 1, ceil(1.02 * needed))
        return None


def half_width(values: Sequence[float]) -> float:
    """Half the width of Student's 95 % interval of the mean of a law of which there are at least two values."""
    return float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2)) * stdev(values) / sqrt(len(values))


def compare_images(arm: Group, baseline: Group, name: str) -> Comparison | None:
    """Compare a value of two trained models, paired image by image; None where it is not known of each image."""
    values = [group.first.per_image.get(name, []) for group in (arm, baseline)]
    if not values[0] or len(values[0]) != len(values[1]):
        return None
    differences = tuple(a - b for a, b in zip(*values, strict=True))
    return Comparison(", ".join(arm.cell.labels.values()), differences, relative=False)


def compare(
    arm: Group, baseline: Group, name: str, *, relative: bool, title: str, place: str = ""
) -> Comparison | None:
    """Compare a value of two groups, paired by their seeds; None where they share none.

    Args:
        arm: one group.
        baseline: the group that it is compared with.
        name: of the value.
        relative: see `Comparison`.
        title: label of the arm.
        place: see `Comparison`.
    """
    ours, theirs = (
        {r.cell.seed: r.reading.values[name] for r in group.results if name in r.reading.values}
        for group in (arm, baseline)
    )
    pairs = [(ours[seed], theirs[seed]) for seed in sorted(ours.keys() & theirs.keys())]
    if not pairs:
        return None
    differences = tuple(log(a) - log(b) if relative else a - b for a, b in pairs)
    return Comparison(title, differences, relative, place)


def comparisons(plot: Plot | None, groups: Sequence[Group], name: str) -> list[Comparison]:
    """Compare groups with their baseline, which is the first group.

    Where a plot has lines, the groups at each place along it are compared with its first line there; at places that
    the first line lacks, nothing is. They are relative where all values of all groups are positive.
    """
    first, *others = groups
    with_lines = plot is not None and plot.lines is not None
    baselines = {place_of(g, plot): g for g in groups if line_of(g, plot) == line_of(first, plot)}
    relative = all(value > 0 for group in groups for value in group.values(name))
    found = []
    for group in others:
        place = place_of(group, plot)
        baseline = baselines.get(place) if with_lines else first
        if baseline and baseline is not group:
            title = line_of(group, plot) if with_lines else ", ".join(group.cell.labels.values())
            found.append(compare(group, baseline, name, relative=relative, title=title, place=place))
    return [comparison for comparison in found if comparison]


def place_of(group: Group, plot: Plot | None) -> str:
    """The label of a group's place along a plot; empty without a plot."""
    return group.cell.labels[plot.x] if plot else ""


def line_of(group: Group, plot: Plot | None) -> str:
    """The label of a group's line in a plot; empty where it has no lines."""
    return group.cell.labels[plot.lines] if plot and plot.lines else ""


def panels(plot: Plot | None, groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups by their labels of axes that a plot does not show, each combination with a plot of its own.

    Without lines there is one plot of all groups.
    """
    if plot is None or plot.lines is None:
        return {"": list(groups)}
    found: dict[str, list[Group]] = {}
    for group in groups:
        others = (f"{axis} {label}" for axis, label in group.cell.labels.items() if axis not in (plot.x, plot.lines))
        found.setdefault(", ".join(others), []).append(group)
    return found


def baseline_title(plot: Plot | None, groups: Sequence[Group]) -> str:
    """The name of the baseline of `comparisons`, with the axis before a number."""
    labels = groups[0].cell.labels
    named = {plot.lines: labels[plot.lines]} if plot and plot.lines else labels
    return ", ".join(f"{axis} {label}" if label[:1].isdigit() else label for axis, label in named.items())


def paired_table(groups: Sequence[Group], name: str) -> list[str]:
    """A table of the differences of a value from the first group, with a line before it.

    With one training of each group they are paired over images, for values that are known of each; for others there is
    nothing.
    """
    if len(groups) < 2:
        return []
    if max(group.trainings for group in groups) < 2:
        return image_table(groups, name)
    header = ["", f"difference of {name}", "95 % interval", "pairs", f"trainings to see {EFFECT:.0%}"]
    rows = []
    for comparison in comparisons(None, groups, name):
        needed = comparison.trainings_for(EFFECT)
        ends = comparison.interval
        rows.append(
            [
                comparison.arm,
                _text(comparison, comparison.value),
                f"{_text(comparison, ends[0])} to {_text(comparison, ends[1])}" if ends else "–",
                str(len(comparison.differences)),
                str(needed or "–"),
            ]
        )
    about = (
        f"Paired differences from {baseline_title(None, groups)}: trainings of the same seed share initial weights, "
        "order and noise."
    )
    return [about, markdown_table(header, rows)] if rows else []


def image_table(groups: Sequence[Group], name: str) -> list[str]:
    """A table of the differences of a value from the first group, paired over images; nothing where it has none."""
    baseline, *arms = groups
    found = [comparison for arm in arms if (comparison := compare_images(arm, baseline, name))]
    header = ["", f"difference of {name}", "95 % interval", "images"]
    rows = [
        [c.arm, _text(c, c.value), f"{_text(c, c.interval[0])} to {_text(c, c.interval[1])}", str(len(c.differences))]
        for c in found
        if c.interval
    ]
    about = (
        f"Differences from {baseline_title(None, groups)}, paired image by image. The intervals are over "
        "images, of these trained models, without the spread from training to training."
    )
    return [about, markdown_table(header, rows)] if rows else []


def widest_interval(plot: Plot | None, groups: Sequence[Group], name: str) -> float:
    """The largest half width of the paired intervals that a report shows of a value, relative as 0.05; inf where one
    is not known, with fewer than two trainings for instance."""
    found = [comparison for panel in panels(plot, groups).values() for comparison in comparisons(plot, panel, name)]
    ends = [comparison.interval if comparison.relative else None for comparison in found]
    return max((inf if end is None else (end[1] - end[0]) / 2 for end in ends), default=inf)


def paired_pivot(plot: Plot, groups: Sequence[Group], name: str) -> list[str]:
    """A table of the differences of a value from the first line of a plot, at each place along it.

    There is a row for each other line, a column for each place, and a line of text before; nothing with one training.
    """
    found = {(c.place, c.arm): c for c in comparisons(plot, groups, name) if c.interval}
    if not found:
        return []
    _, *lines = dict.fromkeys(group.cell.labels[str(plot.lines)] for group in groups)
    places = [p for p in labels_of(groups, plot.x) if any(p == c for c, _ in found)]
    rows = [[line, *(_cell(found.get((place, line))) for place in places)] for line in lines]
    trainings = sorted({group.trainings for group in groups})
    about = (
        f"Paired differences of {name} from {baseline_title(plot, groups)}, with 95 % intervals over "
        f"{' to '.join(map(str, dict.fromkeys((trainings[0], trainings[-1]))))} trainings:"
    )
    return [about, markdown_table([f"{plot.lines} \\ {plot.x}", *places], rows)]


def _cell(comparison: Comparison | None) -> str:
    ends = comparison.interval if comparison else None
    if comparison is None or ends is None:
        return "–"
    return f"{_text(comparison, comparison.value)} ({_text(comparison, ends[0])} to {_text(comparison, ends[1])})"


def _text(comparison: Comparison, value: float) -> str:
    return f"{value:+.1%}".replace("%", " %") if comparison.relative else f"{value:+.3g}"
