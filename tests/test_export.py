"""`warm export`: the folder gives the same samples as the checkpoint, and says what it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from small import DIGITS, SMALL, here
from test_checkpoints import NETWORK, last, samples

from warm_lightning import load_checkpoint, load_config
from warm_lightning.checkpoints import EMA_PREFIX, RAW_PREFIX, SECTION, read_checkpoint, without_prefix
from warm_lightning.cli import main
from warm_lightning.errors import UserError

FILES = ["README.md", "config.yaml", "model.safetensors"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run that was scored."""
    folder = tmp_path_factory.mktemp("run")
    here("fit", *SMALL, "--model.duration=320", f"--trainer.default_root_dir={folder}")
    here("test", *SMALL, f"--trainer.default_root_dir={folder}")
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    here("export", str(last(run)), str(run / "exported"))
    return run / "exported"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_samples_are_those_of_the_checkpoint(run: Path, exported: Path, tmp_path: Path) -> None:
    module = load_checkpoint(exported)
    assert torch.equal(samples(module), samples(load_checkpoint(last(run))))
    assert module.images_seen == 320
    assert torch.equal(samples(load_checkpoint(exported / "config.yaml")), samples(module))
    for i, path in enumerate((last(run), exported)):
        here("generate", f"--ckpt_path={path}", "--seeds=0-3", f"--outdir={tmp_path / str(i)}")
    assert contents(tmp_path / "0") == contents(tmp_path / "1")


def test_scores_are_those_of_the_checkpoint(run: Path, exported: Path, tmp_path: Path) -> None:
    here("test", *SMALL, f"--ckpt_path={exported}", f"--trainer.default_root_dir={tmp_path}")
    ours, theirs = (json.loads((folder / "scores.json").read_text()) for folder in (tmp_path, run))
    assert ours["protocol"].pop("ckpt_path") != theirs["protocol"].pop("ckpt_path")
    assert ours == theirs


def test_weights_are_what_they_are_called(run: Path, exported: Path, tmp_path: Path) -> None:
    here("export", str(last(run)), str(tmp_path / "raw"), "--weights=raw")
    state = read_checkpoint(last(run))["state_dict"]
    for folder, prefix, name in ((exported, EMA_PREFIX, "ema"), (tmp_path / "raw", RAW_PREFIX, "raw")):
        saved = load_file(folder / "model.safetensors")
        assert saved.keys() == without_prefix(state, prefix).keys()
        assert all(torch.equal(tensor, saved[n]) for n, tensor in without_prefix(state, prefix).items())
        assert yaml.safe_load((folder / "config.yaml").read_text())["weights"] == name


