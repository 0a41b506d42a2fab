"""Which jobs the runner runs again when files, options and models change."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from pretend import GRID, Pretend, report, rows, start
from small import DIGITS

from experiments import experiment
from experiments.cells import Cell
from experiments.experiment import Experiment, data_set, expand, parse, read
from experiments.identity import PAPERS, resolved
from experiments.results import Invocations
from experiments.run import measurements_of
from experiments.runner import Job
from warm_lightning.errors import UserError

PICTURES = {**GRID, "measures": ["Scores", {"class_path": "Samples", "init_args": {"seeds": "0"}}]}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of the digits that may be edited."""
    path = tmp_path / "digits.yaml"
    path.write_text(DIGITS.read_text())
    digits = data_set("digits")
    smoke = replace(digits.budgets["smoke"], config=str(path))
    monkeypatch.setattr(experiment, "data_set", lambda name: replace(digits, budgets={"smoke": smoke}))
    return path


def trainings(pretend: Pretend) -> list[str]:
    return [call for call in pretend.calls if "NFE" not in call]


def test_another_training_is_measured_and_pictured_again(tmp_path: Path, pretend: Pretend, config: Path) -> None:
    assert start(tmp_path, PICTURES) == 0
    assert len(pretend.calls) == 4 + 8 + 4  # the first training of each cell is pictured
    pretend.calls.clear()
    config.write_text(config.read_text().replace("lr: 1.5e-3", "lr: 1.0e-3"))
    assert "1.0e-3" in config.read_text()
    assert start(tmp_path, PICTURES) == 0
    assert len(trainings(pretend)) == 4
    assert len(pretend.calls) == 4 + 8 + 4  # the first training of each cell is pictured
    # What was there is kept beside it.
    assert len(list((tmp_path / "out" / "trainings").iterdir())) == 8
    assert len(list((tmp_path / "out").glob("*/cells/*/samples.replaced-1"))) == 4


def test_some_cells_alone_are_pictured(tmp_path: Path, pretend: Pretend, capsys: pytest.CaptureFixture[str]) -> None:
    samples = {"class_path": "Samples", "init_args": {"seeds": "0", "only": {"NFE": "5"}}}
    assert start(tmp_path, {**GRID, "measures": ["Scores", samples]}) == 0
    assert len(pretend.calls) == 4 + 8 + 2
    assert "measurements are done" not in report(tmp_path)  # nothing is missing
    assert "(digits)](samples-of-seeds-0-digits.png)" in report(tmp_path)
    nowhere = {**samples, "init_args": {"seeds": "0", "only": {"NFE": "9"}}}
    assert start(tmp_path, {**GRID, "measures": ["Scores", nowhere]}) == 2
    assert "the axes are BNR: 0, 0.5; NFE: 3, 5" in capsys.readouterr().err


def test_settings_without_effect_on_weights_train_nothing_again(tmp_path: Path, pretend: Pretend, config: Path) -> None:
    """Such are remarks, devices and speed, and the settings of the sampler."""
    assert start(tmp_path, GRID) == 0
    pretend.calls.clear()
    config.write_text(f"# A remark.\n{config.read_text()}")
    options = ["--scores.batch_size=8", "--trainer.devices=1", "--model.compile=false", "--data.num_workers=1"]
    assert start(tmp_path, GRID, "--", *options) == 0
    assert pretend.calls == []
    assert start(tmp_path, GRID, "--", *options, "--model.sampler.rule=Euler") == 0
    assert trainings(pretend) == []
    assert len(pretend.calls) == 8


