"""Every file of experiments/: its names and settings are real, and its first cell runs."""

import json
from functools import cache
from pathlib import Path

import pytest
from pretend import GRID
from small import REPOSITORY, here

from experiments.__main__ import main
from experiments.analyses import network_shape
from experiments.cells import Cell, Point
from experiments.experiment import Axis, Experiment, check_axes, data_set, expand, parse, read
from experiments.identity import resolved
from warm_lightning import load_config
from warm_lightning.errors import UserError
from warm_lightning.shipped import config_file

FILES = sorted((REPOSITORY / "experiments" / "papers").glob("*.yaml"))
DATA_SETS = sorted((REPOSITORY / "experiments" / "data").glob("*.yaml"))
# The networks' sizes are no matter here, and take seconds to make.
SMALL = {"model.network.model_channels": 8, "model.network.num_blocks": 1, "model.network.attn_resolutions": []}
SEEN: set[tuple[str, ...]] = set()
WANTED = {
    *(f"Table {n}" for n in (1, 2, 3, 4, 5, 6, 7)),
    *(f"Fig. {n}" for n in (3, 5, 6, 8, 9, 10, 11)),
}


@cache
def experiment_of(path: Path) -> Experiment:
    """The experiment of a file, which takes as long to read as to test."""
    return read(path, Experiment)


def settings(cell: Cell) -> tuple[list[str], dict[str, str]]:
    """Files, and options as names and values; later ones win, as on the command line."""
    files = [option.removeprefix("--config=") for option in cell.sampling if option.startswith("--config=")]
    others = [o.removeprefix("--").partition("=") for o in cell.sampling if not o.startswith("--config=")]
    return files, {name: value for name, _, value in others}


OWN_DATA = [(path, None) for path in FILES]
SCALED = [
    (path, data)
    for path in FILES
    for data in ("digits", "leaves8", "leaves16", "cifar10_16")
    if "for_data" in path.read_text()
]


