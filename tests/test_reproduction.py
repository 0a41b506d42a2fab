"""docs/reproduction.md: its commands choose the cells that its rows are of, and no published number is missing."""

import re
import shlex
from pathlib import Path

import pytest
from small import REPOSITORY

from experiments import reproduction
from experiments.__main__ import parser
from experiments.experiment import Experiment, check_extra, expand, read, select
from experiments.identity import PAPERS
from experiments.report import published_numbers
from experiments.reproduction import TABLES
from warm_lightning.errors import UserError

PAGE = (REPOSITORY / "docs" / "reproduction.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("|") and "`python" in line
]


@pytest.mark.parametrize("name", TABLES)
def test_rows_and_commands_are_of_the_same_cells(name: str) -> None:
    experiment = read(PAPERS / f"{name}.yaml", Experiment)
    cells = expand(experiment, None, "paper", seeds=1)
    mine = [row for row in ROWS if f"run {name} " in row[4]]
    assert len(mine) == len(cells)
    for (data, labels, said, measured, commands, hours), cell in zip(mine, cells, strict=True):
        counts = set()
        for whole in re.findall("`([^`]+)`", commands):
            command, _, extra = whole.partition(" -- ")
            options = parser().parse_args(shlex.split(command)[3:])
            assert bool(extra) == any(measure.needs_model for measure in experiment.measures)
            check_extra(experiment, shlex.split(extra))
            assert Path(options.file).stem == name
            assert options.budget == "paper"
            assert select(cells, options.only) == [cell]
            counts.add(options.num_images or cell.scale.images)
        names = [score for score in published_numbers(experiment, cell) if "NFE" not in score]
        assert counts == {10_000 if "of 10k" in score else cell.scale.images for score in names or [""]}
        assert data == cell.data
        assert labels == ", ".join(cell.labels.values())
        for value in published_numbers(experiment, cell).values():
            assert value in re.split("[ ;]+", said)
        assert measured == reproduction.measured(name, cell)
        assert float(hours.replace(",", "")) >= 0


@pytest.mark.parametrize("data", ["digits", "leaves8"])
def test_numbers_on_small_data_stand_in_rows_of_cifar10_only(data: str) -> None:
    others = [row for row in ROWS if not row[0].startswith("cifar10")]
    assert others
    assert not [row for row in others if f"on {data}" in row[3]]
    assert any(f"on {data}" in row[3] for row in ROWS)


def test_results_in_git_are_small_and_kept_once() -> None:
    """A folder of an experiment holds its report, the pictures that the report shows, and results.csv."""
    folder = REPOSITORY / "docs" / "measurements"
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 3e6
    for report in folder.glob("*/report.md"):
        shown = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", report.read_text())
        assert sorted(path.name for path in report.parent.iterdir()) == sorted([*shown, "report.md", "results.csv"])


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("table3_bnr", "--model.process=Hot"),
        ("table3_bnr", "--model.process.path={class_path: PowerLaw}"),
        ("table3_bnr", "--model={process: Hot}"),
        ("table1_systems", "--model.process=Hot"),
        ("table1_systems", "--model.parameterization=Epsilon"),
    ],
)
def test_no_option_replaces_what_labels_name(name: str, option: str) -> None:
    """Cells of different labels would be the same, and the report's rows false."""
    with pytest.raises(UserError, match="what the cells of this experiment differ in"):
        check_extra(read(PAPERS / f"{name}.yaml", Experiment), [option])
