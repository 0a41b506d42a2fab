"""`warm spectrum` as a command, and `experiments.studies.jpeg_spectrum`."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.fft import dctn
from small import DIGITS, REPOSITORY, here

from experiments.studies import jpeg_spectrum
from warm_lightning.cli import main
from warm_lightning.data import Digits
from warm_lightning.images import quantise, write_png
from warm_lightning.spectral import frequencies, idct


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`noisy`: digits with noise of 60 grey levels; `small`: of 4×4 pixels; `colour`: RGB."""
    root = tmp_path_factory.mktemp("images")
    digits = Digits().train_images().as_tensor()[:300]
    noise = 60 * torch.randn(digits.shape, generator=torch.Generator().manual_seed(0))
    noisy = (digits + noise).clamp(0, 255).to(torch.uint8)
    for name, images in (
        ("noisy", noisy),
        ("small", noisy[:, :, :4, :4]),
        ("colour", noisy.roll(1, 0).repeat(1, 3, 1, 1)),
    ):
        images[:, :1] ^= 1  # so that RGB images are not grey
        for k, image in enumerate(images if name == "noisy" else images[:30]):
            write_png(root / name / f"{k:06d}.png", image)
    return root


def looked_at(path: Path) -> None:
    """A picture with something on it."""
    pixels = np.asarray(Image.open(path).convert("L"))
    assert min(pixels.shape) >= 400
    assert pixels.std() > 10


def test_command_on_digits(folders: Path, tmp_path: Path, capsys) -> None:
    images = str(folders / "noisy")
    here("spectrum", f"--config={DIGITS}", f"--outdir={tmp_path}", f"--images={images}", "--tolerance=0.04")
    for name in ("spectrum", "bnr", "targets", "compared"):
        looked_at(tmp_path / f"{name}.png")
    result = json.loads((tmp_path / "spectrum.json").read_text())
    fit = next(row for row in result["fits"] if row["below"] == 2)
    assert (fit["c"], fit["s"], fit["c_at_s1"]) == (result["c"], result["s"], result["c_at_s1"])
    assert [row["below"] for row in result["fits"]] == [0.5, 1, 2, 5, None]
    assert {(row["below"], row["tolerance"]) for row in result["suggestions"]} == {
        (below, t) for below in (0.5, 1, 2, 5, None) for t in (0.01, 0.02, 0.03, 0.04, 0.05, 0.1, 0.2)
    }
    # The digits' spectrum is no power law, in none of the ranges: nothing is suggested by one.
    assert result["explained"] == pytest.approx(0.02, abs=0.01)
    for row in result["suggestions"]:
        assert [row[name] for name in ("bnr", "bnr_se", "path_bnr", "path_exponent")] == [None] * 4
    assert [result[name] for name in ("bnr", "path_bnr", "path_exponent")] == [None] * 3
    assert {row["formula"] for row in result["attenuation"]} == {None}
    digits = dctn(Digits().train_images().as_tensor().numpy()[:, 0] / 127.5 - 1, norm="ortho", axes=(1, 2)).var(axis=0)
    assert result["spectrum"][1]["power"] == pytest.approx((digits[0, 1] + digits[1, 0] + digits[1, 1]) / 3)
    assert result["sigma_data"] == pytest.approx((Digits().train_images().as_tensor().numpy() / 127.5 - 1).std())
    noisy = np.stack([np.asarray(Image.open(file)) for file in sorted((folders / "noisy").iterdir())])
    power = dctn(noisy / 127.5 - 1, norm="ortho", axes=(1, 2)).var(axis=0)
    corner = result["compared"][-1]  # cosines 7 × 7 alone
    unbiased = len(noisy) / (len(noisy) - 1) * 1796 / 1797
    assert corner["ratio"] == pytest.approx(power[7, 7] / digits[7, 7] * unbiased)
    assert corner["differs"]
    assert corner["ring"] == result["bands"][-1]["rings"][1]
    assert {row["bnr"] for row in result["targets"]} == {0, 0.5, 2}
    protocol = result["protocol"]
    assert (protocol["num_images"], protocol["images_count"], protocol["shape"]) == (1797, 300, [1, 8, 8])
    printed = capsys.readouterr().out
    assert "There is no power law below λ = 2: c/λ^0.08 explains 2% of the variance of ln S" in printed
    assert "No BNR is recommended" in printed
    assert "PowerLaw with" not in printed
    assert "Standard deviation of all pixels: 0.7" in printed
    assert "cycles/pixel" in printed


@pytest.mark.parametrize(("s", "ray"), [(1.2, True), (0.5, False)])
def test_a_law_that_holds_is_recommended(s: float, ray: bool, tmp_path: Path, capsys) -> None:
    """Normal fields of known law; a constant BNR only if s is about 1."""
    for k, image in enumerate(quantise(jpeg_spectrum.fields(300, 16, seed=1, c=0.02, s=s))):
        write_png(tmp_path / "fields" / f"{k:03d}.png", image)
    data = ["--data=ImageFolder", f"--data.path={tmp_path / 'fields'}", "--data.xflip=false"]
    here("spectrum", f"--config={DIGITS}", *data, f"--outdir={tmp_path}", "--tolerance=0.04")
    result = json.loads((tmp_path / "spectrum.json").read_text())
    printed = capsys.readouterr().out
    assert "chosen tolerance of 4 %" in printed
    assert abs(result["s"] - s) < 4 * result["s_se"]
    assert result["path_exponent"] == pytest.approx(1 / result["s"])
    assert f"PowerLaw with bnr {result['path_bnr']:.3f} and exponent {result['path_exponent']:.3f}" in printed
    looked_at(tmp_path / "bnr.png")
    if ray:
        assert result["bnr"] == pytest.approx(math.sqrt(-2 * math.log(0.96) / result["c_at_s1"]))
        at_bnr = next(row for row in result["attenuation"] if row["bnr"] == result["bnr"])
        assert at_bnr["formula"] == pytest.approx(0.96)
        assert f"{result['bnr']:.3f} ±" in printed
    else:
        assert result["bnr"] is None
        assert "no BNR, since s = 1 does not hold, or PowerLaw" in printed


