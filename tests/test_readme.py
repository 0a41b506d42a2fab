"""The README's code and commands are run, or held against what exists."""

import itertools
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from image_files import encode, pixels
from small import REPOSITORY, SMALL, here

from warm_lightning import load_config
from warm_lightning.checkpoints import read
from warm_lightning.cli import TOOLS, TRAINER_COMMANDS
from warm_lightning.images import write_png
from warm_lightning.spectral import frequencies

README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)


def blocks(language: str) -> list[str]:
    return [code for name, code in BLOCKS if name == language]


def commands(program: str) -> list[list[str]]:
    """Every call of a program in the README's shell blocks, without environment and comments."""
    lines = "\n".join(blocks("sh")).replace("\\\n", " ").splitlines()
    calls = [shlex.split(line, comments=True) for line in lines]
    calls = [[word for word in call if not re.match(r"[A-Z]+=", word)] for call in calls]
    return [call[1:] for call in calls if call and call[0] == program]


def test_the_make_targets_exist() -> None:
    makefile = (REPOSITORY / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):.*##", makefile, flags=re.MULTILINE))
    named = {call[0] for call in commands("make")} | set(re.findall(r"`make ([a-z-]+)", README))
    assert named
    assert named <= targets


def test_files_that_are_named_exist() -> None:
    for name in re.findall(r"\]\(([^)#:]+)\)|`((?:configs|docs|experiments)/[^`*…]+)`", README):
        path = name[0] or name[1]
        assert (REPOSITORY / path).exists(), path


@pytest.mark.parametrize("call", commands("warm"), ids=" ".join)
def test_the_warm_commands_are_understood(
    call: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    # Run for a few images with a small network, wherever the command itself does not say otherwise.
    command, *arguments = call
    assert command in TRAINER_COMMANDS | TOOLS
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    write_process(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    changes = [a for a in SMALL if not a.startswith(("--config", "--data"))]
    paths = [a for previous, a in itertools.pairwise(arguments) if previous == "--config"]
    if "digits.npz" in arguments:  # of the configuration's extractor
        changes = [a for a in changes if not a.startswith("--scores.extractors")]
    if any(name in path for path in paths for name in ("cifar10", "ffhq64")):
        load_config(paths)  # its data are not here
    elif command == "fit":
        here("fit", *arguments, *changes, "--data.batch_size=32", "--model.duration=32")
        assert len(list(tmp_path.glob("runs/*/checkpoints/last.ckpt"))) == 1
    else:
        prepare(command, arguments, changes, request)
        here(command, *arguments, *(changes if command == "test" else own(command, changes)))
        for made in MADE.get(command, [arguments[1]]):
            assert len(list(tmp_path.glob(made))) == (64 if "*" in made else 1), made


def own(command: str, changes: list[str]) -> list[str]:
    """Options that a command of a trained model needs to know the small one, and to be done soon."""
    if command not in ("drift", "bits"):
        return []
    return [*(change for change in changes if change.startswith("--model")), "--num_images=8"]


MADE = {
    "spectrum": ["spectrum/spectrum.json", "spectrum/targets.png"],
    "describe": ["path/describe.json", "path/paths.png"],
    "oracle": ["oracle/oracle.json"],
    "drift": ["drift/drift.json", "drift/drift.png"],
    "bits": ["bits/bits.json"],
    "test": ["runs/digits/scores.json"],
    "generate": ["out/*.png", "grid.png"],
    "export": ["my-model/README.md", "my-model/model.safetensors"],
    "restore": ["restored/restored.json"],
    "score": [],
    "compare": [],
}
"""What commands leave behind, those that do not name it second."""


def prepare(command: str, arguments: list[str], changes: list[str], request: pytest.FixtureRequest) -> None:
    """What the commands before this one would have left."""
    train = ["fit", "--config", "configs/digits.yaml", *changes, "--data.batch_size=32", "--model.duration=32"]
    last, few = "runs/digits/checkpoints/last.ckpt", ["--steps=2", "--seeds=0-39"]
    if command in ("test", "generate", "restore", "export", "score", "compare", "drift", "bits"):
        here(*train)
    if command == "restore":
        Path(arguments[0]).mkdir()
        for i in range(2):
            write_png(Path(arguments[0]) / f"{i}.png", torch.full((1, 8, 8), 100 * i, dtype=torch.uint8))
    if "digits.npz" in arguments and command != "reference-stats":
        here("reference-stats", "configs/digits.yaml", "digits.npz", "--extractor", "DigitsFeatures")
    if command in ("score", "compare"):
        for folder in ("out", "a", "b"):
            here("generate", f"--ckpt_path={last}", f"--outdir={folder}", f"--eta={0.5 * (folder == 'b')}", *few)
    if command == "convert-edm":
        shutil.copy(request.getfixturevalue("reference_dir") / "edm_snapshot.pkl", arguments[0])
    if command == "ema":
        here(*train, "--posthoc_ema.sigma_rel=[0.05,0.1]", f"--trainer.default_root_dir={arguments[0]}")
    if command == "dataset":
        Path(arguments[0]).mkdir()
        for i in range(3):
            (Path(arguments[0]) / f"{i}.png").write_bytes(encode(pixels(200)))


def write_process(folder: Path) -> None:
    """The files of "Add a process in 20 lines"."""
    code = next(code for code in blocks("python") if code.startswith("# my_process.py"))
    assert len(code.splitlines()) <= 25
    (folder / "my_process.py").write_text(code)
    (folder / "warm_flow.yaml").write_text(next(iter(blocks("yaml"))))


def test_a_new_process_trains_and_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_process(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    from my_process import WarmFlow

    process, like = WarmFlow(), torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    gains = process.gains(process.level(torch.tensor([0.25], dtype=torch.float64)), like)
    torch.testing.assert_close(gains.signal[0, 0], 0.75 * torch.exp(-frequencies(like) * 0.5**2 / 2))
    torch.testing.assert_close(gains.noise, torch.full_like(gains.noise, 0.25))
    run, last = tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"
    here(
        "fit",
        *SMALL,
        f"--config={tmp_path}/warm_flow.yaml",
        f"--trainer.default_root_dir={run}",
        "--model.duration=320",
    )
    assert read(last)["warm_lightning"]["images_seen"] == 320  # ten steps
    here("generate", f"--ckpt_path={last}", "--seeds=0-2", f"--outdir={tmp_path}/out")
    assert len(list((tmp_path / "out").glob("*.png"))) == 3


def test_the_notebook_snippet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    here("fit", *SMALL, "--model.duration=32", "--trainer.default_root_dir=runs/digits")
    code = next(code for code in blocks("python") if "load_checkpoint" in code)
    names: dict[str, object] = {}
    exec(code, names)
    assert names["images"].shape == (16, 1, 8, 8)
    assert names["model"].lr == 1e-3
