"""`warm oracle`: errors of sampling with a perfect network against closed forms, a second route, and chance."""

import json
import shutil
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import DIGITS, here, refusal
from torch import Tensor
from truths import digits, final_variance, gains_at

from warm_lightning.analysis.oracle_error import FinerGrid, dataset_error, gaussian_error, sample_law
from warm_lightning.cli import main
from warm_lightning.data import Digits
from warm_lightning.data.image_set import random_order
from warm_lightning.errors import UserError
from warm_lightning.images import dequantise, write_png
from warm_lightning.oracles import GaussianOracle
from warm_lightning.processes import (
    IHDM,
    BlurringDiffusion,
    ColdDiffusion,
    Hot,
    PFGMpp,
    Process,
    ProgressiveDeblurring,
    SoftDiffusion,
    VariancePreserving,
    Warm,
)
from warm_lightning.rng import SeedStreams
from warm_lightning.samplers import (
    Churn,
    ClippedImage,
    Direct,
    EpsilonScaling,
    Euler,
    EvenGrid,
    Grid,
    Heun,
    Momentum,
    Multistep,
    PowerGrid,
    ReverseDiffusion,
    Sampler,
    StepRule,
)
from warm_lightning.samplers.sampler import EstimateTransform
from warm_lightning.spectral import dct, frequencies, power_spectrum
from warm_lightning.types import Estimate, Estimator, Level


def power_law(size: int) -> Tensor:
    """S = 0.25/λ, about that of photographs, the mean's four times the largest other; float64 [1, size, size]."""
    rates = frequencies(torch.zeros(1, size, size, dtype=torch.float64))[None]
    return 0.25 / rates.clamp(min=rates[rates > 0].min() / 4)


SPECTRUM = power_law(8)
LIKE = torch.zeros(1, 1, 8, 8, dtype=torch.float64)


def learned_variance(process: Process, noisy: bool) -> Tensor:
    """The variance of normal images that are blurred to the first level, with or without its noise."""
    gains = gains_at(process, process.max_clock, LIKE)
    return gains.signal.square() * SPECTRUM + gains.noise.square() * noisy


@pytest.mark.parametrize(
    ("process", "grid", "rule", "noisy"),
    [
        (Warm(), PowerGrid(18), Heun(), None),
        (Warm(), PowerGrid(20), Euler(1.0), None),
        (Warm(), PowerGrid(20), Heun(0.5), None),
        (VariancePreserving(), EvenGrid(40), Euler(1.0), None),
        (ProgressiveDeblurring(), EvenGrid(40), ReverseDiffusion(), None),
        (SoftDiffusion(), EvenGrid(40, 1000), Momentum(), True),
        (IHDM(), EvenGrid(200, 200), Direct(0.025), False),
    ],
)
def test_variance_is_that_of_steps_taken_apart(
    process: Process, grid: Grid, rule: StepRule, noisy: bool | None
) -> None:
    start = None if noisy is None else learned_variance(process, noisy)
    found = sample_law(SPECTRUM, process, Sampler(grid, rule))
    expected = final_variance(rule, GaussianOracle(SPECTRUM, process), process, LIKE, grid.clocks(), start)
    # What is learned is kept in float32: 1e-7.
    torch.testing.assert_close(found.end, expected[0], rtol=1e-6, atol=0)
    assert found.deterministic == (isinstance(rule, Heun) and rule.eta == 0)


@pytest.mark.parametrize(
    "sampler",
    [
        Sampler(PowerGrid(12), Multistep(3), Churn()),
        Sampler(PowerGrid(12), Heun(), Churn(), EpsilonScaling(1.05)),
    ],
    ids=["multistep", "heun"],
)
def test_variance_is_that_of_samples(sampler: Sampler) -> None:
    """The variance with multistep rules and churn, which the other computation cannot handle."""
    spectrum, count = power_law(4), 4000
    draws = SeedStreams(range(count))
    start = draws.normal(1, 4, 4, dtype=torch.float64)
    samples = sampler(GaussianOracle(spectrum, Warm()), Warm(), start, draws)
    found = sample_law(spectrum, Warm(), sampler)
    ratio = samples.square().mean(0) / found.end
    # The mean of n squares of normal numbers has the relative standard deviation √(2/n) = 0.022; 16 of them.
    assert ratio.sub(1).abs().max() < 4 * (2 / count) ** 0.5
    assert found.draws > 1
    assert not found.deterministic


