"""Errors of D and R: from outputs of known errors, and `warm branches` on a trained network."""

import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from small import SMALL, here, refusal
from torch import Tensor
from truths import noise

from warm_lightning import load_checkpoint
from warm_lightning.analysis.branches import BASELINE, SHARES, Branches, Truth, combinations, error_rows
from warm_lightning.errors import UserError
from warm_lightning.parameterizations import DenoiseDeblur, LeastSquares, MeasuredLeastSquares, Sum
from warm_lightning.processes import IHDM, ConstantBNR, Warm
from warm_lightning.samplers import EvenGrid, PowerGrid
from warm_lightning.spectral import frequencies, idct
from warm_lightning.types import Level

SPREAD, OF_D, OF_R = 0.1, 0.02, 0.03
"""Standard deviations of the posterior, and of the own errors of D and R."""


class Erring:
    """A model whose outputs err by known laws: both from the posterior mean, and each in its own way."""

    def __init__(self, truth: Truth) -> None:
        self.truth = truth
        self.process = Warm(ConstantBNR(0.5))

    def outputs(self, x: Tensor, level: Level, class_labels: Tensor | None = None) -> Tensor:
        u0 = self.truth.u0
        gains = self.process.gains(level, u0)
        shape, seed = u0.shape, int(1000 * level.beta.item())
        posterior = u0 + SPREAD * noise(*shape, seed=seed)
        d = gains.signal * posterior + OF_D * noise(*shape, seed=seed + 1)
        r = gains.lost * posterior + OF_R * noise(*shape, seed=seed + 2)
        return idct(torch.stack([d, r], dim=1))


@pytest.fixture(scope="module")
def erring() -> Branches:
    truth = Truth(noise(4000, 1, 8, 8), noise(4000, 1, 8, 8, seed=1), None)
    model = Erring(truth)
    return Branches(model.outputs, model.process, PowerGrid(12, 0.05, 20.0).levels(model.process))


def test_the_ratio_of_own_errors_is_found(erring: Branches) -> None:
    """The posterior variance, 25 and 11 times that of the errors, does not enter."""
    found = erring.fit([erring.outputs.__self__.truth])
    assert found.noise.tolist() == [level.beta.item() for level in reversed(erring.levels[:-1])]
    checked = 0
    for beta, row in zip(found.noise, found.ratios, strict=True):
        kept = torch.exp(-frequencies(noise(1, 1, 8, 8)) * (0.5 * beta) ** 2 / 2).flatten()
        for share in range(2, SHARES - 2):
            if int(((kept * SHARES).long() == share).sum()) >= 4:
                # For M up to 0.75 and 4·4000 coefficients ln κ has a standard error of up to 0.11.
                assert row[share].log().item() == pytest.approx(2 * math.log(OF_D / OF_R), abs=0.45)
                checked += 1
    assert checked >= 8


def test_errors_are_those_of_the_formula(erring: Branches) -> None:
    """E(x̂0 - x0)² = σ² + a² v_D + b² v_R in each frequency; the least squares with the true ratio are the best."""
    truth = erring.outputs.__self__.truth
    best = MeasuredLeastSquares([1.0], [0.5], [[OF_D**2 / OF_R**2]])
    errors = erring.errors([truth], combinations(best))
    rows = error_rows(errors, erring.levels)
    for k, level in enumerate(erring.levels[:-1]):
        gains = erring.process.gains(level, truth.u0)
        used = erring.process.gains(erring.levels[k + 1], truth.u0).signal - gains.signal
        weight = used.square()
        for name, factors in {
            "D + R": (1.0, 1.0),
            "least squares": (
                gains.signal / (gains.signal**2 + gains.lost**2),
                gains.lost / (gains.signal**2 + gains.lost**2),
            ),
        }.items():
            variance = SPREAD**2 + factors[0] ** 2 * OF_D**2 + factors[1] ** 2 * OF_R**2
            row = next(r for r in rows if (r["beta"], r["combination"]) == (level.beta.item(), name))
            expected = torch.as_tensor(variance).expand(1, 1, 8, 8)
            assert row["image_error"] == pytest.approx(expected.mean().item(), rel=0.02)
            assert row["step_error"] == pytest.approx((weight * expected).mean().item(), rel=0.08)
        own = {r["combination"]: r for r in rows if r["beta"] == level.beta.item()}
        assert own[BASELINE]["step_change"] == own[BASELINE]["step_change_error"] == 0
        for other in own.values():
            least = own["measured"]
            chance = 4 * (least["step_change_error"] + other["step_change_error"])
            assert least["step_change"] <= other["step_change"] + chance
        difference = (errors["D + R"][:, k, 1] - errors[BASELINE][:, k, 1]) / errors[BASELINE][:, k, 1].mean()
        assert own["D + R"]["step_change_error"] == pytest.approx(difference.std().item() / 4000**0.5)