@pytest.mark.parametrize(("path", "data"), OWN_DATA + SCALED, ids=lambda value: getattr(value, "stem", value))
def test_every_cell_is_a_configuration(path: Path, data: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt setting, an overlay that is not there, or a value that a class refuses."""
    monkeypatch.chdir(REPOSITORY)
    for cell in expand(experiment_of(path), data, "paper", seeds=1):
        files, named = settings(cell)
        if (*files, *named) not in SEEN:  # what differs in a number only is no other configuration
            SEEN.add((*files, *named))
            module, _ = load_config(files, named | SMALL)
            assert module.seed == 0
            assert module.model().sampler.nfe > 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_published_numbers_belong_to_cells(path: Path) -> None:
    """A label that is misspelt would leave a paper's number out of the report."""
    experiment = experiment_of(path)
    cells = expand(experiment, None, "paper", seeds=1)
    for entry in experiment.published:
        labels = {axis: str(label) for axis, label in entry.items() if axis in experiment.axes}
        assert labels
        assert entry["data"] in experiment.data
        assert any(entry["data"] in cell.paper_data and labels.items() <= cell.labels.items() for cell in cells), entry


def test_every_table_and_figure_has_a_file() -> None:
    sources = [experiment_of(path).source for path in FILES]
    for wanted in WANTED:
        assert any(source.startswith(f"Warm Diffusion, {wanted}") for source in sources), wanted
    for other in (
        *(f"Blurring Diffusion (Hoogeboom and Salimans), Table {n}" for n in (3, 4)),
        "(Lee et al.), Table 1",
    ):
        assert any(other in source for source in sources), other


def test_networks_are_of_the_shape_that_table_6_says() -> None:
    table6 = experiment_of(REPOSITORY / "experiments" / "papers" / "table6_counts.yaml")
    for cell in expand(table6, None, "paper", seeds=1):
        (theirs,) = [e for e in table6.published if (e["data"], e["system"]) == (cell.data, cell.labels["system"])]
        ours = network_shape(resolved(cell.training)["model"]["network"]["init_args"])
        assert ours == {name: str(theirs[name]) for name in ours}


def test_systems_on_lsun_church_train_as_table_6_says() -> None:
    papers = REPOSITORY / "experiments" / "papers"
    published = {e["system"]: e for e in experiment_of(papers / "table6_counts.yaml").published if "lsun" in e["data"]}
    for cell in expand(experiment_of(papers / "table2_lsun.yaml"), None, "paper", seeds=1):
        of = published["Warm" if cell.labels["system"] == "Warm" else "Baseline"]
        model = resolved(cell.training)["model"]
        assert (model["duration"], model["ema_half_life"]) == (of["Mimg"] * 1e6, of["EMA (Mimg)"] * 1e6)
        assert (model["lr"], model["lr_ramp"]) == (of["lr (1e-4)"] * 1e-4, of["ramp (Mimg)"] * 1e6)


def test_systems_of_the_frontier_have_as_many_network_calls_as_it_says() -> None:
    """Guided ones count twice where they are guided, and their steps are chosen to come within 6 % of the others."""
    frontier = experiment_of(REPOSITORY / "experiments" / "papers" / "frontier.yaml")
    systems = ("EDM", "EDM, coloured fresh noise", "EDM, autoguidance", "EDM, guidance interval")
    cells = [c for c in expand(frontier, "leaves8", "small", seeds=1) if c.labels["system"] in systems]
    assert len(cells) == len(systems) * 4
    for cell in cells:
        module, _ = load_config(*settings(cell))
        assert module.model().own_nfe == pytest.approx(int(cell.labels["sampler"]), rel=0.06), cell.labels


def test_a_setting_for_a_value_that_no_axis_has_is_refused() -> None:
    axes = {
        "a": Axis(points={"1": Point(sample_with={"b=3": {"model.sampler.grid.steps": 4}})}),
        "b": Axis(points={"2": Point()}),
    }
    with pytest.raises(UserError, match=r"sample_with names \['b=3'\]; the axes are a: 1; b: 2"):
        check_axes(Experiment("Title", "this suite", [], axes))


@pytest.mark.parametrize("path", DATA_SETS, ids=lambda path: path.stem)
def test_every_data_set_has_the_papers_budget(path: Path) -> None:
    found = data_set(path.stem)
    assert found.title
    assert all(config_file(scale.config).is_file() for scale in found.budgets.values())
    assert "paper" in found.budgets


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all experiments, which share trainings."""
    return tmp_path_factory.mktemp("experiments")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_first_cell_runs(path: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chosen = ["--only=sampler=35"] if path.stem == "frontier" else []  # where its bits and pictures are
    arguments = [
        "run",
        str(path),
        "--data=digits",
        "--budget=smoke",
        "--cells=1",
        "--in_process",
        f"--out={out}",
        *chosen,
    ]
    assert main(arguments) == 0, capsys.readouterr().err
    folder = out / f"{path.stem}-digits-smoke"
    report = (folder / "report.md").read_text()
    assert experiment_of(path).title in report
    assert (folder / "report.html").stat().st_size > 5_000
    assert (folder / "results.csv").is_file()


def test_scores_are_against_references_that_are_kept(out: Path, tmp_path: Path) -> None:
    """In the cache, or in the files that are given: a list with one for each extractor, as `warm test` takes it."""
    file = tmp_path / "digits.npz"
    here("reference-stats", "digits", str(file), "--max_neighbours", "16")
    path = REPOSITORY / "experiments" / "papers" / "table3_bnr.yaml"
    options = ["--data=digits", "--budget=smoke", "--cells=1", "--in_process"]
    for folder, reference, more in (
        ("cache", "from DigitsFeatures-1797-", []),
        ("files", "from digits.npz", ["--", f"--scores.reference_stats=[{file}]"]),
    ):
        assert main(["run", str(path), *options, f"--out={out / folder}", *more]) == 0
        (scores,) = out.glob(f"{folder}/table3_bnr-digits-smoke/cells/*/*/scores.json")
        assert reference in json.loads(scores.read_text())["protocol"]["extractors"][0]["reference"]


def test_settings_of_models_stay_plain_data() -> None:
    """Also where the parser of the file finds the class, and could make an object of it."""
    rate = {"class_path": "fractions.Fraction", "init_args": {"numerator": 1}}
    content = GRID | {"set": {"model.process.rate": rate}}
    assert parse(content, Experiment, Path("x")).set == content["set"]


@pytest.mark.parametrize(
    ("name", "data", "seeds"),
    [
        ("ablation_bnr", "leaves8", 5),
        ("ablation_bnr", "digits", 3),
        ("residual_weight", "leaves8", 10),
        ("plane", "leaves8", 1),
    ],
)
def test_data_may_want_more_trainings_of_experiments_with_several(name, data, seeds):
    """Where the paper's effect is to be seen, three trainings are too few; one that the file wants alone stays one."""
    cells = expand(experiment_of(REPOSITORY / "experiments" / "papers" / f"{name}.yaml"), data, "small")
    assert {cell.seed for cell in cells} == set(range(seeds))