def test_a_single_step_in_closed_form() -> None:
    """Euler from β to 0 goes to E[u_0|u] = S/(S+β²)·u, and the exact flow to √(S/(S+β²))·u; u has variance β²."""
    spectrum, beta = SPECTRUM.expand(3, 8, 8), 2.0
    found = gaussian_error(spectrum, Hot(), Sampler(PowerGrid(1, 0.002, beta), Euler()))
    s = spectrum / (spectrum + beta**2)
    to_data, to_ode = ((beta * s - to).square() for to in (spectrum.sqrt(), beta * s.sqrt()))
    assert found["frechet"] == pytest.approx(to_data.sum().item())
    assert found["frechet_ode"] == pytest.approx(to_ode.sum().item())
    assert found["variance"] == pytest.approx(3 * SPECTRUM.sum().item())
    assert found["nfe"] == found["draws"] == 1
    radius = frequencies(LIKE).sqrt()
    edges = [-1, radius.max() / 3, 2 * radius.max() / 3, 2 * radius.max()]
    for k, band in enumerate(("low", "mid", "high")):
        inside = (radius >= edges[k]) & (radius < edges[k + 1])
        for error, name in ((to_data, f"share_{band}"), (to_ode, f"share_ode_{band}")):
            assert found[name] == pytest.approx((error[:, inside].sum() / error.sum()).item())


def test_samplers_that_draw_have_no_ode() -> None:
    found = gaussian_error(SPECTRUM, Warm(), Sampler(PowerGrid(10), Euler(1.0)))
    assert found["frechet_ode"] is None
    assert found["frechet"] > 0
    assert found["draws"] == 10  # the start, and every step but the last


class Mixed(EstimateTransform):
    """The estimate of a frequency depends on the next one: linear, but not diagonal."""

    def __call__(self, ask: Estimator, process: Process) -> Estimator:
        def mixed(u: Tensor, level: Level) -> Estimate:
            estimate = ask(u, level)
            return replace(estimate, clean=estimate.clean.roll(1, dims=-1))

        return mixed


@pytest.mark.parametrize(
    ("process", "sampler", "message"),
    [
        (PFGMpp(), Sampler(), "not linear"),
        (VariancePreserving(), Sampler(EvenGrid(10), Euler(), estimate_transform=ClippedImage()), "not linear"),
        (Warm(), Sampler(estimate_transform=Mixed()), "diagonal"),
        (ColdDiffusion(), Sampler(EvenGrid(50, 50), Direct()), "no noise at 50"),
    ],
)
def test_samplers_without_an_exact_law_are_refused(process: Process, sampler: Sampler, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sample_law(SPECTRUM, process, sampler)


def test_finer_grid_keeps_the_levels() -> None:
    own, fine = PowerGrid(7), FinerGrid(PowerGrid(7), 100)
    assert set(own.clocks().tolist()) <= set(fine.clocks().tolist())
    assert 100 <= len(fine.clocks()) - 1 < 107
    assert (fine.clocks().diff() < 0).all()


def test_samples_of_a_finite_set() -> None:
    images = digits(100)
    errors = {n: dataset_error(images, Warm(), Sampler(PowerGrid(n)), range(40), 256) for n in (2, 20, 60)}
    assert errors[20]["landed"] == errors[60]["landed"] == 1
    assert errors[20]["nearest_mse"] < 1e-15  # DESIGN section 4
    # Few steps land on another image than the exact flow does, for some samples.
    assert errors[2]["rms_ode"] > errors[20]["rms_ode"] > errors[60]["rms_ode"]
    assert errors[60]["rms_ode"] < 1e-12
    assert errors[20]["nfe"] == 39
    drawn = dataset_error(images, Warm(), Sampler(PowerGrid(20), Euler(1.0)), range(4), 256)
    assert drawn["rms_ode"] is None
    assert drawn["landed"] == 1


def test_distances_of_a_set_of_two() -> None:
    """One step from pure noise goes to the mean of the images, m: half their distance from either."""
    images = digits(2)
    found = dataset_error(images, Warm(), Sampler(PowerGrid(1, 0.002, 1e6), Euler()), range(70), 0)
    apart = (images[0] - images[1]).square().mean().item()
    assert found["nearest_mse"] == pytest.approx(apart / 4, rel=1e-4)  # noise of 1e6 weighs them to 1e-5
    assert found["rms_ode"] is None


def test_distance_to_the_exact_flow() -> None:
    """With a single image a, the flow is u_t = A∘a + B∘z: any sampler ends at a, and so does the exact one."""
    found = dataset_error(digits(1), Warm(), Sampler(PowerGrid(3)), range(3), 64)
    assert found["rms_ode"] < 1e-12


# ---------------------------------------------------------------------- the command


CONFIG = f"--config={DIGITS}"


def test_the_exact_flow_ends_where_samplers_do() -> None:
    """Blurring Diffusion leaves noise at its last level, of which samplers return the mean: no error of theirs."""
    errors = [
        gaussian_error(SPECTRUM, BlurringDiffusion(), Sampler(EvenGrid(steps, 1.0, False), Heun()))["frechet_ode"]
        for steps in (100, 200, 400)
    ]
    # Second order, squared, but for the last step.
    assert errors[2] < errors[1] / 3 < errors[0] / 9, errors


def record(folder: Path) -> dict:
    return json.loads((folder / "oracle.json").read_text())


def test_command_with_a_stored_spectrum(tmp_path: Path) -> None:
    stored = tmp_path / "cache" / "spectrum.npz"
    here("oracle", CONFIG, f"--outdir={tmp_path / 'a'}", f"--spectrum={stored}")
    found, spectrum = record(tmp_path / "a"), power_spectrum(dequantise(Digits().train_images().as_tensor()))
    expected = gaussian_error(spectrum, Warm(), Sampler())
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)  # images read in float32
    assert found["protocol"]["num_images"] == 1797
    with np.load(stored) as held:  # what is in it is what counts
        np.savez(stored, spectrum=4 * held["spectrum"], about=held["about"])
    options = ["--model.process.path.bnr=2", "--model.sampler.grid.steps=40"]
    here("oracle", CONFIG, *options, f"--outdir={tmp_path / 'b'}", f"--spectrum={stored}")
    again = record(tmp_path / "b")
    assert again["variance"] == pytest.approx(4 * found["variance"])
    assert again["nfe"] == 79
    assert again["protocol"]["process"]["init_args"]["path"]["init_args"] == {"bnr": 2.0}


