"""Images of different settings do not mix in a folder, whoever writes and reads it."""

import json
import shutil
import time
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from processes import start_warm
from small import SMALL, here, refusal

from warm_lightning.cli import main
from warm_lightning.model import DiffusionModel


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of two models, the second with classes."""
    paths = {}
    for name, options in (("plain", []), ("classes", ["--model.network.label_dim=10"])):
        folder = tmp_path_factory.mktemp(name)
        here("fit", *SMALL, *options, "--model.duration=32", f"--trainer.default_root_dir={folder}")
        paths[name] = folder / "checkpoints" / "last.ckpt"
    return paths


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def pngs(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.png"))


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--steps=3"], "sampler.grid.init_args.steps 18 there, 3 here"),
        (["--eta=0.5"], "eta"),
        (["--override+=sampler.rule=Euler"], "sampler.rule.class_path"),
        (["--weights=raw"], "weights"),
        (["--precision=64-true"], "precision"),
    ],
)
def test_other_settings_are_refused_by_name(
    options: list[str], word: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = ["generate", f"--ckpt_path={models['plain']}", f"--outdir={tmp_path}"]
    here(*generate, "--seeds=0-3")
    before = contents(tmp_path)
    line = refusal(capsys, *generate, "--seeds=2-5", *options)
    assert "other settings" in line
    assert word in line
    assert contents(tmp_path) == before


def test_another_model_is_refused(models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here("generate", f"--ckpt_path={models['plain']}", f"--outdir={tmp_path}", "--seeds=0")
    other = ["generate", f"--ckpt_path={models['classes']}", f"--outdir={tmp_path}", "--seeds=1"]
    assert "weights_sha256" in refusal(capsys, *other)


def test_more_seeds_of_the_same_settings_are_added(models: dict[str, Path], tmp_path: Path) -> None:
    generate = ["generate", f"--ckpt_path={models['plain']}", "--batch_size=3"]
    here(*generate, "--seeds=0-5", f"--outdir={tmp_path / 'at-once'}")
    moved = tmp_path / "moved.ckpt"
    shutil.copy(models["plain"], moved)
    parts = ["--seeds=4,5", "--seeds=0-2", "--seeds=0-3"]
    for seeds in parts:  # by another path, and in other batches
        here("generate", f"--ckpt_path={moved}", seeds, f"--outdir={tmp_path / 'parts'}")
    assert contents(tmp_path / "parts") == contents(tmp_path / "at-once")


def test_an_interrupted_call_goes_on(models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    generate = ["generate", f"--ckpt_path={models['plain']}", f"--outdir={out}", "--seeds=0-40", "--batch_size=1"]
    process = start_warm(tmp_path, *generate)
    while len(pngs(out)) < 3:
        assert process.is_alive()
        time.sleep(0.01)
    process.kill()
    process.join()
    assert main(["score", str(out), str(out), "--extractor=Pixels"]) == 2 or len(pngs(out)) == 41
    here(*generate)
    assert len(pngs(out)) == 41
    here("score", str(out), str(out), "--extractor=Pixels")


def test_classes_belong_to_the_settings(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate = ["generate", f"--ckpt_path={models['classes']}"]
    threes = [*generate, f"--outdir={tmp_path / 'threes'}"]
    here(*threes, "--seeds=0-1", "--labels=3")
    here(*threes, "--seeds=2-3", "--labels=3")
    assert "labels 3 there, 4 here" in refusal(capsys, *threes, "--seeds=4-5", "--labels=4")
    assert "labels 3 there, None here" in refusal(capsys, *threes, "--seeds=4-5")
    several = [*generate, f"--outdir={tmp_path / 'several'}"]
    here(*several, "--seeds=0-1", "--labels=3,4")
    here(*several, "--seeds=2-3", "--labels=5,6")
    assert "000001.png of another class" in refusal(capsys, *several, "--seeds=1-2", "--labels=9,5")
    files = json.loads((tmp_path / "several" / "generated.json").read_text(encoding="utf-8"))["protocol"]["files"]
    assert files == {"000000.png": 3, "000001.png": 4, "000002.png": 5, "000003.png": 6}


def test_images_without_a_record_are_not_added_to(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "old" / "000007.png")
    generate = ["generate", f"--ckpt_path={models['plain']}", "--seeds=0-1"]
    for out in (tmp_path, tmp_path / "old"):  # `warm score` reads subfolders, too
        assert "000007.png of unknown settings" in refusal(capsys, *generate, f"--outdir={out}")
    grid = f"--grid={tmp_path / 'new' / 'grid.png'}"
    assert "would count as an image" in refusal(capsys, *generate, f"--outdir={tmp_path / 'new'}", grid)


@pytest.mark.parametrize("form", ["folder", "zip", "below"])
def test_scores_are_of_the_recorded_images_only(
    form: str, models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "below" if form == "below" else tmp_path / "out"
    here("generate", f"--ckpt_path={models['plain']}", "--seeds=0-9", f"--outdir={out}")

    def source() -> str:
        if form != "zip":
            return str(tmp_path / "out")
        with zipfile.ZipFile(tmp_path / "out.zip", "w") as archive:
            for path in out.iterdir():
                archive.write(path, f"images/{path.name}")
        return str(tmp_path / "out.zip")

    score = ["--extractor=Pixels", "--device=cpu"]
    here("score", source(), source(), *score)
    Image.new("L", (8, 8)).save(out / "stale.png")
    for words in (["score", source(), source()], ["compare", source(), source(), f"--reference={source()}"]):
        assert "stale.png that" in refusal(capsys, *words, *score)
    (out / "stale.png").unlink()
    (out / "000003.png").unlink()
    assert "lacks" in refusal(capsys, "score", source(), source(), *score)
    (out / "generated.json").unlink()
    here("score", source(), source(), *score)


def test_restored_images_of_other_settings_are_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here("generate", f"--ckpt_path={models['plain']}", "--seeds=0-7", f"--outdir={tmp_path / 'given'}")
    where = [f"--ckpt_path={models['plain']}", f"--outdir={tmp_path / 'out'}", "--degrade", "--mean"]
    restore = ["restore", str(tmp_path / "given"), *where]
    here(*restore, "--blur=0.25", "--noise=0.5", "--limit=4")
    first = contents(tmp_path / "out")
    assert "blur 0.25 there, 0.2 here" in refusal(capsys, *restore, "--blur=0.2", "--noise=0.4", "--limit=2")
    level = ["--blur=0.25", "--noise=0.5"]
    assert "another class or seed" in refusal(capsys, *restore, *level, "--limit=2", "--seeds=5,6")
    assert contents(tmp_path / "out") == first
    here(*restore, *level)
    assert len(pngs(tmp_path / "out")) == 8
    record = json.loads((tmp_path / "out" / "restored.json").read_text(encoding="utf-8"))
    assert record["protocol"]["num_images"] == 8
    here("score", str(tmp_path / "out"), str(tmp_path / "given"), "--extractor=Pixels")
    Image.new("L", (8, 8)).save(tmp_path / "out" / "stale.png")
    assert "stale.png" in refusal(capsys, "score", str(tmp_path / "out"), str(tmp_path / "given"), "--extractor=Pixels")


def test_images_that_are_not_finite_are_refused(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    contents_of = torch.load(models["plain"], weights_only=True)
    contents_of["state_dict"] = {n: torch.full_like(t, torch.nan) for n, t in contents_of["state_dict"].items()}
    torch.save(contents_of, tmp_path / "nan.ckpt")
    where = [f"--ckpt_path={tmp_path / 'nan.ckpt'}", f"--outdir={tmp_path / 'out'}"]
    assert "of seed 7 has pixels that are not finite" in refusal(capsys, "generate", *where, "--seeds=7-8", "--steps=2")
    (tmp_path / "clean").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "clean" / "a.png")
    degraded = [str(tmp_path / "clean"), "--degrade", "--blur=0.25", "--noise=0.5"]
    assert "image a has pixels that are not finite" in refusal(capsys, "restore", *degraded, *where)
    assert not list((tmp_path / "out").iterdir())


def test_of_images_that_are_sampled_once_more_the_right_one_is_named(
    models: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of three are there already."""
    generate = ["generate", f"--ckpt_path={models['plain']}", f"--outdir={tmp_path}", "--seeds=4-6", "--steps=2"]
    here(*generate)
    (tmp_path / "000006.png").unlink()
    monkeypatch.setattr(DiffusionModel, "sample", lambda self, *_: torch.full((1, 1, 8, 8), torch.nan))
    assert "of seed 6 has pixels that are not finite" in refusal(capsys, *generate)
