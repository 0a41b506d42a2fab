"""The `warm` program: what it refuses, and in how many words."""

import pickle
import shutil
import subprocess
import sys
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException
from PIL import Image
from small import DIGITS, REPOSITORY, SMALL, here, refusal

from warm_lightning import __version__, load_config
from warm_lightning import trainer_cli as lightning_cli
from warm_lightning.callbacks import ScoreSamples
from warm_lightning.cli import main
from warm_lightning.config import split_settings
from warm_lightning.errors import UserError
from warm_lightning.rng import parse_seeds


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run."""
    folder = tmp_path_factory.mktemp("run")
    here("fit", *SMALL, "--model.duration=64", f"--trainer.default_root_dir={folder}")
    return folder


def test_help_is_fast_because_it_imports_no_torch() -> None:
    code = "import sys; from warm_lightning.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    for command in ("fit", "validate", "test", "generate"):
        assert f"  {command} " in done.stdout


def test_version_and_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__
    assert "generate" in refusal(capsys, "fti")


@pytest.mark.parametrize("command", ["fit", "validate", "test", "generate"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) if command != "fit" else nullcontext() as end:
        assert main([command, "--help"]) == 0
    assert end is None or end.value.code == 0
    assert "--ckpt_path" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--model.network.model_chanels=8"], ["model_chanels"]),
        (["--model.process.path.bnr=-1"], ["bnr", "-1"]),
        (["--model.sampler.grid.rho=-7"], ["rho", "-7"]),
        (["--model.sampler.grid.steps=0"], ["steps", "0"]),
        (["--model.lr=fast"], ["lr", "fast"]),
        (["--model.process=Lukewarm"], ["Lukewarm"]),
        (["--data.batch_size=0"], ["batch_size"]),
        (["--data=ImageFolder", "--data.path=nowhere.zip"], ["nowhere.zip"]),
        (["--trainer.default_root_dir=/proc/nowhere"], ["/proc/nowhere"]),
        (["--samples.seeds=5-2"], ["5-2"]),
        (["--ckpt_path=nowhere.ckpt"], ["nowhere.ckpt"]),
        (["--config=nowhere.yaml"], ["nowhere.yaml"]),
        (["--model.network.resolution=16"], ["resolution", "16", "8"]),
        (["--model.network.label_dim=7"], ["label_dim", "7", "10"]),
        (["--checkpoints.every=-1"], ["every", "-1"]),
        (["--samples.every=0.5"], ["every", "0.5"]),
        (["--samples.weights=best"], ["weights", "best"]),
        (["--scores.num_images=3"], ["num_images", "3"]),
        (["--model.duration=0.5"], ["duration", "0.5"]),
        (["--model.sampler.grid.rho=0.001"], ["rho", "0.001"]),
        (["--trainer.accelerator=gpu", "--trainer.devices=64"], ["gpu"]),
        (["--trainer.precision=bf16-true"], ["precision", "bf16-mixed"]),
    ],
)
def test_fit_refuses(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    line = refusal(capsys, "fit", *SMALL, f"--trainer.default_root_dir={folder}", *arguments)
    for word in words:
        assert word in line
    assert not (folder / "checkpoints").exists()


def test_a_misspelt_key_in_a_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "wrong.yaml"
    config.write_text(DIGITS.read_text().replace("ema_half_life", "ema_half_live"))
    assert "ema_half_live" in refusal(capsys, "fit", f"--config={config}")


def png(path: Path, size: int) -> bytes:
    Image.new("L", (size, size)).save(path)
    return path.read_bytes()


@pytest.mark.parametrize("broken", ["corrupt image", "two sizes"])
def test_bad_images_are_named(broken: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = png(tmp_path / "x.png", 8)
    bad = good[: len(good) // 2] if broken == "corrupt image" else png(tmp_path / "y.png", 16)
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for i in range(40):
            archive.writestr(f"{i:02d}.png", bad if i == 17 else good)
    data = ["--data=ImageFolder", f"--data.path={tmp_path / 'images.zip'}", "--data.batch_size=32"]
    arguments = [a for a in SMALL if not a.startswith("--data")]
    line = refusal(capsys, "fit", *arguments, *data, f"--trainer.default_root_dir={tmp_path / 'run'}")
    assert "images.zip" in line
    assert "17.png" in line


def test_bad_checkpoints_are_refused_unread(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last = run / "checkpoints" / "last.ckpt"
    truncated, code, tensors = (tmp_path / name for name in ("truncated.ckpt", "code.ckpt", "tensors.ckpt"))
    truncated.write_bytes(last.read_bytes()[:5000])
    code.write_bytes(pickle.dumps({"warm_lightning": subprocess.Popen}))
    torch.save({"weight": torch.zeros(3)}, tensors)
    for path in (truncated, code, tensors):
        for command in (["test", *SMALL], ["generate", "--seeds=0", f"--outdir={tmp_path / 'out'}"]):
            assert str(path) in refusal(capsys, *command, f"--ckpt_path={path}")
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = run / "checkpoints" / "last.ckpt"
    larger = ["--model.network.model_channels=16", f"--trainer.default_root_dir={tmp_path}"]
    assert "another model" in refusal(capsys, "test", *SMALL, *larger, f"--ckpt_path={last}")
    before = (run / "config.yaml").read_text()
    resume = [*SMALL, "--model.network.model_channels=16", f"--trainer.default_root_dir={run}", "--ckpt_path=last"]
    assert "another model" in refusal(capsys, "fit", *resume)
    assert (run / "config.yaml").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--seeds=5-2"], "5-2"),
        (["--seeds=a"], "a"),
        (["--seeds=0", "--steps=0"], "steps"),
        (["--seeds=0", "--rho=-1"], "rho"),
        (["--seeds=0", "--bnr=-1"], "bnr"),
        (["--seeds=0", "--eta=-1"], "eta"),
        (["--seeds=0", "--labels=1"], "labels"),
        (["--seeds=0", "--batch_size=0"], "batch_size"),
        (["--seeds=0", "--override+=sampler.grid.stops=3"], "stops"),
        (["--seeds=0", "--outdir=/proc/nowhere"], "/proc/nowhere"),
        (["--seeds=0", "--weights=best"], "weights"),
        (["--seeds=0", "--bnr=0.5"], "plane.yaml"),
        (["--seeds=0", "--grid=/proc/nowhere/grid.png"], "/proc/nowhere"),
        (["--seeds=0", "--devices=banana"], "banana"),
    ],
)
def test_generate_refuses(
    arguments: list[str], word: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last, out = run / "checkpoints" / "last.ckpt", tmp_path / "out"
    line = refusal(capsys, "generate", f"--ckpt_path={last}", f"--outdir={out}", *arguments)
    assert word in line
    assert not out.exists() or not list(out.iterdir())


def test_a_run_is_not_overwritten(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--ckpt_path last" in refusal(capsys, "fit", *SMALL, f"--trainer.default_root_dir={run}")


def test_another_runs_checkpoint_does_not_replace_this_ones(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.ckpt"
    other.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    line = refusal(capsys, "fit", *SMALL, f"--trainer.default_root_dir={run}", f"--ckpt_path={other}")
    assert "already holds a run" in line


def test_a_monitor_that_is_no_score_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monitor = ["--checkpoints.monitor=fd_digit", "--scores.every=32", "--scores.every_num_images=16"]
    line = refusal(capsys, "fit", *SMALL, "--model.duration=64", *monitor, f"--trainer.default_root_dir={tmp_path}")
    assert "fd16_pixel" in line


def test_labels_are_checked_before_sampling(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here("fit", *SMALL, "--model.network.label_dim=10", "--model.duration=32", f"--trainer.default_root_dir={tmp_path}")
    generate = ["generate", f"--ckpt_path={tmp_path / 'checkpoints' / 'last.ckpt'}", "--seeds=0-1", "--steps=2"]
    for labels in ("0,10", "0,1,2", "cat"):
        assert "labels" in refusal(capsys, *generate, f"--labels={labels}", f"--outdir={tmp_path / 'out'}")
    assert not (tmp_path / "out").exists()
    here(*generate, "--labels=3", f"--outdir={tmp_path / 'out'}")
    assert len(list((tmp_path / "out").glob("*.png"))) == 2


def test_a_resumed_run_has_the_optimizer_that_was_typed(run: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    here(
        "fit", *SMALL, "--model.duration=96", "--model.betas=[0.5,0.9]", f"--trainer.default_root_dir={copy}",
        "--ckpt_path=last",
    )  # fmt: skip
    checkpoint = torch.load(copy / "checkpoints" / "last.ckpt", weights_only=True)
    assert list(checkpoint["optimizer_states"][0]["param_groups"][0]["betas"]) == [0.5, 0.9]


def test_a_finished_run_has_nothing_to_do(run: Path) -> None:
    before = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    here("fit", *SMALL, "--model.duration=64", f"--trainer.default_root_dir={run}", "--ckpt_path=last")
    after = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert before["global_step"] == after["global_step"] > 0


def test_options_override_the_checkpoint(run: Path, tmp_path: Path) -> None:
    generate = ["generate", f"--ckpt_path={run / 'checkpoints' / 'last.ckpt'}", "--seeds=0"]
    here(*generate, f"--outdir={tmp_path / 'a'}")
    here(*generate, f"--outdir={tmp_path / 'b'}", "--steps=2")
    a, b = ((tmp_path / name / "000000.png").read_bytes() for name in "ab")
    assert a != b


def test_seeds() -> None:
    assert parse_seeds("0-3,7") == [0, 1, 2, 3, 7]
    for wrong in ("5-2", "", "1;2", "-3", "1-"):
        with pytest.raises(UserError):
            parse_seeds(wrong)


def test_no_seed_counts_twice() -> None:
    """Nor one that is the same modulo 2³²."""
    for wrong in ("0-3,2", "1,1", "0-1,0-1", "0,4294967296"):
        with pytest.raises(UserError):
            parse_seeds(wrong)
    assert parse_seeds("3,4294967295,1") == [3, 4294967295, 1]
    assert parse_seeds("1,1", distinct=False) == [1, 1]
    with pytest.raises(UserError, match="first_seed"):
        ScoreSamples(first_seed=2**32 - 10, num_images=10, rounds=2)


@pytest.mark.parametrize(
    "text", ["model: {lr: 1}\nmodel: {lr: 2}\n", "model:\n  lr: 1\n  lr: 2\n", "- {a: 1,\n   a: 2}\n"]
)
def test_no_name_stands_twice_in_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    """The first would have no effect."""
    file = tmp_path / "twice.yaml"
    file.write_text(text)
    assert "stands twice" in refusal(capsys, "describe", f"--config={DIGITS}", f"--config={file}")


def test_load_config_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    model, data = load_config(DIGITS, {"model.lr": 3e-4, "data.batch_size": 32, "model.ema_ramp": None})
    assert (model.lr, data.batch_size, model.ema.ramp) == (3e-4, 32, None)
    assert load_config(DIGITS, {"model.betas": (0.5, 0.9), "model.compile": False})[0].betas == (0.5, 0.9)
    with pytest.raises(UserError, match="lr_rate"):
        load_config(DIGITS, {"model.lr_rate": 3e-4})
    with pytest.raises(UserError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_options_of_model_and_data_in_any_form() -> None:
    words = ["a", "--config", "x.yaml", "--config=y.yaml", "--model.lr=1", "--data", "Digits", "--models=3"]
    settings, others = split_settings([*words, "--out", "d"])
    assert settings == ["--config=x.yaml", "--config=y.yaml", "--model.lr=1", "--data=Digits"]
    assert others == ["a", "--models=3", "--out", "d"]


def test_a_terminated_training_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning's exception for SIGTERM is a SystemExit without a code, which would be 0."""

    def terminated(*arguments: object) -> None:
        raise SIGTERMException

    monkeypatch.setattr(lightning_cli, "WarmCLI", terminated)
    assert lightning_cli.run_trainer("fit", []) == 143
