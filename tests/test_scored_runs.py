"""What `warm test` refuses and puts down, so that nobody takes its scores for something else."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from lightning import Trainer
from small import SMALL, here
from test_rounds import options, scores

from warm_lightning.callbacks import ScoreSamples
from warm_lightning.callbacks.rounds import FILE, reference_identity
from warm_lightning.checkpoints import EMA, part, read
from warm_lightning.cli import main
from warm_lightning.data import Digits
from warm_lightning.data.datamodule import TestPlan as Plan  # not a test, whatever pytest thinks of its name
from warm_lightning.errors import UserError
from warm_lightning.metrics import Observer, Pixels, Reference, Scores
from warm_lightning.metrics.distances import Normal
from warm_lightning.module import DiffusionModule
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
    callback.setup(Trainer(**settings, limit_test_batches=1.0), SimpleNamespace(), "test")
    with pytest.raises(UserError, match="limit_test_batches"):
        callback.setup(Trainer(**settings, limit_test_batches=1), SimpleNamespace(), "test")


def test_a_round_of_too_few_images_is_not_kept(double_ckpt, tmp_path, capsys, monkeypatch) -> None:
    whole = Plan.batches
    monkeypatch.setattr(Plan, "batches", lambda *args: whole(*args)[:-1])
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
    assert protocol["weights_sha256"] == tensors_hash(part(read(path)["state_dict"], EMA).items())
    here("export", str(path), str(tmp_path / "same"))
    # The same step of another run: as many images seen, other weights.
    content = torch.load(path, weights_only=True)
    next(tensor for name, tensor in content["state_dict"].items() if name.startswith(EMA)).add_(1e-3)
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
        assert callback.scores[0].observer.batch_size == expected


def test_references_of_equal_size_and_other_covariance_are_told_apart() -> None:
    def identity(*variances: float, **changes: object) -> str:
        normal = Normal(torch.zeros(4).double(), torch.tensor(variances).double().diag())
        return json.dumps(reference_identity(Scores(Observer(Pixels()), Reference(normal, "", **changes), (1, 2, 2))))

    assert identity(1, 1, 1, 1) != identity(2, 1, 1, 0)
    companions = {"halves": {"frechet": 1.0}, "gaussian": {"frechet": 2.0}}
    assert identity(1, 1, 1, 1, count=9) == identity(1, 1, 1, 1, count=9, companions=companions)


def test_help_mentions_the_short_options(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["test", "--help"])
    text = capsys.readouterr().out
    assert "--rounds N is --scores.rounds N" in text
    assert "--num_images N is" in text
