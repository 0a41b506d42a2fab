"""Checkpoint formats, and starting from another checkpoint's weights."""

import re
import shutil
from pathlib import Path
from typing import IO, Any

import pytest
import torch
import yaml
from small import DIGITS, REPOSITORY, SMALL, here, refusal

from warm_lightning import load_checkpoint, load_config
from warm_lightning.checkpoints import (
    EMA_PREFIX,
    FORMAT_VERSION,
    RAW_PREFIX,
    SECTION,
    read_checkpoint,
    without_prefix,
    write_checkpoint,
)
from warm_lightning.cli import main
from warm_lightning.errors import UserError
from warm_lightning.module import DiffusionModule

HOT = f"--config={REPOSITORY / 'configs' / 'method' / 'hot.yaml'}"
NETWORK = {"model.network.model_channels": 8, "model.network.channel_mult": [1, 2]}


def last(folder: Path) -> Path:
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run of a hot model, trained long enough that EMA and raw weights differ."""
    folder = tmp_path_factory.mktemp("hot")
    here("fit", *SMALL, HOT, "--model.duration=320", f"--trainer.default_root_dir={folder}")
    return folder


def altered(checkpoint: Path, folder: Path, **section: Any) -> Path:
    """A copy of a checkpoint with other entries in its own section; None removes one."""
    contents = torch.load(checkpoint, weights_only=True)
    own = {**contents[SECTION], **section}
    contents[SECTION] = {name: value for name, value in own.items() if value is not None or name not in section}
    torch.save(contents, folder / "altered.ckpt")
    return folder / "altered.ckpt"


def samples(module: DiffusionModule, weights: Any = "ema") -> torch.Tensor:
    model = module.model(weights)
    return model.sample(model.sampler, [0, 1])


# ---------------------------------------------------------------------- format


def test_format_1_is_migrated(hot: Path, tmp_path: Path) -> None:
    """As written before `source` was there; by every way in: loading, going on, scoring."""
    folder = tmp_path / "run"
    here("fit", *SMALL, HOT, "--model.duration=64", f"--trainer.default_root_dir={folder}")
    old = torch.load(last(folder), weights_only=True)
    assert old[SECTION].pop("source") is None
    old[SECTION]["format_version"] = 1
    torch.save(old, last(folder))
    assert read_checkpoint(last(folder))[SECTION]["format_version"] == FORMAT_VERSION
    assert read_checkpoint(last(folder))[SECTION]["source"] is None
    assert load_checkpoint(last(folder)).images_seen == 64
    here("test", *SMALL, HOT, f"--trainer.default_root_dir={folder}")
    here("fit", *SMALL, HOT, "--model.duration=320", f"--trainer.default_root_dir={folder}", "--ckpt_path=last")
    a, b = read_checkpoint(last(hot))["state_dict"], read_checkpoint(last(folder))["state_dict"]
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("version", [99, "two", 0, None, [1]])
def test_unknown_formats_are_refused_by_number(version: Any, hot: Path, tmp_path: Path) -> None:
    path = altered(last(hot), tmp_path, format_version=version, package_version="9.9.9")
    with pytest.raises(UserError, match=rf"format {re.escape(str(version))}.*reads 1 to {FORMAT_VERSION}.*9\.9\.9"):
        read_checkpoint(path)


def test_the_folder_of_a_run_stands_for_its_last_checkpoint(
    hot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every way in: loading, exporting with the run's data in the card, scoring, going on."""
    assert torch.equal(samples(load_checkpoint(hot)), samples(load_checkpoint(last(hot))))
    for source in (hot, last(hot)):
        here("export", str(source), str(tmp_path / source.name))
    assert (tmp_path / hot.name / "README.md").read_text() == (tmp_path / "last.ckpt" / "README.md").read_text()
    capsys.readouterr()
    here(
        "test",
        *SMALL,
        HOT,
        "--model.duration=320",
        "--scores.num_images=16",
        f"--trainer.default_root_dir={tmp_path}",
        f"--ckpt_path={hot}",
    )
    assert "ema weights after 320 images" in capsys.readouterr().out
    (tmp_path / "last").mkdir()  # a run of this name is not what `--ckpt_path last` means
    shutil.copytree(hot / "checkpoints", tmp_path / "last" / "checkpoints")
    copy = tmp_path / "copy"
    shutil.copytree(hot, copy)
    here("fit", *SMALL, HOT, "--model.duration=384", f"--trainer.default_root_dir={copy}", f"--ckpt_path={copy}")
    assert read_checkpoint(copy)[SECTION]["images_seen"] == 384
    monkeypatch.chdir(tmp_path)
    here("fit", *SMALL, HOT, "--model.duration=448", "--trainer.default_root_dir=copy", "--ckpt_path=last")
    assert read_checkpoint("copy")[SECTION]["images_seen"] == 448
    with pytest.raises(UserError, match=r"the folder of a run that has a checkpoint, or one that `warm export` wrote"):
        read_checkpoint(tmp_path)


