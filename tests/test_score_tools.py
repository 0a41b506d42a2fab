"""`warm score`, `warm compare` and `warm reference-stats` on small folders and zips."""

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small import DIGITS

from warm_lightning.cli import main
from warm_lightning.data import Digits
from warm_lightning.metrics import InMemory, Observer, Pixels, Scores, measure
from warm_lightning.metrics.frechet import Normal, frechet_distance
from warm_lightning.pictures import write_png

PIXELS = ["--extractor=Pixels", "--device=cpu"]


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return Digits().train_images().all()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, digits: torch.Tensor) -> Path:
    """`data`, and images of the same 60 "seeds" by a good model and by a noisy one, the latter as a zip."""
    root = tmp_path_factory.mktemp("images")
    noise = torch.randint(-40, 41, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    noisy = (digits[400:460] + noise).clamp(0, 255).to(torch.uint8)
    for name, images in (("data", digits[:300]), ("good", digits[400:460]), ("noisy", noisy)):
        for k, image in enumerate(images):
            write_png(root / name / f"{k:06d}.png", image)
    with zipfile.ZipFile(root / "noisy.zip", "w") as archive:
        for file in sorted((root / "noisy").iterdir()):
            archive.write(file, file.name)
    return root


@pytest.fixture
def warm(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    monkeypatch.chdir(folders)

    def run(*arguments: str) -> None:
        assert main(arguments) == 0

    return run


def test_score_of_a_zip_against_a_folder(warm, folders, digits, capsys) -> None:
    warm("score", "noisy.zip", "data", *PIXELS, "--batch_size=7", "--out=score.json")
    scores = json.loads((folders / "score.json").read_text())
    observer = Observer(Pixels())
    direct = Scores(observer, measure(observer, InMemory(digits[:300]), source="data"), (1, 8, 8))
    noise = torch.randint(-40, 41, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    direct.update((digits[400:460] + noise).clamp(0, 255).to(torch.uint8))
    count, values = direct.compute()
    protocol = scores.pop("protocol")
    # Only the order of float64 sums differs.
    assert scores == pytest.approx({**values, **direct.companions(count)}, rel=1e-9, abs=1e-12)
    assert (protocol["images"], protocol["samples"], protocol["reference_images"]) == ("noisy.zip", 60, 300)
    assert "fd_pixel" in capsys.readouterr().out


def test_statistics_in_place_of_images_give_the_same_scores(warm, folders, capsys) -> None:
    warm("reference-stats", "data", "stats.npz", "--memorisation=true", *PIXELS)
    assert "300 images, 64 features: stats.npz" in capsys.readouterr().out
    for reference in ("data", "stats.npz"):
        warm("score", "good", reference, *PIXELS, f"--out={reference}.json")
    scores = [json.loads((folders / f"{reference}.json").read_text()) for reference in ("data", "stats.npz")]
    assert scores[0].pop("protocol")["reference"] == "data"
    assert scores[1].pop("protocol")["reference"].startswith("data, from stats.npz (sha256 ")
    assert scores[0] == scores[1]


def test_statistics_of_a_configuration_are_those_of_its_training_images(warm, folders, digits) -> None:
    warm("reference-stats", str(DIGITS), "all.npz", "--extractor=Pixels", "--device=cpu")
    with np.load(folders / "all.npz") as file:
        pixels = digits.flatten(1).double().numpy() / 127.5 - 1
        np.testing.assert_allclose(file["mu"], pixels.mean(0), atol=1e-6)  # of float32 features
        np.testing.assert_allclose(file["sigma"], np.cov(pixels.T), atol=1e-6)
        assert file["features"].shape == (1797, 64)
        assert "training" not in file.files


def test_comparison_of_images_of_the_same_seeds(warm, folders, digits, capsys) -> None:
    warm("compare", "noisy.zip", "good", "--reference=data", *PIXELS, "--out=compare.json")
    found = json.loads((folders / "compare.json").read_text())["fd_pixel"]
    pixels = digits.flatten(1).double() / 127.5 - 1
    expected = frechet_distance(*(Normal(p.mean(0), p.T.cov()) for p in (pixels[400:460], pixels[:300])))
    assert found["b"] == pytest.approx(expected, rel=1e-5)  # of float32 features
    assert found["difference"] == pytest.approx(found["a"] - found["b"])
    assert found["interval"][0] < found["difference"] < found["interval"][1]
    assert found["difference"] > 0
    assert "95 % confidence interval" in capsys.readouterr().out


def test_comparison_of_rounds(warm, folders, capsys) -> None:
    protocol = {"seeds": ["0-9", "10-19", "20-29"]}
    for name, values in (("a", [3, 5, 7]), ("b", [2, 3, 4])):
        rounds = {f"fid_round{k}": value for k, value in enumerate(values, start=1)}
        scores = {**rounds, "fid_mean": 0, "is_split_std_round1": 1, "protocol": protocol}
        (folders / f"{name}.json").write_text(json.dumps(scores))
    warm("compare", "a.json", "b.json")
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["fid", "5", "3", "2"]


def refusals() -> list[tuple[list[str], str]]:
    return [
        (["score", "good", "nowhere", *PIXELS], "nowhere"),
        (["score", "data.npz", "data", *PIXELS], "images are needed here"),
        (["score", "good", "nowhere.npz", *PIXELS], "nowhere.npz: no such file"),
        (["score", "good", "data", "--extractor=Pixels", "--device=abc"], "--device abc"),
        (["score", "good", "data", *PIXELS, "--batch_size=0"], "--batch_size is 0"),
        (["compare", "good", "noisy", *PIXELS], "images need --reference"),
        (["compare", "good", "data", "--reference=data", *PIXELS], "good lacks ['000060.png'] and 239 more"),
        (["compare", "one.json", "one.json"], "one round"),
        (["compare", "one.json", "other.json"], "score the same seeds"),
        (["compare", "one.json", "bad.json"], "bad.json is no scores.json"),
        (["reference-stats", "data", "out.txt"], "call the file *.npz"),
        (["reference-stats", "nowhere.yaml", "out.npz"], "nowhere.yaml"),
    ]


@pytest.mark.parametrize(("arguments", "message"), refusals())
def test_what_cannot_be_done_is_said_on_one_line(folders, monkeypatch, capsys, arguments, message) -> None:
    monkeypatch.chdir(folders)
    (folders / "one.json").write_text(json.dumps({"protocol": {"seeds": "0-9"}}))
    (folders / "other.json").write_text(json.dumps({"protocol": {"seeds": "10-19"}}))
    (folders / "bad.json").write_text("[]")
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert len(error) == 1
