"""The runner of experiments: which jobs run how often, and the results and reports that are made from them."""

import json
import math
from pathlib import Path

import pytest
from pretend import GRID, Pretend, report, rows, start
from scipy import stats

from experiments.experiment import Experiment, expand, parse
from experiments.measures import Scores, main_scores, matching
from experiments.plots import score_label
from experiments.results import Group, Result, read_rows, save_rows
from warm_lightning.checkpoints import GUIDANCE
from warm_lightning.errors import UserError
from warm_lightning.paths import folder_lock
from warm_lightning.records import markdown_table, text_table

RHO = {"setting": "model.sampler.grid.rho", "sampling": True, "values": [3, 7]}


def test_trainings_are_shared_and_done_work_is_kept(tmp_path: Path, pretend: Pretend) -> None:
    assert start(tmp_path, GRID) == 0
    trainings = [call for call in pretend.calls if "NFE" not in call]
    assert len(trainings) == len(set(trainings)) == 4  # two BNRs, two seeds: the number of steps trains nothing
    assert len(pretend.calls) == 4 + 8
    pretend.calls.clear()
    assert start(tmp_path, GRID) == 0
    assert pretend.calls == []
    # One more value: only its own cells run.
    more = {**GRID["axes"], "NFE": {**GRID["axes"]["NFE"], "values": {3: 2, 5: 3, 7: 4}}}
    assert start(tmp_path, {**GRID, "axes": more}) == 0
    assert sorted(pretend.calls) == [f"digits-BNR-{b}-NFE-7-seed{s}" for b in (0, 0.5) for s in (0, 1)]


def test_training_goes_on_until_intervals_are_narrow(tmp_path: Path, pretend: Pretend) -> None:
    """The pretended scores are 10·BNR + steps + 0.1·seed²; the half widths that this gives are computed here."""

    def width(seeds: int) -> float:
        scores = [[(5 + s + 0.1 * k * k, s + 0.1 * k * k) for k in range(seeds)] for s in (2, 3)]
        differences = [[math.log(arm / baseline) for arm, baseline in of_steps] for of_steps in scores]
        intervals = [stats.ttest_1samp(of_steps, 0).confidence_interval(0.95) for of_steps in differences]
        return max((math.expm1(i.high) - math.expm1(i.low)) / 2 for i in intervals)

    widths = {seeds: width(seeds) for seeds in range(2, 7)}
    until = 1.01 * widths[3]
    assert min(seeds for seeds in widths if widths[seeds] <= until) == 3
    options = ("--seeds=6", f"--until={until}")
    assert start(tmp_path, GRID, *options) == 0
    assert {row["train_seed"] for row in rows(tmp_path)} == {"0", "1", "2"}
    assert "measurements are done" not in report(tmp_path)  # nothing is missing
    pretend.calls.clear()
    assert start(tmp_path, GRID, *options) == 0
    assert pretend.calls == []
    assert start(tmp_path, GRID, "--seeds=6", "--until=1e-9") == 0  # as many as there are
    assert len({row["train_seed"] for row in rows(tmp_path)}) == 6