def some_digits(count: int) -> Tensor:
    images = Digits().train_images()
    return images.take(random_order(len(images), 0)[:count])


def test_command_with_images(tmp_path: Path) -> None:
    options = ["--kind=dataset", "--limit=50", "--seeds=3-6", "--ode_steps=64", "--model.sampler.grid.steps=30"]
    here("oracle", CONFIG, *options, f"--outdir={tmp_path}")
    found, images = record(tmp_path), dequantise(some_digits(50), torch.float64)
    sampler = Sampler(PowerGrid(30))
    expected = dataset_error(images, Warm(), sampler, [3, 4, 5, 6], 64)
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert found["landed"] == 1
    assert dct(images).shape[0] == found["protocol"]["num_images"]


def test_user_errors_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored, broken = tmp_path / "s.npz", tmp_path / "broken.npz"
    here("oracle", CONFIG, f"--outdir={tmp_path}", f"--spectrum={stored}")
    empty = tmp_path / "empty.npz"
    broken.write_bytes(b"nothing")
    empty.touch()
    for options, part in [
        ([f"--spectrum={stored}", "--data.held_out=40"], '"held_out": 40'),
        ([f"--spectrum={broken}"], "broken.npz"),
        ([f"--spectrum={empty}"], "empty.npz"),
        (["--model.network.resolution=16"], "resolution is 16"),
        ([f"--spectrum={stored}", "--model.network.resolution=16"], "[1, 16, 16]"),
        ([f"--spectrum={tmp_path / 's.txt'}"], "ends in .npz"),
        (["--kind=dataset", "--limit=0"], "--limit is 0"),
        (["--kind=dataset", "--seeds=x"], "seeds 'x'"),
    ]:
        capsys.readouterr()
        assert main(["oracle", CONFIG, *options, f"--outdir={tmp_path}"]) == 2
        error = capsys.readouterr().err.strip()
        assert part in error
        assert "\n" not in error


def test_a_stored_spectrum_is_of_the_images_that_are_there_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Images made anew under their old name are others."""
    images = Digits().train_images().as_tensor()
    data = [CONFIG, "--data={class_path: ImageFolder, init_args: {path: %s}}" % (tmp_path / "images")]
    for name, chosen in (("images", images[:40]), ("others", images[40:80])):
        for k, image in enumerate(chosen):
            write_png(tmp_path / name / f"{k}.png", image)
    command = ["oracle", *data, f"--outdir={tmp_path / 'out'}", f"--spectrum={tmp_path / 's.npz'}"]
    here(*command)
    here(*command)
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "others").rename(tmp_path / "images")
    assert "have changed since" in refusal(capsys, *command)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("0.png", (tmp_path / "images" / "0.png").read_bytes())
    one = [word.replace("/images}", "/images.zip}") for word in command]
    (tmp_path / "s.npz").unlink()
    assert "one image has no spectrum" in refusal(capsys, *one)
    with zipfile.ZipFile(tmp_path / "images.zip", "a") as archive:
        archive.writestr("1.png", (tmp_path / "images" / "1.png").read_bytes())
    here(*one)
    with zipfile.ZipFile(tmp_path / "images.zip", "a") as archive:
        archive.writestr("2.png", (tmp_path / "images" / "2.png").read_bytes())
    assert "have changed since" in refusal(capsys, *one)
