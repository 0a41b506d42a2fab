"""Paths that users give: `~`, variables and remote addresses, in every command, in YAML and in Lightning's settings."""

import ast
import inspect
import typing
from argparse import ArgumentError
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer
from lightning.pytorch import callbacks, loggers, profilers
from small import REPOSITORY, SMALL, here

from experiments.__main__ import main as experiments
from warm_lightning import paths
from warm_lightning.callbacks import ScoreSamples
from warm_lightning.cli import OTHER_COMMANDS, main
from warm_lightning.commands import command_function, command_parser
from warm_lightning.config import resolved_config
from warm_lightning.data import CIFAR10, FFHQ, HuggingFaceImages, ImageFolder, LSUNChurch
from warm_lightning.errors import UserError
from warm_lightning.metrics import InceptionFeatures, TorchScriptFeatures
from warm_lightning.module import DiffusionModule
from warm_lightning.paths import LIGHTNING_PATHS, CheckpointText, PathText, expand

NOT_PATHS = {
    "accelerator", "bnrs", "device", "devices", "labels", "license", "override", "precision", "seeds", "settings",
    "weights",
}  # fmt: skip
"""Parameters of commands and classes that are text or may be, and no paths."""
CLASSES = (
    DiffusionModule,
    ImageFolder,
    FFHQ,
    LSUNChurch,
    CIFAR10,
    HuggingFaceImages,
    ScoreSamples,
    InceptionFeatures,
    TorchScriptFeatures,
)
TEXT_OF_CLASSES = {
    DiffusionModule: {"precision"},
    HuggingFaceImages: {"config_name", "split", "held_out_split", "image_column", "label_column", "revision"},
    ScoreSamples: {"weights"}, TorchScriptFeatures: {"name", "kwargs", "frechet_name"},
}  # fmt: skip


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory, at which the variable PLACE points too; the working directory is another one."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PLACE", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "home"


def parts(annotation: Any) -> list[Any]:
    """The types that an annotation is made of."""
    return [annotation, *(part for inner in typing.get_args(annotation) for part in parts(inner))]


def of_type(function: Callable[..., Any], *kinds: Any) -> set[str]:
    """The parameters of a function whose annotations have one of these types."""
    hints = typing.get_type_hints(function)
    return {
        name for name in inspect.signature(function).parameters if any(kind in parts(hints.get(name)) for kind in kinds)
    }


@pytest.mark.parametrize("command", OTHER_COMMANDS)
def test_every_path_of_a_command_is_expanded(command: str, home: Path) -> None:
    function = command_function(command)
    assert of_type(function, str) <= NOT_PATHS, "a new parameter: annotate it as PathText, or name it in NOT_PATHS"
    names = of_type(function, PathText, CheckpointText, Path)
    assert names or command == "describe"
    parser = command_parser(command)
    required = {p.name: p for p in inspect.signature(function).parameters.values() if p.default is p.empty}
    for form in ("~/x", "$PLACE/x", "${PLACE}/x", "s3://x", "file:/x"):
        words = dict.fromkeys(names, form) | {
            name: "0" for name in required if name not in names and name != "settings"
        }
        positional = [word for name, word in words.items() if name in required and required[name].kind < 3]
        options = [f"--{name}={w}" for name, w in words.items() if name not in required or required[name].kind == 3]
        if ":" in form:
            with pytest.raises((UserError, ArgumentError), match="remote"):
                parser.parse_args([*positional, *options])
        else:
            parsed = parser.parse_args([*positional, *options])
            assert {str(getattr(parsed, name)) for name in names} <= {str(home / "x")}


def test_every_path_of_a_class_is_annotated() -> None:
    """The other half of the promise, that such parameters are expanded, is above and below."""
    for kind in CLASSES:
        assert of_type(kind.__init__, PathText, CheckpointText), kind
        assert of_type(kind.__init__, str) <= TEXT_OF_CLASSES.get(kind, set()), kind


def test_every_path_of_lightning_is_known() -> None:
    classes = [c for m in (loggers, callbacks, profilers) for c in vars(m).values() if inspect.isclass(c)]
    found = set()
    for kind in (Trainer, *classes):
        try:
            found |= of_type(kind.__init__, Path)
        except NameError:  # a type of a package that is not installed
            continue
    assert found >= {"default_root_dir", "save_dir", "dirpath"}
    assert found <= LIGHTNING_PATHS