# ---------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    here("fit", *SMALL, "--model.duration=1280", "--model.lr_ramp=320", f"--trainer.default_root_dir={folder}")
    return folder / "checkpoints" / "last.ckpt"


SETTINGS = [option for option in SMALL if option.startswith(("--config", "--model"))]


def test_the_command(ckpt: Path, tmp_path: Path) -> None:
    """Batches do not matter; the file that it writes makes the model sample so, which changes the images."""
    options = [*SETTINGS, f"--ckpt_path={ckpt}", "--num_images=12", "--split=train", "--accelerator=cpu"]
    here("branches", *options, f"--outdir={tmp_path / 'a'}")
    here("branches", *options, f"--outdir={tmp_path / 'b'}", "--batch_size=4")
    a, b = (json.loads((tmp_path / name / "branches.json").read_text()) for name in "ab")
    for row, other in zip(a["rows"], b["rows"], strict=True):
        assert (row.pop("combination"), row) == (other.pop("combination"), pytest.approx(other, rel=1e-3, abs=1e-6))
    assert len(a["rows"]) == 18 * 4
    assert (tmp_path / "a" / "branches.png").stat().st_size > 5_000

    overlay = tmp_path / "a" / "combination.yaml"
    section = yaml.safe_load(overlay.read_text())["model"]["parameterization"]
    model = load_checkpoint(ckpt, {"parameterization": section}).model()
    measured = model.parameterization.combination
    torch.testing.assert_close(measured.ratios.tolist(), a["ratios"], rtol=1e-3, atol=0)
    papers = load_checkpoint(ckpt).model()
    samples = [m.sample(m.sampler, [0]) for m in (model, papers)]
    assert not torch.equal(*samples)
    scored = ["--ckpt_path", str(ckpt), f"--trainer.default_root_dir={tmp_path / 'test'}", f"--config={overlay}"]
    here("test", *SMALL[:1], *scored, *SMALL[1:])


def test_a_training_may_be_sampled_with_any_combination(ckpt: Path) -> None:
    for name, kind in {"Sum": Sum, "LeastSquares": LeastSquares}.items():
        model = load_checkpoint(ckpt, {"parameterization.combination": name}).model()
        assert isinstance(model.parameterization, DenoiseDeblur)
        assert isinstance(model.parameterization.combination, kind)


def test_refusals(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = [f"--ckpt_path={ckpt}", f"--outdir={tmp_path / 'out'}"]
    for options, message in [
        (["--num_images=3"], "at least 4"),
        (["--num_images=2000", "--split=train"], "train has 1797 images"),
        (["--batch_size=0"], "batch_size is 0"),
        (["--seed=-1"], "seed is -1"),
    ]:
        assert message in refusal(capsys, "branches", *SETTINGS, *where, *options)
    hot = tmp_path / "hot"
    other = [*SMALL, "--model.parameterization=DenoiseRestore", "--model.duration=32"]
    here("fit", *other, f"--trainer.default_root_dir={hot}")
    where = [f"--ckpt_path={hot / 'checkpoints' / 'last.ckpt'}", f"--outdir={tmp_path / 'out'}"]
    settings = [*SETTINGS, "--model.parameterization=DenoiseRestore"]
    assert "is DenoiseRestore, without the two branches" in refusal(capsys, "branches", *settings, *where)


def test_what_cannot_be_measured_is_refused(ckpt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Outputs that are not finite; and a process whose levels its noise does not tell apart, before any work."""
    checkpoint = torch.load(ckpt, weights_only=True)
    checkpoint["state_dict"] = {n: torch.full_like(t, torch.nan) for n, t in checkpoint["state_dict"].items()}
    torch.save(checkpoint, tmp_path / "nan.ckpt")
    where = [f"--outdir={tmp_path / 'out'}", "--accelerator=cpu", "--num_images=4", "--split=train"]
    assert "are not finite" in refusal(capsys, "branches", *SETTINGS, f"--ckpt_path={tmp_path / 'nan.ckpt'}", *where)
    assert not list((tmp_path / "out").iterdir())
    process = IHDM(steps=4)
    levels = EvenGrid(4, 4).levels(process)
    with pytest.raises(UserError, match="noise of IHDM does not fall"):
        Branches(lambda x, level, labels: x, process, levels).fit([])
