"""Figures of reports: that what they draw is what was measured, with its intervals, and can be read on a phone."""

import itertools
import math
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text
from scipy import stats
from small import REPOSITORY

from experiments.cells import Cell
from experiments.experiment import Experiment, Plot, expand, read
from experiments.figures import drift_figure, path_figure, sample_figure, snr_figure
from experiments.measures import Reading
from experiments.plots import score_figure
from experiments.results import Group, Result
from warm_lightning.analysis.figures import PHONE_WIDTH
from warm_lightning.images import write_png

SYSTEMS = ["EDM (hot, BNR 0)", "Blurring schedule in warm form", "Cold Diffusion, Algorithm 2"]
REFERENCES = {
    "halves of the data (898 against 899 images)": {"fd": 1.5},
    "Gaussian with the data's moments (1,797 images)": {"fd": 9.0},
    "far from all scores": {"fd": 9000.0},
}


def group(labels: dict[str, str], scores: list[float]) -> Group:
    """Trainings of one arm, with a score for each seed."""
    reading = [Reading({"fd": v}, ["fd"], references=REFERENCES, meanings={"fd": "lower is better"}) for v in scores]
    results = [SimpleNamespace(cell=SimpleNamespace(labels=labels, seed=s), reading=r) for s, r in enumerate(reading)]
    return Group(tuple(cast(list[Result], results)))


def assert_can_be_read_on_a_phone(figure: Figure) -> None:
    """No text is small, nothing is outside the figure, and no point outside its panel."""
    assert figure.get_figwidth() == PHONE_WIDTH
    figure.draw_without_rendering()
    assert all(text.get_fontsize() >= 8 for text in figure.findobj(Text) if text.get_text())
    box = figure.get_tightbbox()
    ends = [box.x0, box.y0, figure.get_figwidth() - box.x1, figure.get_figheight() - box.y1]
    assert min(ends) > -0.02, ends
    for axes in figure.axes:
        for container in axes.containers:
            assert isinstance(container, ErrorbarContainer)
            places = axes.transData.transform(np.array(container.lines[0].get_xydata()))
            assert axes.bbox.padded(1).count_contains(places) == len(places)


def drawn(axes: Axes, vertical: bool = True) -> list[list[tuple[float, float, float]]]:
    """The values with the ends of their intervals, of each line."""
    of_lines = []
    for container in axes.containers:
        assert isinstance(container, ErrorbarContainer)
        points, _, (bars,) = container.lines
        ends = [segment[:, 1 if vertical else 0] for segment in bars.get_segments()]
        values = points.get_ydata() if vertical else points.get_xdata()
        of_lines.append([(v, low, high) for v, (low, high) in zip(values, ends, strict=True)])
    return of_lines


def interval(values: list[float]) -> tuple[float, float]:
    """Student's interval, by SciPy."""
    found = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    return found.low, found.high


@pytest.mark.parametrize("words", [False, True])
def test_scores_and_paired_differences_have_students_intervals(words):
    labels = SYSTEMS if words else ["0", "0.5", "2"]
    scores = [[3.0, 3.3, 3.1], [2.8, 3.2, 2.9], [4.0, 4.6, 4.1]]
    groups = [group({"system": label}, of) for label, of in zip(labels, scores, strict=True)]
    figure = score_figure(groups, Plot(x="system"), "fd")
    assert_can_be_read_on_a_phone(figure)
    above, below = (drawn(axes, vertical=not words)[0] for axes in figure.axes)
    for point, of in zip(above, scores, strict=True):
        low, high = interval(np.log(of).tolist())
        half = (high - low) / 2
        assert point == pytest.approx((np.mean(of), np.mean(of) * math.exp(-half), np.mean(of) * math.exp(half)))
    for point, of in zip(below, scores[1:], strict=True):
        ratios = np.log(np.divide(of, scores[0]))
        assert point == pytest.approx(np.exp([ratios.mean(), *interval(ratios.tolist())]))
    scores_axis, differences_axis = (axes.xaxis if words else axes.yaxis for axes in figure.axes)
    assert scores_axis.get_label_text() == "fd, lower is better\nmean of 3 trainings, 95 % interval"
    first = SYSTEMS[0] if words else "system 0"
    assert differences_axis.get_label_text() == f"paired difference from\n{first}"
    assert any(tick.get_text() == "0 %" for tick in differences_axis.get_ticklabels())


@pytest.mark.parametrize(("scores", "scale"), [((2.0, 5.9), "linear"), ((2.0, 6.1), "log"), ((-1.0, 9.0), "linear")])
def test_an_axis_is_logarithmic_where_values_differ_by_more_than_a_factor_of_3(scores, scale):
    for labels, which in (["19", "35"], "y"), (SYSTEMS[:2], "x"):
        figure = score_figure([group({"NFE": n}, [s]) for n, s in zip(labels, scores, strict=True)], Plot("NFE"), "fd")
        (axes,) = figure.axes  # one training has no interval, so that no differences are drawn
        assert (axes.get_yscale() if which == "y" else axes.get_xscale()) == scale


@pytest.mark.parametrize(
    ("places", "scale"),
    [
        (["0.1", "1"], "log"),
        (["0", "0.1", "10"], "symlog"),
        (["3", "9"], "linear"),
        (["7"], "linear"),
        (["0"], "linear"),
    ],
)
def test_the_axis_along_a_plot_has_a_scale_with_all_its_places(places, scale):
    lines = [str(line) for line in range(8)]
    groups = [group({"BNR": x, "line": line}, [2.0, 2.1]) for x, line in itertools.product(places, lines)]
    figure = score_figure(groups, Plot(x="BNR", lines="line"), "fd")
    assert_can_be_read_on_a_phone(figure)
    assert [axes.get_xscale() for axes in figure.axes] == [scale, scale]
    assert [len(drawn(axes)) for axes in figure.axes] == [8, 7]


