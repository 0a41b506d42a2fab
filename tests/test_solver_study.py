"""`experiments.studies.solvers`: its measurements are right, from images or checkpoints to tables."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encode, store
from small import SMALL, here

from experiments.studies import solvers
from warm_lightning import load_checkpoint
from warm_lightning.checkpoints import SECTION
from warm_lightning.data import Digits, ImageFolder
from warm_lightning.images import dequantise, quantise
from warm_lightning.metrics import Evaluation, Extraction, Pixels, measure_reference
from warm_lightning.samplers import Heun, PowerGrid, Sampler
from warm_lightning.spectral import power_spectrum


def test_solvers_from_images_to_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    files = {f"train/a/{k:02}.png": encode(random.integers(0, 256, (8, 8, 3), np.uint8)) for k in range(20)}
    files |= {"test/a/0.png": encode(np.zeros((8, 8, 3), np.uint8))}
    monkeypatch.setattr(solvers, "MANY", (10,))
    data, out, picture = store(tmp_path, files, "zip"), tmp_path / "new" / "rows.json", tmp_path / "new" / "rows.png"
    assert solvers.main(["--data", data, "--out", str(out), "--plot", str(picture)]) == 0
    found = json.loads(out.read_text())
    assert len(found["rows"]) == 3 * 8 * 6
    spectrum = power_spectrum(dequantise(ImageFolder(data).train_images().all()))
    rows = {(row["rho"], row["bnr"], row["solver"], row["nfe"]): row["frechet"] for row in found["rows"]}
    for bnr in (0, 0.5, 10):
        expected = solvers.distances(spectrum, bnr, Sampler(PowerGrid(5), Heun()))
        assert rows[7, bnr, "Heun", 9] == pytest.approx(expected["frechet"], rel=1e-9)
    table = out.with_suffix(".md").read_text()
    assert f"| Heun | 9 | {rows[7, 0, 'Heun', 9]:.3g} |" in table.split("## ρ = 7, to the data")[1]
    (machine,) = [line for line in table.splitlines() if line.startswith("* machine: ")]
    assert f", device cpu, cpu {found['protocol']['machine']['cpu']}, cores " in machine
    assert f"* seconds: {found['protocol']['seconds']}\n" in table
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    here("fit", *SMALL, f"--trainer.default_root_dir={folder}", "--model.duration=64")
    return folder / "checkpoints" / "last.ckpt"


def test_trained_models_from_checkpoint_to_table(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solvers, "FEW", (10,))
    monkeypatch.setattr(solvers, "SEEDS", range(8))
    monkeypatch.setattr(solvers, "PATHS", 2)
    # Heun at NFE 9 as if it were exact: its own row must then be 0.
    monkeypatch.setattr(solvers, "EXACT", Sampler(PowerGrid(5), Heun()))
    out = tmp_path / "rows.json"
    assert solvers.main(["--checkpoints", f"tiny={checkpoint}", "--out", str(out)]) == 0
    found = json.loads(out.read_text())
    rows = {row["solver"]: row for row in found["trained"]}
    assert [(name, row["nfe"]) for name, row in rows.items()] == [
        (n, 9 if n == "Heun" else 10) for n in solvers.SOLVERS
    ]
    assert rows["Heun"]["rms"] < 1e-5 < rows["Euler"]["rms"]  # float32 in batches of another size
    assert {row["model"] for row in found["beside"]} == {"halves", "gaussian"}
    assert "* extractors: class DigitsFeatures" in out.with_suffix(".md").read_text()
    # A second route to a score.
    module = load_checkpoint(str(checkpoint), {"sampler.rule": "Euler", "sampler.grid.steps": 10})
    extraction = Extraction(Pixels(), 8, "cpu")
    scores = Evaluation(extraction, measure_reference(extraction, Digits().train_images(), companions=False), (1, 8, 8))
    scores.update(quantise(module.model("ema").sample(module.model().sampler, range(8))))
    assert rows["Euler"]["fd8_pixel"] == pytest.approx(scores.compute()[1]["fd8_pixel"], rel=1e-6)


def test_a_model_with_another_clock_than_the_noise_level_is_refused(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    grid = {"class_path": "warm_lightning.samplers.EvenGrid", "init_args": {"steps": 9, "first": 9}}
    content[SECTION]["config"]["sampler"]["grid"] = grid
    torch.save(content, tmp_path / "even.ckpt")
    assert solvers.main(["--checkpoints", f"a={tmp_path / 'even.ckpt'}", "--out", str(tmp_path / "x.json")]) == 2
    error = capsys.readouterr().err
    assert "even.ckpt: is sampled on EvenGrid" in error
    assert not (tmp_path / "x.json").exists()


NOWHERE = ["--data", "nowhere.zip"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do"),
        (["--checkpoints", "x.ckpt"], "LABEL=PATH"),
        (["--checkpoints", "a=none"], "none"),
        # What cannot be written is found before what is to be read.
        ([*NOWHERE, "--out", "x.md"], "ends in .json"),
        ([*NOWHERE, "--plot", "x.json"], "ends in .png"),
        ([*NOWHERE, "--out", "/proc/nowhere/x.json"], "/proc/nowhere"),
        ([*NOWHERE, "--plot", "/proc/nowhere/x.png"], "/proc/nowhere"),
        (NOWHERE, "nowhere.zip"),
    ],
)
def test_solvers_errors_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert solvers.main(["--out", str(tmp_path / "x.json"), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("solvers: ")
    assert message in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())
