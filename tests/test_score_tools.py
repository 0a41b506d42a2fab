"""`warm score`, `warm compare` and `warm reference-stats` on small folders and zips."""

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small import DIGITS, environment

from warm_lightning.cli import main
from warm_lightning.data import Digits, ImageSet
from warm_lightning.images import write_png
from warm_lightning.metrics import DigitsFeatures, Evaluation, Extraction, Pixels, measure_reference
from warm_lightning.metrics.distances import Normal, frechet_distance

PIXELS = ["--extractor=Pixels", "--device=cpu"]


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return Digits().train_images().as_tensor()


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
    extraction = Extraction(Pixels())
    direct = Evaluation(
        extraction, measure_reference(extraction, ImageSet.without_classes(digits[:300]), source="data"), (1, 8, 8)
    )
    noise = torch.randint(-40, 41, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    direct.update((digits[400:460] + noise).clamp(0, 255).to(torch.uint8))
    count, values = direct.compute()
    protocol = scores.pop("protocol")
    # Only the order of float64 sums differs.
    assert scores == pytest.approx({**values, **direct.companions(count)}, rel=1e-9, abs=1e-12)
    assert (protocol["images"], protocol["samples"], protocol["reference_images"]) == ("noisy.zip", 60, 300)
    assert "fd60_pixel" in capsys.readouterr().out


def test_statistics_in_place_of_images_give_the_same_scores(warm, folders, capsys) -> None:
    warm("reference-stats", "data", "stats.npz", "--memorisation=true", *PIXELS)
    assert "300 images, 64 features: stats.npz" in capsys.readouterr().out
    for reference in ("data", "stats.npz"):
        warm("score", "good", reference, *PIXELS, f"--out={reference}.json")
    scores = [json.loads((folders / f"{reference}.json").read_text()) for reference in ("data", "stats.npz")]
    assert scores[0].pop("protocol")["reference"] == "data"
    assert scores[1].pop("protocol")["reference"].startswith("data, from stats.npz (sha256 ")
    assert scores[0] == scores[1]
    warm("score", "good", "stats.npz", *PIXELS, "--companions=false", "--out=alone.json")
    alone = json.loads((folders / "alone.json").read_text())
    assert alone.keys() == {name for name in scores[0] if "halves" not in name and "gaussian" not in name} | {
        "protocol"
    }


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
    whole = json.loads((folders / "compare.json").read_text())
    found, protocol = whole["fd60_pixel"], whole["protocol"]
    assert (protocol["num_images"], protocol["blocks"], protocol["extractor"]["class"]) == (60, 20, "Pixels")
    assert protocol["images"] == ["000000.png", "000059.png"]
    assert "package_version" in protocol
    assert "60 images are fewer than twice the 64 features" in protocol["note"]
    pixels = digits.flatten(1).double() / 127.5 - 1
    expected = frechet_distance(*(Normal(p.mean(0), p.T.cov()) for p in (pixels[400:460], pixels[:300])))
    assert found["b"] == pytest.approx(expected, rel=1e-5)  # of float32 features
    assert found["difference"] == pytest.approx(found["a"] - found["b"])
    assert found["interval"][0] < found["difference"] < found["interval"][1]
    assert found["difference"] > 0
    output = capsys.readouterr().out
    assert "95 % confidence interval" in output
    assert protocol["note"] in output


PROTOCOL = {
    "seeds": ["0-9", "10-19", "20-29"],
    "num_images": 10,
    "reference": ["data"],
    "extractors": [{"extractor": {"class": "X", "file": "a.pt", "sha256": "1"}, "max_neighbours": 9}],
}


def write_scores(path: Path, values: list[float | None], **protocol: object) -> None:
    rounds = {f"fid_round{k}": value for k, value in enumerate(values, start=1)}
    scores = {**rounds, "fid_mean": 0, "m_round1": None, "m_mean": None, "is_split_std_round1": 1}
    path.write_text(json.dumps({**scores, "protocol": {**PROTOCOL, **protocol}}))


def test_comparison_of_rounds(warm, folders, capsys) -> None:
    moved = [{**PROTOCOL["extractors"][0], "extractor": {"class": "X", "file": "b.pt", "sha256": "1"}}]
    write_scores(folders / "a.json", [3, 5, 7], weights_sha256="a")
    write_scores(folders / "b.json", [2, 3, 4], weights_sha256="b", extractors=moved)
    warm("compare", "a.json", "b.json", "--out=ab.json")
    assert capsys.readouterr().out.splitlines()[1].split()[:4] == ["fid", "5", "3", "2"]
    protocol = json.loads((folders / "ab.json").read_text())["protocol"]
    assert (protocol["seeds"], protocol["num_images"]) == (PROTOCOL["seeds"], 10)
    assert protocol["weights_sha256"] == ["a", "b"]
    assert protocol["extractors"] == [{"class": "X", "sha256": "1"}]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"num_images": 20}, "differ in num_images ([10] and [20])"),
        ({"reference": ["other"]}, "differ in reference"),
        ({"extractors": [{**PROTOCOL["extractors"][0], "max_neighbours": 5}]}, "differ in max_neighbours"),
        ({"extractors": [{"extractor": {"class": "Y"}, "max_neighbours": 9}]}, "differ in extractors"),
    ],
)
def test_scores_by_different_protocols_are_not_compared(folders, monkeypatch, capsys, change, named) -> None:
    monkeypatch.chdir(folders)
    write_scores(folders / "a.json", [3, 5, 7])
    write_scores(folders / "b.json", [2, 3, 4], **change)
    assert main(["compare", "a.json", "b.json"]) == 2
    assert named in capsys.readouterr().err