def test_weights_that_are_not_there_are_not_replaced(
    run: Path, exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["generate", f"--ckpt_path={exported}", "--seeds=0", f"--outdir={tmp_path}", "--weights=raw"]) == 2
    assert main(["test", *SMALL, f"--ckpt_path={exported}", "--scores.weights=raw"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warm")]
    assert len(lines) == 2
    assert all("ask for weights ema" in line for line in lines)


def test_equal_bytes_in_an_empty_folder_and_nothing_else(run: Path, exported: Path, tmp_path: Path) -> None:
    (tmp_path / "again").mkdir()
    here("export", str(last(run)), str(tmp_path / "again"))
    assert contents(tmp_path / "again") == contents(exported)
    assert sorted(contents(exported)) == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_what_is_there_is_left_alone(run: Path, exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(exported)
    capsys.readouterr()
    assert main(["export", str(last(run)), str(exported), "--weights=raw"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert contents(exported) == before


def test_card_describes_model_training_and_scores(run: Path, exported: Path) -> None:
    card = (exported / "README.md").read_text()
    scores = json.loads((run / "scores.json").read_text())
    parameters = sum(p.numel() for p in load_checkpoint(exported).model().network.parameters())
    for word in ("Digits", "Images seen: 320", "DDPMpp", f"{parameters:,}", "Warm", "batch_size: 32", "Licence", "nfe"):
        assert word in card
    for name in scores:
        assert name == "protocol" or name in card
    assert yaml.safe_load(card.split("```yaml\n")[1].split("```")[0]) == load_checkpoint(last(run)).config


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_the_cards_instructions_work(weights: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "model"
    here("export", str(last(run)), str(folder), f"--weights={weights}")
    card = (folder / "README.md").read_text().replace("path/of/this/folder", str(folder))
    names: dict[str, Any] = {}
    exec(card.split("```python\n")[1].split("```")[0], names)
    assert names["images"].shape == (4, 1, 8, 8)
    (command,) = (line.split() for line in card.splitlines() if line.startswith("    warm generate"))
    here(*command[1:])
    assert len(list((tmp_path / "samples").glob("*.png"))) == 64


def test_without_a_run_the_card_says_so(run: Path, tmp_path: Path, reference_dir: Path) -> None:
    here("convert-edm", str(reference_dir / "edm_snapshot.pkl"), str(tmp_path / "edm.ckpt"))
    here("export", str(tmp_path / "edm.ckpt"), str(tmp_path / "edm"))
    card = (tmp_path / "edm" / "README.md").read_text()
    for word in (
        "EDM snapshot",
        "edm_snapshot.pkl",
        "Images seen: unknown",
        "Data: unknown",
        "`warm test` was not run",
    ):
        assert word in card


def test_scores_of_other_weights_are_called_so(run: Path, tmp_path: Path) -> None:
    here("export", str(last(run)), str(tmp_path / "raw"), "--weights=raw")
    assert (
        "scores of other weights: weights was ema, and here it is raw" in (tmp_path / "raw" / "README.md").read_text()
    )


def test_a_folder_of_raw_weights_is_never_taken_for_averaged_ones(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = tmp_path / "raw"
    here("export", str(last(run)), str(raw), "--weights=raw")
    module = load_checkpoint(raw)
    with pytest.raises(UserError, match="ask for weights raw"):
        module.model()
    assert torch.equal(samples(module, "raw"), samples(load_checkpoint(last(run)), "raw"))
    with pytest.raises(UserError, match="needs the ema weights"):
        load_config(DIGITS, {**NETWORK, "model.init_from": str(raw)})
    capsys.readouterr()
    assert main(["validate", *SMALL, f"--ckpt_path={raw}", f"--trainer.default_root_dir={tmp_path}"]) == 2
    assert main(["export", str(raw), str(tmp_path / "ema")]) == 2
    validate, export = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warm")]
    assert "needs the ema weights" in validate  # which it has no option for
    assert "ask for weights raw" in export
    here("export", str(raw), str(tmp_path / "again"), "--weights=raw")
    assert contents(raw)["model.safetensors"] == contents(tmp_path / "again")["model.safetensors"]


def unlike(run: Path, tmp_path: Path, folder: str, **model: object) -> str:
    """The card of a run's checkpoint, copied into a folder of another run's whose settings differ in some."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"] |= model
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "scores.json").write_bytes((run / "scores.json").read_bytes())
    copy = tmp_path / folder / "copy.ckpt"
    copy.write_bytes(last(run).read_bytes())
    here("export", str(copy), str(tmp_path / "exported"))
    return (tmp_path / "exported" / "README.md").read_text()


@pytest.mark.parametrize(
    ("folder", "model", "known"),
    [
        ("checkpoints", {}, True),
        ("checkpoints", {"duration": 1e6, "guidance": 2.0, "compile": True}, True),
        ("checkpoints", {"lr": 0.5}, False),
        ("checkpoints", {"process": {"class_path": "warm_lightning.processes.Hot"}}, False),
        ("downloads", {}, False),
    ],
)
def test_the_card_does_not_speak_of_another_run(
    folder: str, model: dict[str, object], known: bool, run: Path, tmp_path: Path
) -> None:
    card = unlike(run, tmp_path, folder, **model)
    assert ("Data: Digits" in card) == known
    assert ("Data: unknown" in card) != known
    assert ("`warm test` was not run" in card) != known


def test_the_card_of_edms_weights_speaks_of_no_run(run: Path, tmp_path: Path, reference_dir: Path) -> None:
    """Even in the folder of a run with the very same settings."""
    path = tmp_path / "checkpoints" / "edm.ckpt"
    here("convert-edm", str(reference_dir / "edm_snapshot.pkl"), str(path))
    settings = {"model": read_checkpoint(path)[SECTION]["config"], "data": {"class_path": "Digits"}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    here("export", str(path), str(tmp_path / "edm"))
    assert "Data: unknown" in (tmp_path / "edm" / "README.md").read_text()


def test_an_exported_model_can_be_started_from(exported: Path) -> None:
    module, _ = load_config(DIGITS, {**NETWORK, "model.init_from": str(exported)})
    assert torch.equal(samples(module), samples(load_checkpoint(exported)))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors: no such file"),
        (lambda f: (f / "config.yaml").unlink(), "config.yaml: no such file"),
        (lambda f: (f / "config.yaml").write_text("a: ["), "damaged"),
        (lambda f: (f / "config.yaml").write_text("[]"), "not the configuration"),
        (lambda f: (f / "config.yaml").write_text("!!python/object/apply:os.system ['true']"), "damaged"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}"), "damaged"),
        (lambda f: flip(f / "model.safetensors"), "not the file that config.yaml was written with"),
        (lambda f: (f / "config.yaml").write_text(short(f / "config.yaml")), "lacks images_seen"),
        (lambda f: age(f / "config.yaml"), "format 99"),
    ],
)
def test_damaged_folders_get_one_line(harm: Callable[[Path], None], words: str, exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name, content in contents(exported).items():
        (folder / name).write_bytes(content)
    harm(folder)
    with pytest.raises(UserError, match=words) as raised:
        load_checkpoint(folder)
    assert "\n" not in str(raised.value)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def short(path: Path) -> str:
    return yaml.safe_dump({n: v for n, v in yaml.safe_load(path.read_text()).items() if n != "images_seen"})


def age(path: Path) -> None:
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "format_version": 99}))


def test_the_card_says_that_scores_have_other_settings(run: Path, exported: Path, tmp_path: Path) -> None:
    assert "other settings" not in (exported / "README.md").read_text()
    shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("exported"))
    where = [f"--trainer.default_root_dir={tmp_path / 'run'}", "--model.sampler.grid.steps=3"]
    here("test", *SMALL, *where)
    here("export", str(last(tmp_path / "run")), str(tmp_path / "card"))
    card = (tmp_path / "card" / "README.md").read_text()
    assert "These are scores with other settings: sampler was" in card