def test_paths_in_yaml_are_expanded(home: Path) -> None:
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": "$PLACE/logs"}}
    config = {
        "trainer": {"default_root_dir": "~/run", "logger": [logger]},
        "data": {"class_path": "ImageFolder", "init_args": {"path": "~/a.zip", "held_out_path": "${PLACE}/b.zip"}},
        "model": {"init_from": "~/start.ckpt"},
        "scores": {"reference_stats": ["~/a.npz", None], "extractors": [{"class_path": "Pixels"}]},
    }
    file = home / "own.yaml"
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    base = [option for option in SMALL if not option.startswith(("--data", "--scores"))]
    resolved = resolved_config([*base, f"--config={file}"])
    assert resolved["trainer"]["default_root_dir"] == str(home / "run")
    assert resolved["trainer"]["logger"][0]["init_args"]["save_dir"] == str(home / "logs")
    assert resolved["data"]["init_args"]["path"] == str(home / "a.zip")
    assert resolved["data"]["init_args"]["held_out_path"] == str(home / "b.zip")
    assert resolved["model"]["init_from"] == str(home / "start.ckpt")
    assert resolved["scores"]["reference_stats"] == [str(home / "a.npz"), None]


@pytest.mark.parametrize("folder", ["~/run", "$PLACE/run"])
def test_a_run_at_home_goes_on_and_is_not_overwritten(
    folder: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (home / "own.yaml").write_text("model: {lr: 0.002}", encoding="utf-8")
    fit = ["fit", *SMALL, "--config=~/own.yaml", f"--trainer.default_root_dir={folder}"]
    here(*fit, "--model.duration=32")
    last = home / "run" / "checkpoints" / "last.ckpt"
    first = torch.load(last, weights_only=True)
    assert main([*fit, "--model.duration=64"]) == 2
    assert "already holds a run" in capsys.readouterr().err
    here(*fit, "--model.duration=64", "--ckpt_path=last")
    second = torch.load(last, weights_only=True)
    assert (first["warm_lightning"]["images_seen"], second["warm_lightning"]["images_seen"]) == (32, 64)
    assert second["global_step"] == 2 * first["global_step"]
    here("generate", f"--ckpt_path={folder}/checkpoints/last.ckpt", "--seeds=0", f"--outdir={folder}/images")
    assert (home / "run" / "images" / "000000.png").exists()
    assert not list(Path.cwd().iterdir())


OF_CHECKPOINTS = ("--ckpt_path", "--model.init_from")
OF_PATHS = (
    "--trainer.default_root_dir", "--config", "--scores.reference_stats", "--data=ImageFolder --data.path",
    "--trainer.logger=CSVLogger --trainer.logger.save_dir",
)  # fmt: skip
REMOTE = [(option, address) for option in OF_PATHS + OF_CHECKPOINTS for address in ("s3://bucket/x", "file:///x")]
REMOTE += [(option, "hf://a/b") for option in OF_PATHS]  # which checkpoints may be read from


@pytest.mark.parametrize(
    ("option", "address"),
    REMOTE + [(option, address) for option in OF_PATHS + OF_CHECKPOINTS for address in ("$NO_SUCH_VARIABLE/x", "")],
)
def test_what_is_no_local_path_is_refused_in_one_line(
    option: str, address: str, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *SMALL, *f"{option}={address}".split(" ")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warm")]
    assert len(lines) == 1
    assert (address or "empty") in lines[0]
    assert not list(Path.cwd().iterdir())


def test_names_that_hold_signs_are_taken_as_they_are(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = Path("price$list.zip")
    name.touch()
    assert expand(name) == name
    assert expand("~/price:list") == home / "price:list"
    assert expand("../work/./a") == Path("../work/a")  # relative paths and links stay
    for text in ("~nobody-of-this-name/x", "$NO_SUCH_VARIABLE/x", "${NO_SUCH_VARIABLE}/x"):
        with pytest.raises(UserError, match=r"nobody|NO_SUCH_VARIABLE"):
            expand(text)


def test_experiments_expand_their_paths(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (REPOSITORY / "experiments").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument":
                kind = {k.arg: k.value for k in node.keywords}.get("type")
                assert not isinstance(kind, ast.Name) or kind.id != "Path", file
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(SystemExit) as end:
        experiments(["run", "table3_bnr", "--out=s3://bucket"])
    assert end.value.code == 2
    assert "remote" in capsys.readouterr().err
    assert experiments(["run", "table3_bnr", "--data=digits", "--out=~/out", "--plan"]) == 0
    assert f"--trainer.default_root_dir={home / 'out'}" in capsys.readouterr().out


def test_nothing_else_expands_paths() -> None:
    """One place does, so that no two places differ."""
    for file in (REPOSITORY / "warm_lightning").rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert file == Path(paths.__file__) or not ("expanduser" in text or "expandvars" in text), file
