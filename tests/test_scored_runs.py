"""`warm test`: refusals, the records beside its scores, scores of one's own, defaults and progress."""

import json
import math
import re
import shutil
from collections.abc import Iterable
from itertools import permutations, product
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from lightning import Trainer
from small import DIGITS, SMALL, here
from test_rounds import QUICK, options, scores

from warm_lightning.callbacks import ScoreSamples
from warm_lightning.callbacks.rounds import FILE, reference_identity
from warm_lightning.checkpoints import EMA_PREFIX, read_checkpoint, without_prefix
from warm_lightning.cli import main
from warm_lightning.config import load_checkpoint
from warm_lightning.data import Digits
from warm_lightning.data.image_set import random_order
from warm_lightning.errors import UserError
from warm_lightning.images import quantise
from warm_lightning.metrics import Evaluation, Extraction, InceptionFeatures, Pixels, Reference, Score
from warm_lightning.metrics.distances import Normal
from warm_lightning.metrics.scores import Summary
from warm_lightning.module import DiffusionModule, SeedPlan
from warm_lightning.records import tensors_hash


@pytest.mark.parametrize("option", ["limit_test_batches=0.5", "fast_dev_run=true"])
def test_a_part_of_a_round_is_not_scored_as_one(double_ckpt, tmp_path, capsys, option) -> None:
    capsys.readouterr()
    assert main(options(double_ckpt, tmp_path, "--scores.batch_size=4", f"--trainer.{option}")) == 2
    assert "leave them out and set scores.num_images" in capsys.readouterr().err
    assert not (tmp_path / FILE).exists()


def test_one_batch_is_not_all_batches() -> None:
    # Lightning's 1 is one batch and its 1.0 is all of them; from the command line, either can become of a 1.
    callback = ScoreSamples([Pixels()])
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    callback.setup(Trainer(**settings, limit_test_batches=1.0), SimpleNamespace(data=SimpleNamespace()), "test")
    with pytest.raises(UserError, match="limit_test_batches"):
        callback.setup(Trainer(**settings, limit_test_batches=1), SimpleNamespace(), "test")


def test_a_round_of_too_few_images_is_not_kept(double_ckpt, tmp_path, capsys, monkeypatch) -> None:
    whole = SeedPlan.batches
    monkeypatch.setattr(SeedPlan, "batches", lambda *args: whole(*args)[:-1])
    assert main(options(double_ckpt, tmp_path, "--scores.batch_size=4")) == 2
    assert "12 of 16 images were sampled" in capsys.readouterr().err
    assert not (tmp_path / FILE).exists()


def test_weights_are_named_by_their_hash_and_the_card_of_others_says_so(double_ckpt, tmp_path) -> None:
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    path = run / "checkpoints" / "last.ckpt"
    shutil.copy(double_ckpt, path)
    shutil.copy(double_ckpt.parent.parent / "config.yaml", run)
    here(*options(path, run))
    protocol = scores(run)["protocol"]
    assert protocol["ckpt_path"] == str(path)
    assert protocol["weights_sha256"] == tensors_hash(
        without_prefix(read_checkpoint(path)["state_dict"], EMA_PREFIX).items()
    )
    here("export", str(path), str(tmp_path / "same"))
    # The same step of another run: as many images seen, other weights.
    content = torch.load(path, weights_only=True)
    next(tensor for name, tensor in content["state_dict"].items() if name.startswith(EMA_PREFIX)).add_(1e-3)
    torch.save(content, path)
    here("export", str(path), str(tmp_path / "other"))
    said = [
        "scores of other weights: weights_sha256 was" in (tmp_path / n / "README.md").read_text()
        for n in ("same", "other")
    ]
    assert said == [False, True]