@pytest.mark.parametrize("option", ["--until=0", "--until=-1"])
def test_a_width_is_positive(tmp_path: Path, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert start(tmp_path, GRID, option) == 2
    assert "--until" in capsys.readouterr().err
    assert start(tmp_path, GRID, "--seeds=1", "--until=0.1") == 2
    assert "one training has no interval" in capsys.readouterr().err


def test_a_changed_training_is_measured_again(tmp_path: Path, pretend: Pretend) -> None:
    assert start(tmp_path, GRID) == 0
    pretend.calls.clear()
    folder = next((tmp_path / "out" / "trainings").iterdir())
    (folder / "checkpoints" / "last.ckpt").write_text("trained further elsewhere")
    assert start(tmp_path, GRID) == 0
    assert len(pretend.calls) == 2  # its two numbers of steps


def test_a_failure_is_reported_and_tried_again(
    tmp_path: Path, pretend: Pretend, capsys: pytest.CaptureFixture[str]
) -> None:
    pretend.wrong.append("BNR-0.5-NFE-5-seed1")
    assert start(tmp_path, GRID) == 1
    report = (tmp_path / "out" / "grid-digits-smoke" / "report.md").read_text()
    assert "Not complete" in report
    assert "something is wrong" in report
    assert len({row["cell"] for row in rows(tmp_path)}) == 7
    pretend.wrong.clear()
    pretend.calls.clear()
    assert start(tmp_path, GRID) == 0
    assert pretend.calls == ["digits-BNR-0.5-NFE-5-seed1"]
    assert len({row["cell"] for row in rows(tmp_path)}) == 8
    assert "Not complete" not in (tmp_path / "out" / "grid-digits-smoke" / "report.md").read_text()


def test_moved_results_are_still_done(tmp_path: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "before").mkdir()
    assert start(tmp_path / "before", GRID) == 0
    (tmp_path / "before").rename(tmp_path / "after")
    monkeypatch.setenv("WARM_CACHE", str(tmp_path / "cache"))  # where references are kept does not count
    pretend.calls.clear()
    assert start(tmp_path / "after", GRID) == 0
    assert pretend.calls == []


def test_scores_outlive_checkpoints(tmp_path: Path, pretend: Pretend) -> None:
    """Checkpoints may be removed to save space; a model is trained again only for a measurement that is missing."""
    assert start(tmp_path, GRID) == 0
    for path in (tmp_path / "out" / "trainings").glob("*/checkpoints/last.ckpt"):
        path.unlink()
    pretend.calls.clear()
    assert start(tmp_path, GRID) == 0
    assert pretend.calls == []
    next((tmp_path / "out").glob("*/cells/digits-BNR-0-NFE-3-seed1/scores-1x16/scores.json")).unlink()
    assert start(tmp_path, GRID) == 0
    assert len(pretend.calls) == 2


def test_reports_contain_all_results_that_are_done(tmp_path: Path, pretend: Pretend) -> None:
    assert start(tmp_path, GRID, "--only=BNR=0") == 0
    assert {row["BNR"] for row in rows(tmp_path)} == {"0"}
    assert start(tmp_path, GRID, "--only=BNR=0.5", "--seeds=1") == 0
    assert len({row["cell"] for row in rows(tmp_path)}) == 4 + 2


def test_a_result_that_cannot_be_read_leaves_the_others(tmp_path: Path, pretend: Pretend) -> None:
    assert start(tmp_path, GRID) == 0
    path = next((tmp_path / "out").glob("*/cells/digits-BNR-0-NFE-3-seed1/scores-1x16/scores.json"))
    path.write_text("{")
    assert start(tmp_path, GRID) == 1
    assert len({row["cell"] for row in rows(tmp_path)}) == 7
    report = (tmp_path / "out" / "grid-digits-smoke" / "report.md").read_text()
    assert "scores.json: cannot be read" in report


def test_a_failed_training_stops_what_needs_it_only(tmp_path: Path, pretend: Pretend) -> None:
    pretend.wrong.append("trainings/digits-Warm-seed1")
    assert start(tmp_path, GRID) == 1
    assert {row["train_seed"] for row in rows(tmp_path)} == {"0"}
    assert not any("NFE" in call and call.endswith("seed1") for call in pretend.calls)


def test_results_are_tidy_and_reports_agree(tmp_path: Path, pretend: Pretend) -> None:
    assert start(tmp_path, GRID) == 0
    found = [row for row in rows(tmp_path) if row["score"] == "fd16_digits"]
    assert len(found) == 8
    assert {"nfe", "num_images", "sample_seeds", "weights", "device", "git_commit", "package_version"} <= set(found[0])
    here = [float(row["value"]) for row in found if (row["BNR"], row["NFE"]) == ("0.5", "5")]
    # By the formula of the pretended score: 10·0.5 + 3 + 0.1·seed².
    assert here == [8.0, 8.1]
    halves = rows(tmp_path, "halves of the data (898 against 899 images)")
    assert [(row["value"], row["shown"], row["num_images"]) for row in halves] == [("1.5", "False", "")]  # once
    text = "8.050 ± 0.071"  # their mean, and 0.1/√2
    folder = tmp_path / "out" / "grid-digits-smoke"
    report = (folder / "report.md").read_text()
    assert text in report
    assert "898 against 899 images" in report
    assert "Gaussian with the data's moments (16 images) 25" in report
    assert "scikit-learn's digits" in report.partition("What differs")[2]
    page = (folder / "report.html").read_text()
    assert text in page
    assert 'src="data:image/png;base64,' in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is fetched
    assert 'name="viewport"' in page


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    """A third has no short decimal form; words and numbers do not mix, though a word may look like a number."""
    of = {"cell": "x", "score": "fid"}
    rows = [
        of | {"value": 1 / 3, "text": None, "shown": True},
        of | {"value": None, "text": "128", "shown": True, "nfe": 35},
        of | {"value": float("inf"), "text": None, "shown": False},
    ]
    save_rows(rows, tmp_path / "results.csv")
    found = read_rows(tmp_path / "results.csv")
    assert [row["value"] for row in found] == [1 / 3, None, float("inf")]
    assert [row["text"] for row in found] == ["", "128", ""]
    assert [row["shown"] for row in found] == [True, True, False]
    assert [row["nfe"] for row in found] == ["", "35", ""]


def test_published_numbers_stay_apart(tmp_path: Path, pretend: Pretend) -> None:
    """They stand in columns or tables whose headers say so, and in no file of results."""
    assert start(tmp_path, GRID) == 0
    folder = tmp_path / "out" / "grid-digits-smoke"
    assert "1234.5" not in (folder / "results.csv").read_text()
    lines = (folder / "report.md").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "1234.5" in line)
    assert lines[at - 2] == "| paper: data | paper: BNR | paper: NFE | paper: FID |"
    axes = {"BNR": GRID["axes"]["BNR"]}
    flat = {**GRID, "axes": axes, "sample": {"model.sampler.grid.steps": 2}, "plot": {"x": "BNR"}}
    flat["published"] = [{"data": "cifar10", "BNR": 0.5, "FID": 1234.5}]
    assert start(tmp_path, flat) == 0
    lines = (folder / "report.md").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if "1234.5" in line)
    head = next(line for line in lines if line.startswith("| BNR"))
    assert head.split("|")[lines[at].split("|").index(" 1234.5 ")] == " paper: FID, cifar10 "