def test_removed_models_that_are_trained_again_are_measured_again_if_they_are_others(
    tmp_path: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert start(tmp_path, PICTURES) == 0
    for path in (tmp_path / "out" / "trainings").glob("*/checkpoints/last.ckpt"):
        path.unlink()
    next((tmp_path / "out").glob("*/cells/digits-BNR-0-NFE-3-seed0/samples/grid.png")).unlink()
    monkeypatch.setattr(pretend, "model", "another machine's")
    pretend.calls.clear()
    assert start(tmp_path, PICTURES) == 0
    assert len(trainings(pretend)) == 1
    assert len(pretend.calls) == 1 + 2 + 2  # scores and samples of both numbers of steps
    assert len(rows(tmp_path)) == 8


def test_a_checkpoint_that_changes_meanwhile_is_reported(
    tmp_path: Path, pretend: Pretend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(arguments: list[str], folder: Path) -> int:
        if "samples" in folder.name and "NFE-5-seed0" in str(folder):
            checkpoint = dict(a.removeprefix("--").split("=", 1) for a in arguments[1:])["ckpt_path"]
            Path(checkpoint).write_text("trained further meanwhile")
        return Pretend.run(pretend, arguments, folder)

    monkeypatch.setattr(pretend, "run", run)
    assert start(tmp_path, PICTURES) == 1
    assert "changed while the experiment ran; run the same command again" in report(tmp_path)


def test_more_samples_leave_those_of_fewer_alone(tmp_path: Path, pretend: Pretend) -> None:
    assert start(tmp_path, GRID) == 0
    assert start(tmp_path, GRID, "--num_images=64", "--rounds=2", "--only=BNR=0") == 0
    assert "**4 of 8 measurements are done" in report(tmp_path)
    pretend.calls.clear()
    assert start(tmp_path, GRID) == 0
    assert pretend.calls == []
    assert "measurements are done" not in report(tmp_path)


def test_images_that_are_no_numbers_and_unequal_counts_are_reported(tmp_path: Path, pretend: Pretend) -> None:
    content = {**PICTURES, "axes": {"BNR": GRID["axes"]["BNR"]}, "plot": {"x": "BNR"}}
    assert start(tmp_path, content, "--only=BNR=0") == 0
    pretend.broken = 3
    assert start(tmp_path, content, "--only=BNR=0.5", "--seeds=1") == 0
    text = report(tmp_path)
    assert "**3 images of BNR 0.5 (digits, seed 0) have NaN or infinite pixels.**" in text
    assert "± std over trainings" in text
    assert "| *halves of the data (898 against 899 images)* | 1.500 | – | – | – |" in text.replace(" 1.5 ", " 1.500 ")
    header = next(line for line in text.splitlines() if line.startswith("| BNR"))
    column = header.split("|").index(" trainings ")
    lines = [line for line in text.splitlines() if line.count("|") == header.count("|")]  # of the scores' table
    assert [line.split("|")[column].strip() for line in lines if line.startswith(("| 0 |", "| 0.5 |"))] == ["2", "1"]
    assert {row["nonfinite_images"] for row in rows(tmp_path) if row["BNR"] == "0.5"} == {"3"}


def names(name: str, **labels: str) -> set[str]:
    """The trainings of some cells at the paper's budget."""
    found = expand(read(PAPERS / f"{name}.yaml", Experiment), None, "paper", seeds=1)
    return {c.training_name for c in found if c.data == "cifar10" and labels.items() <= c.labels.items()}


def test_equal_trainings_of_different_experiments_are_one() -> None:
    warm = names("table3_bnr", BNR="0.5")
    assert len(warm) == 1
    assert warm == names("table1_systems", system="Warm") == names("table5_parameterizations", parameterization=FULL)
    assert warm == names("fig5_bnr_nfe", BNR="0.5") == names("plane", training="one a BNR", BNR="0.5")
    assert warm != names("table3_bnr", BNR="0.3")
    blurring = names("table1_systems", system="Blurring Diffusion")
    assert blurring == names("blurring_table3_sigma", blur_max="20")
    assert len(names("fig5_bnr_nfe")) == 8


def test_settings_of_the_trainer_count_if_weights_depend_on_them() -> None:
    def name(*extra: str) -> str:
        return expand(parse(GRID, Experiment, Path("x")), "digits", "smoke", extra=extra)[0].training_name

    elsewhere = ["devices=2", "num_nodes=2", "strategy=ddp", "accumulate_grad_batches=2", "enable_progress_bar=false"]
    assert name() == name(*(f"--trainer.{setting}" for setting in elsewhere))
    matters = [
        "fast_dev_run=true",
        "limit_train_batches=5",
        "min_steps=5",
        "precision=bf16-mixed",
        "gradient_clip_val=1",
    ]
    assert len({name(), *(name(f"--trainer.{setting}") for setting in matters)}) == 1 + len(matters)


def test_data_are_the_same_wherever_they_are_and_samples_are_of_float32(tmp_path: Path) -> None:
    """A file may be copied to a node's disk; another file of the same name and size is another data set."""
    table3 = read(PAPERS / "table3_bnr.yaml", Experiment)

    def cell(path: Path, *extra: str) -> Cell:
        return expand(table3, None, "paper", extra=(f"--data.path={path}", *extra))[0]

    def works(path: Path, *extra: str) -> list[Job]:
        scores, _ = measurements_of(table3, [cell(path, *extra)], tmp_path, tmp_path / "results")
        assert scores.training
        return [scores.training, scores.job]

    here, there = (tmp_path / name / "photos.zip" for name in ("here", "there"))
    for path in (here, there):
        path.parent.mkdir()
        path.write_text("some photos")
    jobs, notes = works(here), [job.noted_identity() for job in works(here)]
    assert [job.folder for job in jobs] == [job.folder for job in works(there)]
    assert all(map(Job.is_noted, works(there, "--data.cache=false"), notes))
    there.write_text("same photos")
    assert there.stat().st_size == here.stat().st_size
    assert not any(map(Job.is_noted, works(there), notes))
    there.unlink()  # to save space; what was found is still of it
    assert all(map(Job.is_noted, works(there), notes))
    folders = [tmp_path / name / "train" for name in ("here", "there")]
    for folder in folders:
        folder.mkdir()
    assert cell(folders[0]).training_name != cell(folders[1]).training_name
    fast = cell(here, "--trainer.precision=bf16-mixed")
    assert fast.training_name != cell(here).training_name
    assert fast.training[-1] == "--trainer.precision=bf16-mixed"
    assert fast.sampling == cell(here).sampling


def test_configurations_are_resolved_by_many_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each changes the working directory, which all threads share."""
    monkeypatch.chdir(tmp_path)
    seeds = [["--config=configs/digits.yaml", f"--model.seed={1000 + k}"] for k in range(8)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(resolved, seeds))
    assert [config["model"]["seed"] for config in found] == [1000 + k for k in range(8)]
    assert Path.cwd() == tmp_path


def test_invocations_note_how_they_ended(tmp_path: Path) -> None:
    invocations = Invocations(tmp_path)
    with invocations.noted("whole", True):
        pass
    with pytest.raises(KeyboardInterrupt), invocations.noted("stopped", True):
        raise KeyboardInterrupt
    with invocations.noted("idle", False):
        pass
    interrupted = invocations.noted("killed", True)
    interrupted.__enter__()
    lines = invocations.lines()
    assert [line.split("`")[1] for line in lines] == [
        "whole",
        "stopped",
        "killed",
    ]
    assert [line.partition(": ")[2].partition(" ")[0] for line in lines] == ["ended", "stopped", "killed"]
    (tmp_path / "invocations.json").rename(tmp_path / "calls.json")  # its name in earlier versions
    assert invocations.lines() == lines


def test_a_spectrum_is_of_the_file_that_is_there(tmp_path: Path) -> None:
    """A file that is made anew at the same path is measured anew."""
    path = tmp_path / "photos.zip"
    spectra = set()
    for content in ("some", "more"):
        path.write_text(content)
        oracle = read(PAPERS / "oracle_rho.yaml", Experiment)
        (cell, *_) = expand(oracle, "cifar10", "paper", extra=[f"--data.path={path}"])
        (measurement, *_) = measurements_of(oracle, [cell], tmp_path, tmp_path / "results")
        spectra.add(next(a for a in measurement.job.noted_identity()["meaning"]["call"] if a.startswith("--spectrum=")))
    assert len(spectra) == 2
    assert not any(str(tmp_path) in argument for argument in spectra)


FULL = "(d) R says x_res, D says M x0"


def test_settings_are_for_data_sets_that_there_are() -> None:
    """By name or size, the name's last; another word would never apply."""
    content = {**GRID, "for_data": {"8x8": {"model.lr": 1e-3, "model.duration": 1e4}, "digits": {"model.lr": 1e-4}}}
    found = expand(parse(content, Experiment, Path("x")), "digits", "small")[0].for_data
    assert found == {"model.lr": 1e-4, "model.duration": 1e4}
    content["for_data"] = {"8×8": {"model.lr": 1e-3}}
    with pytest.raises(UserError, match=r"for_data names 8×8, which is no data set and no size.*16x16, 8x8"):
        expand(parse(content, Experiment, Path("x")), "digits", "small")


def test_a_smoke_run_is_quick_whatever_an_experiment_needs() -> None:
    content = {**GRID, "for_data": {"digits": {"model.duration": 1e9}}}
    (cell, *_) = expand(parse(content, Experiment, Path("x")), "digits", "smoke")
    assert [option for option in cell.training if "duration" in option] == ["--model.duration=128"]


@pytest.mark.parametrize("content", ["{", "[1]", '[{"command": "run"}]'])
def test_damaged_notes_of_invocations_are_one_line(content: str, tmp_path: Path) -> None:
    (tmp_path / "invocations.json").write_text(content, encoding="utf-8")
    invocations = Invocations(tmp_path)
    with pytest.raises(UserError, match="remove it"), invocations.noted("run", True):
        raise AssertionError
    with pytest.raises(UserError, match="remove it"):
        invocations.lines()
