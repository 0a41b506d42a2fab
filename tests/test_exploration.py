"""The pictures of `warm explore`, against other ways to the same; tests/extras has the page."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encode
from PIL import Image
from scipy.fft import dctn
from small import DIGITS, REPOSITORY, fit, here, last, refusal
from torch import Tensor

from warm_lightning import load_checkpoint, load_config
from warm_lightning.commands.exploration import (
    DEGRADED,
    MEAN,
    PICTURE,
    SAMPLE,
    Explored,
    Settings,
    read_picture,
)
from warm_lightning.commands.explore import find_checkpoint, open_data
from warm_lightning.data import Digits
from warm_lightning.errors import UserError
from warm_lightning.images import quantise, read_png, write_png
from warm_lightning.model import TrainedModel
from warm_lightning.spectral import idct


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of a model with every setting: a range of BNRs, classes and guidance."""
    folder = tmp_path_factory.mktemp("run")
    plane = f"--config={REPOSITORY / 'configs' / 'method' / 'plane.yaml'}"
    here(*fit(folder, plane, "--model.network.label_dim=10", "--model.label_dropout=0.2", "--model.duration=320"))
    return folder


@pytest.fixture(scope="module")
def explored(run: Path) -> Explored:
    return Explored(load_checkpoint(last(run)))


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "as trained": ({}, {}),
    "Euler": (
        {"steps": 5, "rule": "Euler", "eta": 0.5},
        {"sampler.grid.steps": 5, "sampler.rule": "Euler", "sampler.rule.eta": 0.5},
    ),
    "Multistep": (
        {"steps": 6, "rule": "Multistep order 3", "eta": 0.5},  # a rule without η
        {"sampler.grid.steps": 6, "sampler.rule": "Multistep", "sampler.rule.order": 3},
    ),
    "plane": (
        {"bnr": 1.3, "churn": 20.0, "guidance": 2.0, "label": 3},
        {"process.path.bnr": 1.3, "sampler.churn.churn": 20.0, "guidance": 2.0},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_samples_are_those_of_the_checkpoint_with_these_overrides(case: str, run: Path, explored: Explored) -> None:
    """Finds a setting of the page that does not reach the sampler, or reaches it as another one."""
    settings, overrides = CASES[case]
    shown = explored.run(Settings(seeds="3,5-6", **settings))
    model = load_checkpoint(last(run), overrides).model()
    classes = [settings["label"]] * 3 if "label" in settings else None
    assert torch.equal(shown.images, quantise(model.sample(model.sampler, [3, 5, 6], classes)))
    assert shown.nfe == model.own_nfe
    assert shown.classes == (classes or model.start([3, 5, 6])[2])


def test_the_trajectory_has_the_outputs_of_the_network_and_their_power(explored: Explored) -> None:
    """Finds D and R that are not the network's, of another class or level, and a spectrum of other images."""
    shown = explored.run(Settings(seeds="3,5-6", steps=4))
    model, states, levels = shown.model, [], []
    model.sample(model.sampler, shown.seeds, watch=lambda u, level: (states.append(u), levels.append(level)))
    labels = torch.nn.functional.one_hot(torch.tensor(shown.classes), 10)
    assert len(shown.columns) == len(levels) == 5
    for column, u, level in zip(shown.columns, states, levels, strict=True):
        assert (column.alpha, column.beta) == (level.alpha.item(), level.beta.item())
        parts = {"u": idct(u)}
        if level.clock > 0:
            with torch.no_grad():
                denoised, residual = model.outputs(idct(u), level, labels).unbind(1)
            residual = residual - residual.mean(dim=(-2, -1), keepdim=True)  # blur takes nothing from the mean
            parts |= {"D": denoised, "R": residual, "D + R": denoised + residual}
        spread = (1 + level.beta**2).sqrt() if level.clock > 0 else 1.0
        assert list(column.pixels) == list(parts)
        for name, pixels in parts.items():
            first = pixels[0] / spread if name == "u" else pixels[0]
            torch.testing.assert_close(column.pixels[name], first, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(column.power[name], ring_power(pixels), rtol=1e-4, atol=1e-9)
    final = shown.columns[-1].pixels["u"]
    assert torch.equal(quantise(final), shown.images[0])
    factor = shown.residual_factor
    brightest = max(column.pixels["R"].abs().max().item() for column in shown.columns[:-1])
    assert 0.9 < factor * brightest <= 1.05
    assert torch.equal(shown.pictures(shown.columns[1])["R"], quantise(shown.columns[1].pixels["R"] * factor))


def ring_power(pixels: Tensor) -> Tensor:
    """The variance of DCT coefficients over images, by the rings of half-waves per side."""
    variance = dctn(pixels.numpy(), axes=(-2, -1), norm="ortho").var(axis=0, ddof=1).mean(axis=0)
    radius = np.rint(np.hypot(*np.mgrid[:8, :8])).astype(int)
    return torch.tensor([variance[radius == ring].mean() for ring in range(radius.max() + 1)])


def test_a_spectrum_needs_two_seeds(explored: Explored) -> None:
    run = explored.run(Settings(seeds="4", steps=2))
    assert run.spectra(None) is None
    assert run.columns[0].power == {}


def untrained(*methods: str) -> Explored:
    """A model with fresh weights of overlays on digits."""
    paths = [DIGITS, *(REPOSITORY / "configs" / "method" / f"{name}.yaml" for name in methods)]
    module = load_config(paths, {"model.network.model_channels": 8})[0]
    model = module.model("raw")
    return Explored(TrainedModel({"ema": model.network}, model, module.config, 0, None))


def test_only_the_settings_that_a_model_has_are_offered(explored: Explored) -> None:
    choices = explored.choices
    assert choices.bnr == (0.0, 2.0, 0.5)
    assert (choices.label_dim, choices.guidance, choices.churn, choices.steps) == (10, 1.0, 0.0, (18, 64))
    assert list(choices.rules) == ["Heun", "Euler", "Multistep order 2", "Multistep order 3"]
    assert [choices.has_eta(rule) for rule in choices.rules] == [True, True, False, False]
    hot = untrained("hot").choices
    assert (hot.bnr, hot.guidance, hot.label_dim) == (None, None, 0)
    heat = untrained("ihdm").choices  # its network knows one step only, and the steps of its own chain
    assert (heat.steps, heat.churn, heat.bnr) == (None, None, None)
    assert [name.split()[0] for name in heat.rules] == ["Direct"]
    cold = untrained("cold").choices  # no noise, which Multistep needs; no more steps than the chain has
    assert not [name for name in cold.rules if name.startswith("Multistep")]
    assert cold.steps is not None
    assert cold.steps[1] == 50


@pytest.mark.filterwarnings("error::RuntimeWarning")  # matplotlib's, of a figure without limits
@pytest.mark.parametrize("method", ["hot", "ihdm", "ddim", "blurring", "soft", "flow"])
def test_other_processes_are_shown(method: str) -> None:
    """Finds a division by a gain that is 0, or a level that a process has not, in trajectory, path and restoration."""
    explored = untrained(method)
    explored.model.learn(lambda title: [torch.zeros(4, 1, 8, 8)])
    steps = None if explored.choices.steps is None else 3
    run = explored.run(Settings(seeds="0-1", steps=steps))
    assert all(bool(pixels.isfinite().all()) for column in run.columns for pixels in column.pixels.values())
    assert run.path().startswith(b"\x89PNG")
    assert all(chart.startswith(b"\x89PNG") for chart in run.spectra(None) or ())
    result = explored.restore(explored.picture(0)[0], explored.restore_choices.value)
    assert list(result.pictures) == [PICTURE, DEGRADED, *([] if method == "ihdm" else [MEAN]), SAMPLE]


def test_a_restoration_is_that_of_warm_restore(run: Path, explored: Explored, tmp_path: Path) -> None:
    """Finds another level, noise, seed, class or measure than the command's."""
    picture = Digits().train_images().images[7]
    write_png(tmp_path / "clean" / "a.png", picture)
    shown = explored.restore(picture, 0.5, bnr=1.5, seed=4, label=3)
    for name, option in ((MEAN, ["--mean"]), (SAMPLE, [])):
        out = tmp_path / name
        here(
            *("restore", str(tmp_path / "clean"), f"--ckpt_path={last(run)}", f"--outdir={out}", "--blur=0.75"),
            *("--noise=0.5", "--degrade", "--seeds=4", "--labels=3", "--accelerator=cpu", *option),
        )
        assert torch.equal(shown.pictures[name], read_png(out / "a.png"))
        record = json.loads((out / "restored.json").read_text())
        assert shown.psnr[name] == pytest.approx(record["psnr_after"]["mean"])
        assert shown.ssim[name] == pytest.approx(record["ssim_after"]["mean"])
        assert shown.psnr[DEGRADED] == pytest.approx(record["psnr_before"]["mean"])
    assert torch.equal(shown.pictures[PICTURE], picture)


def test_a_class_is_asked_for_where_the_model_needs_it(explored: Explored) -> None:
    strict = Explored(load_checkpoint_without_dropout(explored))
    with pytest.raises(UserError, match="choose that of the picture"):
        strict.restore(strict.picture(0)[0], 0.5)


def load_checkpoint_without_dropout(explored: Explored) -> TrainedModel:
    model = explored.model.replaced(label_dropout=0.0)
    return TrainedModel({"ema": model.network}, model, explored.config, 0, None)


def test_an_upload_is_cropped_and_resized_and_a_damaged_one_refused(tmp_path: Path) -> None:
    """Finds a picture that is squeezed or not cropped in its middle, and a path of the server in a message."""
    wide = np.zeros((40, 100, 3), np.uint8)
    wide[:, 30:70] = (10, 200, 30)
    (tmp_path / "wide.png").write_bytes(encode(wide))
    colour = torch.tensor([10, 200, 30], dtype=torch.uint8)
    assert torch.equal(read_picture(tmp_path / "wide.png", (3, 8, 8)), colour[:, None, None].expand(3, 8, 8))
    grey = read_picture(tmp_path / "wide.png", (1, 8, 8))
    assert grey.unique().tolist() == [Image.new("RGB", (1, 1), (10, 200, 30)).convert("L").getpixel((0, 0))]
    (tmp_path / "no.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"^the picture no\.png is not a readable image"):
        read_picture(tmp_path / "no.png", (1, 8, 8))


def test_the_data_of_a_run_are_found_or_their_absence_is_said(run: Path, tmp_path: Path) -> None:
    model = load_checkpoint(last(run)).model()
    assert find_checkpoint(str(run)) == find_checkpoint(str(last(run))) == (str(last(run)), run / "config.yaml")
    assert find_checkpoint("hf://owner/name") == ("hf://owner/name", None)
    data, line = open_data([], run / "config.yaml", model)
    assert data is not None
    assert line == ""
    digits = Digits().train_images().as_tensor()
    assert data.count == len(digits)
    unbiased = ring_power(digits.double() / 127.5 - 1) * (data.count - 1) / data.count
    torch.testing.assert_close(data.power, unbiased)
    assert Explored(load_checkpoint(last(run)), data=data).picture(7)[0].equal(digits[7])
    assert open_data([], None, model)[1].startswith("The data are not known")
    other = tmp_path / "config.yaml"
    other.write_text("data: {class_path: ImageFolder, init_args: {path: nowhere.zip}}")
    assert "nowhere.zip" in open_data([], other, model)[1]
    other.write_text("data: {class_path: DeadLeaves, init_args: {side: 8}")
    assert "is not the configuration of a run" in open_data([], other, model)[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--port=0"], "a port is from 1 to 65535"),
        (["--seeds=5-2"], "runs backwards"),
        (["--seeds=0-100"], "at most 100"),
        (["--model.lr=1"], "use --override"),
        (["--override+=sampler.rule=Quick"], "Quick"),
        (["--data.path=nowhere.zip"], "--config is missing"),
    ],
)
def test_refusals_before_the_page(options: list[str], words: str, run: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("warm_lightning.commands.explore.find_spec", lambda name: name)
    monkeypatch.setattr("warm_lightning.commands.explore.serve", lambda make, port: pytest.fail("not refused"))
    assert words in refusal(capsys, "explore", str(run), *options)


def test_without_gradio_the_extra_is_named(run: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr("warm_lightning.commands.explore.find_spec", lambda name: None)
    assert "pip install 'warm-lightning[explore]'" in refusal(capsys, "explore", str(run))