def test_values_for_sampling_only_share_a_training() -> None:
    content = {
        **GRID,
        "axes": {
            "training": {
                "points": {
                    "one": {"overlays": ["method/plane"], "sampled": ["BNR"]},
                    "each": {"overlays": ["method/warm"]},
                }
            },
            "BNR": GRID["axes"]["BNR"],
        },
        "plot": None,
        "published": [],
    }
    cells = expand(parse(content, Experiment, Path("x")), "digits", "small")
    names = {(cell.labels["training"], cell.labels["BNR"]): cell.training_name for cell in cells}
    assert names["one", "0"] == names["one", "0.5"]
    assert names["each", "0"] != names["each", "0.5"]
    one = next(cell for cell in cells if cell.labels == {"training": "one", "BNR": "0"})
    assert "--model.process.path.bnr=0" in one.sampling
    assert "--model.process.path.bnr=0" not in one.training
    overrides = dict(override.removeprefix("--override+=").split("=", 1) for override in one.overrides)
    assert set(overrides) == {"process", "sampler", *GUIDANCE}  # the checkpoint may be of another experiment
    assert json.loads(overrides["process"])["init_args"]["path"]["init_args"]["bnr"] == 0


def test_settings_that_all_cells_have_are_reported_once(tmp_path: Path, pretend: Pretend) -> None:
    point = {"set": {"model.process.path.bnr": 1}, "quick": {"model.sampler.grid.steps": 4}}
    content = {
        **GRID,
        "axes": {"system": {"points": {"a": {**point, "quick": {}}, "b": point}}},
        "for_data": {"digits": {"model.lr": 1e-3}},
        "plot": None,
        "published": [],
    }
    assert start(tmp_path, content) == 0
    text = report(tmp_path).partition("## What differs")[2]
    assert "* All: `model.lr` 0.001.\n" in text
    assert "* b: `model.sampler.grid.steps` 4.\n" in text
    assert text.count("model.lr") == 1


def test_axes_that_a_plot_does_not_show_have_plots_of_their_own(tmp_path: Path, pretend: Pretend) -> None:
    """The third axis makes the number of steps in 10·BNR + steps + 0.1·seed², and pairs are within it."""
    steps = {"points": {name: {"sample": {"model.sampler.grid.steps": n}} for name, n in (("few", 2), ("many", 8))}}
    content = {**GRID, "axes": {"BNR": GRID["axes"]["BNR"], "steps": steps, "rho": RHO}}
    assert start(tmp_path, {**content, "plot": {"x": "rho", "lines": "BNR"}, "published": []}) == 0
    for name, n in (("few", 2), ("many", 8)):
        part = report(tmp_path).partition(f"### steps {name}\n")[2].partition("###")[0]
        ratio = math.exp(math.log((10 * 0.5 + n) * (10 * 0.5 + 0.1 + n) / (n * (n + 0.1))) / 2)
        assert part.count(f"{ratio - 1:+.1%}".replace("%", " %")) == 2  # at each rho
        assert (tmp_path / "out" / "grid-digits-smoke" / f"fd16_digits-on-digits-steps-{name}.png").is_file()


def test_columns_have_the_order_of_the_file_where_cells_are_missing(tmp_path: Path, pretend: Pretend) -> None:
    assert start(tmp_path, GRID, "--only=BNR=0", "--only=NFE=5") == 0
    assert start(tmp_path, GRID, "--only=BNR=0.5") == 0
    assert "| BNR \\ NFE | 3 | 5 |" in report(tmp_path).replace("measured: fd16_digits, ", "")