def test_many_lines_are_rows():
    """Nine colours cannot be told apart; each row is still compared with the first line at the same place."""
    scores = {(x, line): 2.0 + x * line for x in (1, 3) for line in range(9)}
    groups = [group({"NFE": str(x), "line": str(line)}, [s, s + 1]) for (x, line), s in scores.items()]
    figure = score_figure(groups, Plot(x="NFE", lines="line"), "fd")
    assert_can_be_read_on_a_phone(figure)
    above, below = figure.axes
    assert [label.get_text() for label in above.get_yticklabels()] == [str(line) for line in range(9)]
    assert [label.get_text() for label in below.get_yticklabels()] == [str(line) for line in range(1, 9)]
    (legend,) = figure.legends
    assert [legend.get_title().get_text(), *(text.get_text() for text in legend.get_texts()[-2:])] == ["NFE", "1", "3"]
    for x, values in zip((1, 3), drawn(below, vertical=False), strict=True):
        ratios = [math.sqrt(s * (s + 1) / 6) for s in (scores[x, line] for line in range(1, 9))]
        assert [value for value, *_ in values] == pytest.approx(ratios)


def test_reference_values_are_drawn_where_they_are_near():
    figure = score_figure([group({"BNR": x}, [2.0]) for x in ("0", "1")], Plot(x="BNR"), "fd")
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["halves of the data (898 against 899 images)"]


def test_groups_without_the_score_are_left_out():
    """Others are not compared with each other, where the baseline has no score."""
    nothing = Group(
        (cast(Result, SimpleNamespace(cell=SimpleNamespace(labels={"BNR": "0"}, seed=0), reading=Reading({}))),)
    )
    (axes,) = score_figure([nothing, *(group({"BNR": n}, [2.0, 3.0]) for n in "12")], Plot(x="BNR"), "fd").axes
    assert [value for value, _, _ in drawn(axes)[0]] == [2.5, 2.5]
    assert score_figure([nothing], Plot(x="BNR"), "fd").axes == []


def test_differences_have_one_unit():
    """Not percent for some and units of the score for others, where it is below 0 in one arm alone."""
    scores = {"0": [1.0, 2.0], "1": [3.0, 5.0], "2": [-1.0, 1.0]}
    figure = score_figure([group({"BNR": label}, of) for label, of in scores.items()], Plot(x="BNR"), "fd")
    assert [value for value, _, _ in drawn(figure.axes[1])[0]] == [2.5, -1.5]


PAPERS = sorted((REPOSITORY / "experiments" / "papers").glob("*.yaml"))


@pytest.mark.parametrize("path", PAPERS, ids=lambda path: path.stem)
def test_every_experiments_figure_can_be_read_on_a_phone(path):
    """With the labels of its cells, which may be long and many."""
    experiment = read(path, Experiment)
    if experiment.plot is None:
        return
    labels = list({tuple(cell.labels.items()): cell.labels for cell in expand(experiment, "digits", "smoke")}.values())
    groups = [group(of, [2.0 + k, 2.1 + 3 * k]) for k, of in enumerate(labels)]
    figure = score_figure(groups, experiment.plot, "fd")
    assert_can_be_read_on_a_phone(figure)
    assert len(figure.axes) == (1 if len(groups) == 1 else 2)


def test_samples_can_be_read_on_a_phone(tmp_path):
    cells = []
    for number, title in enumerate(SYSTEMS):
        for seed in range(14):
            write_png(tmp_path / str(number) / "images" / f"{seed:02}.png", torch.zeros(3, 8, 8, dtype=torch.uint8))
        cells.append((cast(Cell, SimpleNamespace(title=title)), tmp_path / str(number)))
    figure = sample_figure(cells)
    assert_can_be_read_on_a_phone(figure)
    assert [part.get_suptitle() for part in figure.subfigs] == SYSTEMS
    assert sum(len(axes.images) for axes in figure.axes) == 3 * 12


def test_snr_can_be_read_on_a_phone():
    snr = {
        "share": [1.0, 0.5, 0.1],
        "frequency": [0.4, 1.2, 2.7],
        "db": [[-40.0, 0.0, 30.0], [-50.0, 1.0, 20.0], [None] * 3],
    }
    figure = snr_figure({name: {"snr": snr} for name in SYSTEMS})
    assert_can_be_read_on_a_phone(figure)
    assert len(figure.axes) == len(SYSTEMS)


def test_paths_and_drift_can_be_read_on_a_phone():
    path = {"alpha": [0.01, 1.0], "beta": [0.01, 2.0], "alpha_low": [0.01, 1.0], "alpha_high": [0.01, 1.0]}
    content = {"path": path, "sampling": {"alpha": [1.0], "beta": [2.0]}}
    assert_can_be_read_on_a_phone(path_figure(dict.fromkeys(SYSTEMS, content)))
    bands = {"all": (0.0, 4.4), "high": (2.2, 4.4)}
    rows = [
        {"quantity": q, "band": b, "beta": beta, "trajectory": 0.1, "truth": 0.0, "drift": 0.1}
        for q, b, beta in itertools.product(("noise", "power", "residual"), bands, (0.1, 1.0))
    ]
    figure = drift_figure([(f"number of steps {number}", {"edges": bands, "rows": rows}) for number in range(8)])
    assert_can_be_read_on_a_phone(figure)
    assert len(figure.axes) == 4