def test_images_that_are_no_numbers_are_counted_by_round(double_ckpt, tmp_path, capsys, monkeypatch) -> None:
    sample, bad = DiffusionModule.sample, {3: torch.nan, 5: torch.inf}

    def spoilt(self: DiffusionModule, seeds: list[int], weights: str = "ema") -> torch.Tensor:
        images = sample(self, seeds, weights)
        for i, seed in enumerate(seeds):
            images[i, 0, 0, 0] = bad.get(seed, images[i, 0, 0, 0])
        return images

    monkeypatch.setattr(DiffusionModule, "sample", spoilt)
    here(*options(double_ckpt, tmp_path, "--scores.rounds=2"))
    assert scores(tmp_path)["protocol"]["nonfinite_images"] == [2, 0]
    assert "WARNING: NaN OR INFINITE PIXELS IN 2, 0 OF 16 IMAGES" in capsys.readouterr().out
    here(*options(double_ckpt, tmp_path, "--scores.rounds=2"))  # and told again when the rounds are taken from the file
    assert "WARNING: NaN" in capsys.readouterr().out
    assert not any("nonfinite" in name for name in scores(tmp_path))
    bad |= dict.fromkeys(range(32, 48), torch.nan)
    assert main(options(double_ckpt, tmp_path, "--scores.rounds=3")) == 2
    assert "no image of seeds 32-47 is finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--scores.reference_stats=nowhere.npz"], "nowhere.npz: no such file"),
        (["--scores.extractors=[{class_path: InceptionFeatures, init_args: {weights_path: no.pth}}]"], "no.pth"),
    ],
)
def test_what_scores_need_is_looked_for_before_the_training(tmp_path, capsys, changes, message) -> None:
    capsys.readouterr()
    folder = tmp_path / "run"
    every = ["--scores.every=64", "--scores.every_num_images=16", "--model.duration=64"]
    assert main(["fit", *SMALL, *every, *changes, f"--trainer.default_root_dir={folder}"]) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "config.yaml").exists()
    assert not (folder / "checkpoints").exists()


def test_extractors_get_batches_that_the_sampler_gets() -> None:
    module = SimpleNamespace(device=torch.device("cpu"), data=Digits())
    for batch_size, expected in ((32, 32), (1000, 250)):
        callback = ScoreSamples([Pixels()], batch_size=batch_size, companions=False, max_neighbours=50)
        callback.prepare(module)
        assert callback.evaluations[0].extraction.batch_size == expected


def test_references_of_equal_size_and_other_covariance_are_told_apart() -> None:
    def identity(*variances: float, **changes: object) -> str:
        normal = Normal(torch.zeros(4).double(), torch.tensor(variances).double().diag())
        return json.dumps(
            reference_identity(Evaluation(Extraction(Pixels()), Reference(normal, "", **changes), (1, 2, 2)))
        )

    assert identity(1, 1, 1, 1) != identity(2, 1, 1, 0)
    companions = {"halves": {"frechet": 1.0}, "gaussian": {"frechet": 2.0}}
    assert identity(1, 1, 1, 1, count=9) == identity(1, 1, 1, 1, count=9, companions=companions)