def test_scores_against_other_images_of_the_same_name_are_not_compared(folders, monkeypatch, capsys) -> None:
    """Two data sets of as many images have the same name."""
    monkeypatch.chdir(folders)
    for name, moments in (("a", [1.0, 2.0, 3.0]), ("b", [1.0, 2.0, 3.1]), ("c", [1.0, 2.0, 3.000001])):
        write_scores(folders / f"{name}.json", [3, 5, 7], reference_moments=[moments])
    assert main(["compare", "a.json", "b.json"]) == 2
    assert "scored against different images" in capsys.readouterr().err
    assert main(["compare", "a.json", "c.json"]) == 0  # of another device


def test_statistics_are_scored_with_their_own_number_of_images(warm, folders, monkeypatch, capsys) -> None:
    warm("reference-stats", "data", "few.npz", *PIXELS, "--max_neighbours=20")
    warm("score", "good", "few.npz", *PIXELS, "--max_neighbours=20")
    warm("score", "good", "few.npz", *PIXELS)
    monkeypatch.chdir(folders)
    capsys.readouterr()
    assert main(["score", "good", "few.npz", *PIXELS, "--max_neighbours=30"]) == 2
    assert "--max_neighbours 30: few.npz was made with 20" in capsys.readouterr().err


def refusals() -> list[tuple[list[str], str]]:
    return [
        (["score", "good", "nowhere", *PIXELS], "nowhere"),
        (["score", "data.npz", "data", *PIXELS], "images are needed here"),
        (["score", "good", "nowhere.npz", *PIXELS], "nowhere.npz: no such file"),
        (["score", "good", "data", "--extractor=Pixels", "--device=abc"], "--device abc"),
        (["score", "good", "data", *PIXELS, "--batch_size=0"], "--batch_size is 0"),
        (["score", "nowhere", "data", *PIXELS, "--out=one.json/x.json"], "one.json: cannot be written"),
        (["score", "nowhere", "data", *PIXELS, "--out=data"], "data is a folder"),
        (["compare", "good", "noisy", *PIXELS], "images need --reference"),
        (["compare", "nowhere", "noisy", *PIXELS, "--out=one.json/x.json"], "one.json: cannot be written"),
        (["compare", "good", "data", "--reference=data", *PIXELS], "good lacks ['000060.png'] and 239 more"),
        (["compare", "good", "noisy", "--reference=five.npz", *PIXELS], "has 5 features per image"),
        (["compare", "one.json", "one.json"], "one round"),
        (["compare", "one.json", "other.json"], "score the same seeds"),
        (["compare", "one.json", "bad.json"], "bad.json is no scores.json"),
        (["compare", "short.json", "short.json"], "no score in common in each of 3 rounds"),
        (["compare", "one.json", "good"], "one.json'] is a file of scores and the other is not"),
        (["reference-stats", "data", "out.txt"], "call the file *.npz"),
        (["reference-stats", "nowhere.yaml", "out.npz"], "nowhere.yaml"),
        (["reference-stats", "nowhere", "one.json/out.npz"], "one.json: cannot be written"),
    ]


@pytest.mark.parametrize(("arguments", "message"), refusals())
def test_what_cannot_be_done_is_said_on_one_line(folders, monkeypatch, capsys, arguments, message) -> None:
    """And before any work: no image passes an extractor."""
    monkeypatch.chdir(folders)
    monkeypatch.setattr(Extraction, "extract", None)
    write_scores(folders / "one.json", [], seeds="0-9")
    write_scores(folders / "other.json", [], seeds="10-19")
    write_scores(folders / "short.json", [1, 2])
    (folders / "bad.json").write_text("[]")
    np.savez(folders / "five.npz", mu=np.zeros(5), sigma=np.eye(5))
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert len(error) == 1


def test_what_cannot_be_stored_is_said_before_anything_is_measured(
    folders: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folders)
    monkeypatch.setattr("warm_lightning.commands.reference_stats.LARGE", 299)
    assert main(["reference-stats", "data", "many.npz", "--memorisation=true", *PIXELS]) == 2
    assert "300 images are too many" in capsys.readouterr().err
    assert not (folders / "many.npz").exists()


def test_scoring_needs_no_lightning() -> None:
    """Which, like torchmetrics and scikit-learn, takes seconds to import."""
    commands = ("score", "compare", "reference_stats")
    lines = ["import sys", *(f"import warm_lightning.commands.{name}" for name in commands)]
    lines += ["print({'lightning', 'torchmetrics', 'torchvision', 'sklearn'} & sys.modules.keys())"]
    code = [sys.executable, "-c", "; ".join(lines)]
    done = subprocess.run(code, env=environment(), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_large_sets_are_seen_in_parts(digits: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """LSUN's millions of features fit no memory at once; only copies cannot be told without them."""

    def scored() -> dict[str, float]:
        extraction = Extraction(DigitsFeatures(), 500)
        scores = Evaluation(
            extraction, measure_reference(extraction, ImageSet.without_classes(digits[:301])), (1, 8, 8)
        )
        scores.update(digits[400:500])
        count, values = scores.compute()
        return values | scores.companions(count)

    whole = scored()
    monkeypatch.setattr("warm_lightning.metrics.reference.READ_AT_ONCE", 70)
    monkeypatch.setattr("warm_lightning.metrics.reference.LARGE", 300)
    parts = scored()
    lost = {name for name in whole if "memorisation" in name}
    assert lost
    assert parts.keys() == whole.keys() - lost
    for name, value in parts.items():
        # Batches of another size round features otherwise.
        assert value == pytest.approx(whole[name], rel=1e-4, abs=1e-4), name