# ---------------------------------------------------------------------- init_from


def test_hot_weights_in_two_branches_are_the_hot_model_at_bnr_0(hot: Path) -> None:
    before = load_checkpoint(last(hot))
    start = {**NETWORK, "model.init_from": str(last(hot)), "model.process.path.bnr": 0.0}
    module, _ = load_config(DIGITS, start)
    assert module.network.branches == 2
    for weights in ("ema", "raw"):
        # float32, in which another number of output channels may be summed in another order
        torch.testing.assert_close(samples(module, weights), samples(before), rtol=0, atol=1e-5)
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert not module.network(x, torch.zeros(2))[:, 1].any()
    assert (samples(before, "raw") - samples(before)).abs().max() > 1e-3  # it is the averaged weights that were taken


def test_the_same_branches_are_copied(hot: Path) -> None:
    module, _ = load_config(
        [DIGITS, Path(HOT.removeprefix("--config="))], {**NETWORK, "model.init_from": str(last(hot))}
    )
    saved = without_prefix(read_checkpoint(last(hot))["state_dict"], EMA_PREFIX)
    assert all(torch.equal(saved[name], tensor) for name, tensor in module.network.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.network.model_channels": 16}, "init_from.*map_layer0.weight"),
        ({"model.network.num_blocks": 2}, "init_from.*block1.*absent"),
        ({"model.network.augment_dim": 9}, "init_from.*map_augment.weight is absent"),
        ({"model.init_from": "nowhere.ckpt"}, r"nowhere\.ckpt"),
    ],
)
def test_other_networks_are_refused(changes: dict[str, Any], words: str, hot: Path) -> None:
    with pytest.raises(UserError, match=words) as raised:
        load_config(DIGITS, {**NETWORK, "model.init_from": str(last(hot)), **changes})
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.network.channels_per_head": 4}, r"channels_per_head is None there and 4 here"),
        (
            {"model.preconditioning.sigma_data": 0.9},
            r"preconditioning\.init_args\.sigma_data is .* there and 0\.9 here",
        ),
    ],
)
@pytest.mark.parametrize("branches", [1, 2])
def test_weights_that_mean_something_else_are_refused(
    changes: dict[str, Any], words: str, branches: int, hot: Path
) -> None:
    """Networks of the same shapes, in which the weights would be taken for what they are not."""
    files = [DIGITS, Path(HOT.removeprefix("--config="))][: 3 - branches]
    with pytest.raises(UserError, match=words) as raised:
        load_config(files, {**NETWORK, "model.init_from": str(last(hot)), **changes})
    assert "\n" not in str(raised.value)


def test_outputs_that_mean_something_else_are_refused(hot: Path, tmp_path: Path) -> None:
    """One branch there and one here, but another parameterization; of two branches the first may be what it was."""
    config = read_checkpoint(last(hot))[SECTION]["config"]
    other = altered(last(hot), tmp_path, config=config | {"parameterization": {"class_path": "elsewhere.Noise"}})
    with pytest.raises(
        UserError, match=r"model\.parameterization\.class_path is elsewhere\.Noise there and .*Denoiser"
    ):
        load_config([DIGITS, Path(HOT.removeprefix("--config="))], {**NETWORK, "model.init_from": str(other)})
    load_config(DIGITS, {**NETWORK, "model.init_from": str(other)})
    other = altered(last(hot), tmp_path, config=config | {"preconditioning": SIGMA})
    with pytest.raises(UserError, match=r"sigma_data is 0\.9 there"):
        load_config([DIGITS, Path(HOT.removeprefix("--config="))], {**NETWORK, "model.init_from": str(other)})


SIGMA = {"class_path": "warm_lightning.preconditioning.EDMPreconditioning", "init_args": {"sigma_data": 0.9}}


def test_settings_without_effect_may_differ(hot: Path) -> None:
    changes = {"dropout": 0.3, "activation_checkpointing": True, "attn_resolutions": [4, 64]}
    start = {f"model.network.{name}": value for name, value in changes.items()}
    load_config(DIGITS, {**NETWORK, **start, "model.init_from": str(last(hot))})