def test_command_on_photographs(cifar10_zip: Path, tmp_path: Path) -> None:
    config = REPOSITORY / "configs" / "cifar10_small.yaml"
    data = [f"--data.path={cifar10_zip}", "--data.cache=false", "--limit=300", "--bnrs=1", "--fit_below=.inf"]
    here("spectrum", f"--config={config}", f"--outdir={tmp_path}", *data)
    result = json.loads((tmp_path / "spectrum.json").read_text())
    assert result["protocol"]["num_images"] == 300
    assert result["protocol"]["fit_below"] is None
    assert len(result["spectrum"][0]["power_channels"]) == 3
    assert result["compared"] is None
    below_2 = next(row for row in result["fits"] if row["below"] == 2)
    # Photographs: near 1/f², and about the variance of other sets of photographs.
    assert 0.8 < below_2["s"] < 1.4
    assert 0.1 < below_2["c_at_s1"] < 0.5
    # Not exactly a power law, but near enough for a recommendation over all frequencies, and better below λ = 2.
    assert 0.5 < result["explained_at_s1"] < result["explained"] < below_2["explained"]
    assert below_2["explained_at_s1"] > 0.85
    assert 0.5 < result["bnr"] < 2
    assert 0.4 < result["path_exponent"] < 0.7
    looked_at(tmp_path / "targets.png")


DIGITS_CONFIG = [f"--config={DIGITS}"]
BAD = [
    ([], "--config is missing"),
    ([*DIGITS_CONFIG, "--tolerance=0"], "--tolerance is 0.0"),
    ([*DIGITS_CONFIG, "--tolerance=1"], "--tolerance is 1.0"),
    ([*DIGITS_CONFIG, "--noise=0"], "--noise is 0.0"),
    ([*DIGITS_CONFIG, "--bnrs=0,high"], "--bnrs is 0,high"),
    ([*DIGITS_CONFIG, "--bnrs=-1"], "--bnrs is -1"),
    ([*DIGITS_CONFIG, "--limit=0"], "--limit is 0"),
    ([*DIGITS_CONFIG, "--limit=5"], "5 images are too few"),
    ([*DIGITS_CONFIG, "--fit_below=0.2"], "--fit_below 0.2"),
    ([*DIGITS_CONFIG, "--images=nowhere"], "nowhere"),
    ([*DIGITS_CONFIG, "--images=small"], "1×4×4 (channels, height, width), the data 1×8×8"),
    ([*DIGITS_CONFIG, "--images=colour"], "3×8×8 (channels, height, width), the data 1×8×8"),
    ([*DIGITS_CONFIG, "--outdir=small/000000.png"], "small/000000.png"),
]


@pytest.mark.parametrize(("arguments", "mention"), BAD, ids=lambda value: str(value)[-30:])
def test_errors_are_one_line(arguments, mention, folders, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(folders)
    outdir = [] if any("--outdir" in argument for argument in arguments) else [f"--outdir={tmp_path}"]
    assert main(["spectrum", *outdir, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert mention in error
    assert not list(tmp_path.iterdir())


def test_images_without_a_falling_spectrum_are_refused(tmp_path: Path, capsys) -> None:
    generator = torch.Generator().manual_seed(0)
    rising = idct(frequencies(torch.zeros(8, 8)) * 0.02 * torch.randn(60, 1, 8, 8, generator=generator))
    for name, images in (("rising", quantise(rising)), ("flat", torch.full((60, 1, 8, 8), 7, dtype=torch.uint8))):
        for k, image in enumerate(images):
            write_png(tmp_path / name / f"{k:03d}.png", image)
        data = ["--data=ImageFolder", f"--data.path={tmp_path / name}"]
        assert main(["spectrum", f"--config={DIGITS}", *data, f"--outdir={tmp_path / 'out'}"]) == 2
    rising_error, flat_error = capsys.readouterr().err.splitlines()
    assert "does not fall below --fit_below 2" in rising_error
    assert "at 63 frequencies of 64 no image differs" in flat_error


def test_jpeg_takes_high_frequencies_of_normal_fields(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(jpeg_spectrum, "QUALITIES", (50,))
    out = tmp_path / "jpeg.json"
    assert jpeg_spectrum.main([f"--out={out}", "--num_images=200", "--size=16"]) == 0
    result = json.loads(out.read_text())
    rows = [row for row in result["rows"] if row["below"] == 2]
    assert [(row["quality"], row["subsampling"]) for row in rows] == [(None, None), (50, "4:2:0"), (50, "4:4:4")]
    plain, subsampled, full = rows
    # Clipping moves c by less than a tenth and s by less than a twentieth.
    assert plain["c"] == pytest.approx(jpeg_spectrum.C, rel=0.12)
    assert plain["s"] == pytest.approx(jpeg_spectrum.S, rel=0.05)
    assert plain["kept_at_4"] == 1
    assert full["kept_at_4"] < 0.8
    # Less chroma is less power, at the highest frequencies a coarse quantiser leaves little.
    assert subsampled["kept_at_2"] < full["kept_at_2"]
    assert subsampled["bnr"] > full["bnr"]
    assert result["protocol"]["num_images"] == 200