class CMMD(Score):
    """Squared maximum mean discrepancy with a Gaussian kernel (Jayasumana et al. 2024, Eq. 3), as a user adds it."""

    key = "cmmd"
    better = "lower"

    def __init__(self, sigma: float = 10.0) -> None:
        self.sigma = sigma

    def kernel(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.exp(torch.cdist(x.double(), y.double()).square() / (-2 * self.sigma**2))

    def compute(self, samples: Summary, reference: Reference) -> float:
        x, y = samples.features, reference.features
        off_diagonal = [(self.kernel(a, a).sum() - len(a)) / (len(a) * (len(a) - 1)) for a in (x, y)]
        return (sum(off_diagonal) - 2 * self.kernel(x, y).mean()).item()


def cmmd_by_loops(x: torch.Tensor, y: torch.Tensor, sigma: float) -> float:
    def mean(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> float:
        return fmean(math.exp(-(a - b).square().sum().item() / (2 * sigma**2)) for a, b in pairs)

    return mean(permutations(x.double(), 2)) + mean(permutations(y.double(), 2)) - 2 * mean(product(x.double(), y))


def test_a_score_of_ones_own_is_one_class(double_ckpt, tmp_path, capsys) -> None:
    """It gets a name with its count, companions, a row, a mean over rounds, and a place in the files."""
    chosen = "--scores.scores=[FrechetDistance, {class_path: test_scored_runs.CMMD, init_args: {sigma: %s}}]"
    more = ["--scores.companions=true", "--scores.rounds=2", "--scores.max_neighbours=20"]
    here(*options(double_ckpt, tmp_path, *more, chosen % 4))
    output = capsys.readouterr().out
    row = re.search(r"^cmmd16_pixel +(.*) lower$", output, re.MULTILINE)[1].split()
    found = scores(tmp_path)
    protocol = found.pop("protocol")
    ends = ["_round1", "_round2", "_min", "_mean", "_std", "_halves", "_gaussian"]
    assert set(found) == {f"{name}16_pixel{end}" for name in ("fd", "cmmd") for end in ends}
    expected = [found[f"cmmd16_pixel{end}"] for end in ("_min", "_mean", "_std", "_halves", "_gaussian")]
    assert [float(cell) for cell in row] == pytest.approx(expected, rel=1e-3)
    assert found["cmmd16_pixel_min"] == min(found["cmmd16_pixel_round1"], found["cmmd16_pixel_round2"])
    assert "cmmd: of 20 images at most." in output
    assert protocol["better"] == {"fd16_pixel": "lower", "cmmd16_pixel": "lower"}
    assert protocol["extractors"][0]["score_classes"] == [{"class": "test_scored_runs.CMMD", "sigma": 4.0}]
    # By its definition, of the same images.
    model = load_checkpoint(str(double_ckpt), {"sampler.grid.steps": 2}).model("ema").double()
    samples = quantise(model.sample(model.sampler, range(16)))
    pixels, order = Digits().train_images().as_tensor(), random_order(1797, 0)
    data = Pixels()(pixels[order[:20]])[0]
    truth = cmmd_by_loops(Pixels()(samples)[0], data, 4.0)
    assert found["cmmd16_pixel_round1"] == pytest.approx(truth, rel=1e-6)
    # Another setting is another score: its rounds are sampled again.
    here(*options(double_ckpt, tmp_path, *more, chosen % 5))
    assert "holds rounds of a test that differs in score_classes: all rounds are sampled" in capsys.readouterr().out
    assert scores(tmp_path)["cmmd16_pixel_round1"] != found["cmmd16_pixel_round1"]


def test_statistics_of_a_configuration_have_its_scores(tmp_path) -> None:
    path, chosen = tmp_path / "stats.npz", "--override+=scores.scores=[test_scored_runs.CMMD]"
    here("reference-stats", str(DIGITS), str(path), "--extractor=Pixels", "--device=cpu", chosen)
    with np.load(path) as file:
        facts = json.loads(file["facts"].item())
    assert [list(values) for values in facts["companions"].values()] == [["cmmd"], [], ["cmmd"]]


def test_extractors_are_chosen_by_the_datas_resolution() -> None:
    """A configuration of one's own needs to name none."""
    for size, expected in ((8, Pixels), (32, Pixels), (64, InceptionFeatures)):
        assert [type(e) for e in ScoreSamples().extractors(SimpleNamespace(resolution=size))] == [expected]
    named = [Pixels()]
    assert ScoreSamples(named).extractors(SimpleNamespace(resolution=64)) == named


def test_a_test_without_extractors_scores_pixels_of_digits(double_ckpt, tmp_path) -> None:
    config = yaml.safe_load(DIGITS.read_text())
    del config["scores"]["extractors"]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(config))
    arguments = [f"--config={tmp_path / 'own.yaml'}" if a.startswith("--config") else a for a in SMALL]
    arguments = [a for a in arguments if not a.startswith("--scores.extractors")]
    where = [f"--trainer.default_root_dir={tmp_path}", f"--ckpt_path={double_ckpt}", "--trainer.precision=64-true"]
    here("test", *arguments, *QUICK, *where)
    assert "fd16_pixel" in scores(tmp_path)


def test_progress_counts_the_images_of_each_round(double_ckpt, tmp_path, capsys) -> None:
    here(*options(double_ckpt, tmp_path, "--scores.batch_size=5", "--trainer.enable_progress_bar=true"))
    here(*options(double_ckpt, tmp_path, "--scores.batch_size=5", "--scores.rounds=2"))
    first, second = re.split("written to", capsys.readouterr().out)[:2]
    for output, title in ((first, "Round 1 of 1"), (second, "Round 2 of 2")):
        assert re.search(title + r": 100%.* 16/16 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+ images/s\]", output)
        assert "/?" not in output
        assert "it/s" not in output
    assert "Round 1 of 2:" not in second


def test_help_mentions_the_short_options(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["test", "--help"])
    text = capsys.readouterr().out
    assert "--rounds N is --scores.rounds N" in text
    assert "--num_images N is" in text
