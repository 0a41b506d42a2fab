"""A package that is installed from a wheel, in an environment that does not know the repository."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import yaml
from small import REPOSITORY, SMALL, here, refusal

from warm_lightning.cli import main
from warm_lightning.config import load_config, resolved_config
from warm_lightning.shipped import config_file
from warm_lightning.trainer_help import OPTIONS, default_of

SOURCES = ("warm_lightning", "configs", "experiments", "pyproject.toml", "README.md", "LICENSE")
OF_THE_REPOSITORY = ("experiments/benchmarks", "experiments/studies")
"""Programs that measure the repository itself, and are not in the wheel."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without a network from a copy, since a build leaves files in its folder."""
    folder = tmp_path_factory.mktemp("build")
    source = folder / "source"
    for name in SOURCES:
        copy = shutil.copytree if (REPOSITORY / name).is_dir() else shutil.copy
        source.mkdir(exist_ok=True)
        copy(REPOSITORY / name, source / name)
    pip("wheel", str(source), "--no-deps", "--no-build-isolation", "--no-index", f"--wheel-dir={folder}")
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel, which has its dependencies from this environment."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    # Folders in a .pth file are searched, but not their own .pth files, of which one may lead to the repository.
    (library,) = folder.glob("lib/python*/site-packages")
    (library / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    pip("--python", str(folder / "bin" / "python"), "install", "--no-deps", "--no-index", "--no-compile", str(wheel))
    return folder / "bin"


def pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def run(installed: Path, folder: Path, *arguments: str, program: str = "warm") -> subprocess.CompletedProcess[str]:
    """Run a program of the environment in a folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [installed / program, *arguments],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_wheel_has_every_file_byte_for_byte(wheel: Path) -> None:
    """A package or a kind of file that pyproject.toml does not name would be missing."""
    wanted = {}
    for folder in ("warm_lightning", "configs", "experiments"):
        for path in (REPOSITORY / folder).rglob("*"):
            name = path.relative_to(REPOSITORY).as_posix()
            if path.is_file() and path.suffix != ".pyc" and not name.startswith(OF_THE_REPOSITORY):
                wanted[name if folder == "warm_lightning" else f"warm_lightning/{name}"] = path.read_bytes()
    with zipfile.ZipFile(wheel) as archive:
        found = {name: archive.read(name) for name in archive.namelist() if ".dist-info/" not in name}
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []


def test_an_installed_package_knows_no_repository(installed: Path, tmp_path: Path) -> None:
    """Otherwise the tests below would pass with the files of the checkout."""
    code = (
        "import importlib.util as util, warm_lightning.shipped as shipped\n"
        "print(shipped.CHECKOUT, shipped.SHIPPED, util.find_spec('experiments'))"
    )
    checkout, shipped, experiments = run(installed, tmp_path, "-c", code, program="python").stdout.split()
    assert (checkout, experiments) == ("None", "None")
    assert Path(shipped).is_relative_to(installed.parent)


def test_shipped_names_train_from_anywhere(installed: Path, tmp_path: Path) -> None:
    """The process must be that of the overlay, which comes last, and not the default."""
    options = [option for option in SMALL if not option.startswith("--config")]
    done = run(installed, tmp_path, "fit", "--config", "digits", "--config=method/hot", *options, "--model.duration=64")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "digits-hot"
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    config = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    assert config["model"]["process"]["class_path"] == "warm_lightning.processes.Hot"


def test_installed_experiments_are_listed_and_run(installed: Path, tmp_path: Path) -> None:
    """A job is a process of its own, which must find the package and the configurations from the user's folder."""
    listed = run(installed, tmp_path, "experiments", "list")
    names = {line.split()[0] for line in listed.stdout.splitlines()}
    assert names == {path.stem for path in (REPOSITORY / "experiments" / "papers").glob("*.yaml")}, listed.stderr
    smoke = ["--data", "digits", "--budget", "smoke"]
    planned = run(installed, tmp_path, "experiments", "run", "table3_bnr", *smoke, "--cells=1", "--plan")
    assert planned.returncode == 0, planned.stderr
    assert "warm fit --config=digits" in planned.stdout
    assert not list(tmp_path.iterdir())
    # This one describes networks, and trains none.
    done = run(installed, tmp_path, "experiments", "run", "table6_counts", *smoke, "--cells=1")
    assert done.returncode == 0, done.stderr
    (report,) = tmp_path.glob("runs/experiments/table6_counts-digits-smoke/report.md")
    assert "warm experiments run table6_counts" in report.read_text(encoding="utf-8")


def test_nothing_given_lists_what_there_is(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "fit")
    assert done.returncode == 2
    folder = REPOSITORY / "configs"
    names = [path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")]
    lines = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert sorted(lines) == sorted(names)
    assert lines["method/hot"] == "EDM: noise only, one branch"
    assert len(done.stderr.splitlines()) == 1


def test_a_path_wins_over_a_shipped_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file of the user's must not be ignored, nor a folder of that name be taken for a file."""
    monkeypatch.chdir(tmp_path)
    shipped = REPOSITORY / "configs" / "digits.yaml"
    Path("digits").mkdir()
    assert config_file("digits") == shipped
    assert load_config("digits", {"model.lr": 1e-4})[0].lr == 1e-4
    Path("digits").rmdir()
    text = shipped.read_text(encoding="utf-8")
    Path("digits").write_text(text.replace("lr: 1.5e-3", "lr: 2.5e-3"), encoding="utf-8")
    assert config_file("digits") == Path("digits")
    assert resolved_config(["--config=digits"])["model"]["lr"] == 2.5e-3
    # No part of a path is a name, since another file may be meant: this says what the name is.
    assert "--config method/hot" in refusal(capsys, "fit", "--config", "configs/method/hot.yaml")
    assert "nowhere" in refusal(capsys, "describe", "--config", "nowhere")
    for outside in ("../pyproject", "/digits", "method/", ".", "/"):
        assert "no such file" in refusal(capsys, "describe", f"--config={outside}")


def test_every_command_takes_shipped_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    here("describe", "-c", "leaves8", "--config", "method/ddpm", "--outdir", "names")
    files = [f"--config={REPOSITORY / 'configs' / name}" for name in ("leaves8.yaml", "method/ddpm.yaml")]
    here("describe", *files, "--outdir=paths")
    names, paths = (json.loads(Path(f"{n}/describe.json").read_text(encoding="utf-8")) for n in ("names", "paths"))
    assert names["sampling"] == paths["sampling"]
    here("reference-stats", "digits", "digits.npz", "--extractor", "Pixels", "--max_neighbours", "20")
    assert Path("digits.npz").is_file()


def test_experiments_name_what_they_lack(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Users of a plain `pip install` would see the traceback of an import."""
    monkeypatch.setattr("warm_lightning.cli.find_spec", lambda name: None)
    assert "pip install 'warm-lightning[experiments]'" in refusal(capsys, "experiments", "list")


def test_the_short_help_has_the_defaults_of_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    """The help reads sources as text: a default that moves to another class or becomes an expression would be wrong."""
    placeholders = ["--data=ImageFolder", "--data.path=x", "--model.network=DDPMpp", "--model.network.resolution=8"]
    config = resolved_config(placeholders)
    assert main(["fit", "--config", "digits", "--help"]) == 0
    shown = capsys.readouterr().out
    assert len(OPTIONS) == 20
    for option in OPTIONS:
        assert f"  --{option} " in shown
        default = default_of(option)
        if option in ("config", "ckpt_path", "trainer.default_root_dir", "data.path"):  # what is resolved is no default
            assert default is None
            continue
        value = config
        for name in option.split("."):
            value = value.get("init_args", value)[name]
        same = resolved_config([*placeholders, f"--{option}={default}"]) if default else config
        assert same == config, option
        assert (default is None) == (value is None), option
    with pytest.raises(SystemExit) as end:
        main(["fit", "--help=all"])
    assert end.value.code == 0
    assert "--model.betas" in capsys.readouterr().out