def test_lines_are_compared_with_a_place_along_them(tmp_path: Path, pretend: Pretend) -> None:
    assert start(tmp_path, {**GRID, "plot": {**GRID["plot"], "compared_with": "5"}}) == 0
    text = report(tmp_path).partition("Paired differences of fd16_digits from NFE 5")[2]
    (row,) = [line for line in text.splitlines() if line.startswith("| 3 |")]
    for cell, bnr in zip(row.split("|")[2:], (0, 0.5), strict=False):
        logs = [math.log((10 * bnr + 2 + 0.1 * seed) / (10 * bnr + 3 + 0.1 * seed)) for seed in (0, 1)]
        assert cell.startswith(f" {math.expm1(sum(logs) / 2):+.1%}".replace("%", " %"))
    assert start(tmp_path, {**GRID, "plot": {**GRID["plot"], "compared_with": "7"}}) == 2


def test_two_runs_do_not_share_a_folder(tmp_path: Path, pretend: Pretend, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "out").mkdir()
    with folder_lock(tmp_path / "out"):
        assert start(tmp_path, GRID) == 2
    assert "another process" in capsys.readouterr().err


def test_scores_of_several_rounds_are_the_best() -> None:
    names = ["fid50k_round1", "fid50k_round2", "fid50k_min", "fid50k_mean", "fid50k_std", "kid50k_min"]
    names += ["is50k_round1", "is50k_max", "is50k_mean", "is50k_std"]
    assert main_scores(names, "fid*") == ["fid50k_min", "is50k_max"]
    assert main_scores(["fd_digits", "is_digits", "fd_pixel"], "fd*_digits") == ["fd_digits", "is_digits"]
    assert main_scores(["fd1k_digits_min", "fd1k_pixel"], "fd*_digits") == ["fd1k_digits_min"]


def test_experiments_name_further_scores() -> None:
    names = ["fd1k_leaves", "power_low1k_pixel", "power_high1k_pixel"]
    assert matching(names, ["power_*"]) == names[1:]
    with pytest.raises(UserError, match=r"no score cmmd\* among fd1k_leaves, .*: change Scores.also"):
        matching(names, ["power_*", "cmmd*"])


def test_plots_say_which_values_of_a_score_are_better(tmp_path: Path) -> None:
    """As the file of scores says, which a class of a user's own is in; a file of an earlier version says nothing."""
    (cell, *_) = expand(parse(GRID, Experiment, Path("x")), "digits", "smoke")
    names = ("nfe", "weights", "images_seen", "num_images", "device", "precision")
    protocol = dict.fromkeys(names, 1) | {"seeds": ["0-15", "16-31"], "nonfinite_images": [0, 0], "extractors": [{}]}
    better = {"fd16_digits": "lower", "variety16_digits": "higher", "copies16_digits": "near 1"}
    values = {"fd16_digits_min": 1.0, "variety16_digits_max": 2.0, "copies16_digits": 3.0}

    def labels(protocol: dict) -> list[str]:
        (tmp_path / "scores.json").write_text(json.dumps({**values, "protocol": protocol}))
        result = Result(cell, Scores(), tmp_path, Scores().read(cell, tmp_path), (0.0, 0.0), {})
        return [score_label([Group((result,))], name) for name in values]

    assert labels(protocol) == list(values)
    assert labels(protocol | {"better": better}) == [
        "fd16_digits_min, lower is better",
        "variety16_digits_max, higher is better",
        "copies16_digits, near 1 is better",
    ]


def test_tables_are_markdown_in_files_and_aligned_at_a_terminal() -> None:
    header, rows = ["system", "FID"], [["warm", "1.85"], ["hot diffusion", "10"]]
    plain = ["| system | FID |", "| --- | ---: |", "| warm | 1.85 |", "| hot diffusion | 10 |"]
    assert markdown_table(header, rows).splitlines() == plain
    assert text_table([header, *rows], "<>").splitlines()[1:] == ["warm           1.85", "hot diffusion    10"]


def test_published_digits_are_kept() -> None:
    experiment = parse({**GRID, "published": [{"data": "cifar10", "BNR": 0, "FID": "1.80"}]}, Experiment, Path("x"))
    assert experiment.published[0]["FID"] == "1.80"


@pytest.mark.parametrize("content", ["[]", '{"protocol": {}}', '{"protocol": {"extractors": 3}}'])
def test_a_result_that_holds_something_else_leaves_the_others(content: str, tmp_path: Path, pretend: Pretend) -> None:
    assert start(tmp_path, GRID) == 0
    path = next((tmp_path / "out").glob("*/cells/digits-BNR-0-NFE-3-seed1/scores-1x16/scores.json"))
    path.write_text(content)
    assert start(tmp_path, GRID) == 1
    assert len({row["cell"] for row in rows(tmp_path)}) == 7
    assert "remove it, and run again" in (tmp_path / "out" / "grid-digits-smoke" / "report.md").read_text()