def test_two_branches_do_not_fit_into_one(hot: Path, tmp_path: Path) -> None:
    here("fit", *SMALL, "--model.duration=32", f"--trainer.default_root_dir={tmp_path}")
    with pytest.raises(UserError, match=r"aux_conv\.weight"):
        load_config([DIGITS, Path(HOT.removeprefix("--config="))], {**NETWORK, "model.init_from": str(last(tmp_path))})


def test_a_started_run_goes_on_without_the_file(hot: Path, tmp_path: Path) -> None:
    """Resumed weights equal those of an uninterrupted run; the file is needed neither to resume nor to sample."""
    start = tmp_path / "start.ckpt"
    start.write_bytes(last(hot).read_bytes())
    run = ["fit", *SMALL, f"--model.init_from={start}", "--ckpt_path=last"]
    here(*run, "--model.duration=96", f"--trainer.default_root_dir={tmp_path / 'straight'}")
    here(*run, "--model.duration=64", f"--trainer.default_root_dir={tmp_path / 'twice'}")
    start.unlink()
    here(*run, "--model.duration=96", f"--trainer.default_root_dir={tmp_path / 'twice'}")
    a, b = (read_checkpoint(last(tmp_path / name))["state_dict"] for name in ("straight", "twice"))
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert samples(load_checkpoint(last(tmp_path / "twice"))).isfinite().all()
    for said in (
        read_checkpoint(last(tmp_path / "twice"))[SECTION]["config"]["init_from"],
        config_of(tmp_path / "twice"),
    ):
        assert said == str(start)  # where the weights came from is not forgotten


def config_of(folder: Path) -> str:
    return yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_from"]


@pytest.mark.parametrize("name", ["there.ckpt", "folder", "link.ckpt", "model.yaml", "model.yml"])
def test_only_new_files_are_written(name: str, tmp_path: Path) -> None:
    """Nothing that is there is lost, and nothing is left beside it; what is written can be read by its name."""
    (tmp_path / "there.ckpt").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.ckpt").symlink_to("nowhere")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match=re.escape(name)) as raised:
        write_checkpoint(tmp_path / name, {}, {})
    assert "\n" not in str(raised.value)
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "there.ckpt").read_text() == "precious"


@pytest.mark.parametrize("error", [OSError, RuntimeError, KeyboardInterrupt])
def test_nothing_unfinished_is_left(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any, file: IO[bytes]) -> None:
        file.write(b"half")
        raise error("The file cannot be written to.")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises((UserError, KeyboardInterrupt)) as raised:
        write_checkpoint(tmp_path / "new.ckpt", {}, {})
    assert isinstance(raised.value, KeyboardInterrupt) or str(tmp_path / "new.ckpt") in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_weights_alone_cannot_be_resumed(hot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    contents = torch.load(last(hot), weights_only=True)
    del contents["optimizer_states"]
    torch.save(contents, tmp_path / "weights.ckpt")
    capsys.readouterr()
    assert (
        main(["fit", *SMALL, HOT, f"--ckpt_path={tmp_path / 'weights.ckpt'}", f"--trainer.default_root_dir={tmp_path}"])
        == 2
    )
    assert "--model.init_from" in capsys.readouterr().err


def test_raw_and_averaged_weights_stand_under_their_names(hot: Path) -> None:
    state = read_checkpoint(last(hot))["state_dict"]
    assert (
        without_prefix(state, RAW_PREFIX).keys()
        == without_prefix(state, EMA_PREFIX).keys()
        == load_checkpoint(last(hot)).model().network.state_dict().keys()
    )


# ---------------------------------------------------------------------- settings beside a checkpoint


@pytest.mark.parametrize("command", ["test", "validate"])
def test_weights_are_not_scored_as_those_of_another_model(
    hot: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    options = [*SMALL, HOT, f"--trainer.default_root_dir={hot}", "--model.preconditioning.sigma_data=0.1"]
    assert "its weights mean something else" in refusal(capsys, command, *options)


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("seed=9", "only training depends on it"),
        ("label_dropout=0.1", "only training depends on it"),
        ("loss=SquaredError", "only training depends on it"),
        ("preconditioning.sigma_data=0.1", "its weights mean something else"),
        ("parameterization=Epsilon", "its weights mean something else"),
    ],
)
def test_overrides_are_of_sampling(
    hot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, named: str
) -> None:
    options = [f"--ckpt_path={last(hot)}", "--seeds=0", f"--outdir={tmp_path}", f"--override+={setting}"]
    assert named in refusal(capsys, "generate", *options)
    assert not list(tmp_path.iterdir())
