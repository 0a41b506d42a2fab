"""The code and commands of the documents are run, page by page, and what they name exists."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from image_files import encode, pixels
from small import REPOSITORY, SMALL, here
from test_architecture import GRAPH, rooms

import experiments.__main__ as experiments_program
from experiments.cells import DataSet
from experiments.experiment import parse
from experiments.studies.anchors import code_lines, files_from_disk_to_loss, first_example
from warm_lightning.checkpoints import read_checkpoint
from warm_lightning.commands import command_parser
from warm_lightning.config import resolved_config, split_settings
from warm_lightning.shipped import shipped_configs
from warm_lightning.spectral import frequencies

README = REPOSITORY / "README.md"
DOCS = REPOSITORY / "docs"
EXTRAS = [DOCS / "how-to" / f"{name}.md" for name in ("deepinv", "diffusers", "sweep")]
"""Pages whose code needs heavy extras, which tests/extras/test_pages.py runs."""
HOW_TO = [page for page in sorted((DOCS / "how-to").glob("*.md")) if page not in EXTRAS]
CODE = [README, REPOSITORY / "CONTRIBUTING.md", *HOW_TO]
TEXT = [README, REPOSITORY / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md"))]
SETTINGS = [option for option in SMALL if not option.startswith(("--config", "--data", "--samples.seeds"))]
NETWORK = [option for option in SETTINGS if option.startswith("--model.network")]
SHORT = ["--data.batch_size=8", "--model.duration=8", "--trainer.limit_val_batches=0", "--samples.seeds=0"]
FEW = ["--scores.companions=false", "--scores.max_neighbours=50"]
ELSEWHERE = ("cifar10", "ffhq64", "lsun", "wandb", "mlflow")
"""Configurations of data and trackers that are not here: commands with them are parsed only, unless the page has made
the data. tests/extras/test_trackers.py trains with the trackers of how-to/trackers.md."""


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Language and text of every code block of a page, in order."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(code: str) -> Iterator[list[str]]:
    """The words of every command of a shell block, without comments and variables set for it."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z]+=", words[0]):
            words.pop(0)
        if words:
            yield words


def option(arguments: list[str], name: str) -> str | None:
    """The value that a command line gives an option, the last one."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    return next((words[i + 1] for i in range(len(words) - 2, -1, -1) if words[i] == name), None)


def configs(arguments: list[str]) -> list[str]:
    """All values of --config."""
    return [arguments[i + 1] for i, word in enumerate(arguments) if word == "--config"]


class Reader:
    """Runs the code blocks of a page in the current folder."""

    def __init__(self, trained: Path, reference_dir: Callable[[], Path]) -> None:
        self.trained = trained
        self.names: dict[str, Any] = {}
        self.inputs: dict[str, Callable[[Path], object]] = {
            "photos": lambda path: folder_of_images(path, 100, 3),
            "clean": lambda path: folder_of_images(path, 8, 1),
            "images1024x1024": lambda path: folder_of_images(path, 200, 3),
            "network-snapshot.pkl": lambda path: shutil.copy(reference_dir() / "edm_snapshot.pkl", path),
            "a": lambda path: self.samples(path, "--eta=0"),
            "b": lambda path: self.samples(path, "--eta=0.5"),
        }
        """Functions that make the files that a page takes for granted, by their names on the page."""

    def samples(self, path: Path, *options: str) -> None:
        checkpoint = self.trained / "checkpoints" / "last.ckpt"
        here("generate", f"--ckpt_path={checkpoint}", f"--outdir={path}", "--steps=2", "--seeds=0-39", *options)

    def sh(self, code: str) -> None:
        programs = {"warm": self.warm, "make": self.make, "python": self.python_module, "torchrun": self.torchrun}
        for program, *arguments in commands(code):
            programs[program](arguments)

    def bash(self, code: str) -> None:
        """A job script: its syntax, and the commands of `warm` in it."""
        subprocess.run(["bash", "-n"], input=code, text=True, check=True)
        for words in commands(code):
            if words[:2] == ["srun", "warm"]:
                self.warm(words[2:])

    def python(self, code: str) -> None:
        if not write_named(code):
            exec(compile(code, "<page>", "exec"), self.names)

    def yaml(self, code: str) -> None:
        if code.startswith("# experiments/data/"):
            parse(yaml.safe_load(code), DataSet, Path("page"))
        else:
            assert write_named(code), "a block of YAML begins with the name of its file"

    def make(self, arguments: list[str]) -> None:
        """Targets are looked up only: their recipes are commands of `warm` and of other tests."""
        assert arguments[0] in targets()

    def torchrun(self, arguments: list[str]) -> None:
        program = arguments.index("-m")
        assert arguments[program + 1] == "warm_lightning.cli"
        self.warm(arguments[program + 2 :])

    def python_module(self, arguments: list[str]) -> None:
        assert arguments[:2] == ["-m", "experiments"]
        if arguments[2] == "run":  # what shows that everything runs is run, and the others are planned
            arguments += ["--in_process"] if option(arguments, "--budget") == "smoke" else ["--plan"]
        assert experiments_code(*arguments[2:]) == 0

    def warm(self, arguments: list[str]) -> None:
        command, *arguments = arguments
        if command == "experiments":
            self.python_module(["-m", command, *arguments])
            return
        self.prepare(command, arguments)
        if command == "explore":  # tests/extras open the page
            command_parser(command).parse_args(split_settings(arguments)[1])
            return
        absent = any(name in path for path in configs(arguments) for name in ELSEWHERE)
        data = option(arguments, "--data.path")
        if absent and not (data and Path(data).exists()):
            assert command == "fit"
            parsed_only(arguments)
            return
        here(command, *arguments, *small(command, arguments))
        self.check_made(command, arguments)

    def prepare(self, command: str, arguments: list[str]) -> None:
        for word in arguments:
            if word in self.inputs and not Path(word).exists():
                self.inputs[word](Path(word))
        run = Path("runs/digits")
        named = any(re.search(rf"{run}(?![\w-])", word) for word in arguments)
        if not run.exists() and (command == "test" or named):
            shutil.copytree(self.trained, run)
        if command == "score" and not Path(arguments[0]).exists():
            self.samples(Path(arguments[0]))
        if option(arguments, "--reference") and not Path("digits.npz").exists():
            here("reference-stats", "configs/digits.yaml", "digits.npz", "--extractor", "DigitsFeatures")

    def check_made(self, command: str, arguments: list[str]) -> None:
        made = [option(arguments, name) for name in ("--outdir", "--grid")]
        if command in ("dataset", "reference-stats", "convert-edm", "export", "ema"):
            made.append(arguments[1])
        if command in ("fit", "test"):
            names = "-".join(Path(path).stem for path in configs(arguments))
            of_run = arguments[:1] if command == "test" and not arguments[0].startswith("-") else []
            folder = option(arguments, "--trainer.default_root_dir") or next(iter(of_run), f"runs/{names}")
            made.append(f"{folder}/{'scores.json' if command == 'test' else 'checkpoints/last.ckpt'}")
        for path in filter(None, made):
            assert Path(path).exists(), path
            assert Path(path).is_file() or any(Path(path).iterdir()), path


@cache
def experiments_code(*arguments: str) -> int:
    """The exit code of `python -m experiments`, which is run once for several pages that name the same command."""
    return experiments_program.main(list(arguments))


def write_named(code: str) -> bool:
    """Write a block whose first line is a comment with the name of a file; whether it was one."""
    found = re.match(r"# ([\w./]+\.(?:py|yaml))\n", code)
    if found:
        Path(found[1]).write_text(code)
    return bool(found)


def folder_of_images(path: Path, size: int, channels: int) -> None:
    path.mkdir()
    for i in range(8):
        (path / f"{i}.png").write_bytes(encode(pixels(size, channels)))


def small(command: str, arguments: list[str]) -> list[str]:
    """Options with which a command is soon done, and knows the small network."""
    first = next(iter(configs(arguments)), "")
    own_network = not first.startswith("configs/") and first not in shipped_configs()
    settings = [setting for setting in SETTINGS if not own_network or setting not in NETWORK]
    settings = [setting for setting in settings if option(arguments, setting.split("=")[0]) is None]
    if "digits.npz" in arguments:  # of the configuration's own features
        settings = [setting for setting in settings if not setting.startswith("--scores.extractors")]
    if command == "fit":
        return [*settings, *SHORT]
    if command == "test":
        return [*settings, *FEW]
    if command == "reference-stats":
        return ["--max_neighbours=50"]
    if command in ("drift", "bits", "branches"):
        return [*NETWORK, "--num_images=8", "--steps=4" if command == "bits" else "--model.sampler.grid.steps=4"]
    return []


def parsed_only(arguments: list[str]) -> None:
    """Every name and type of a command line of `warm fit` is checked, and nothing is made."""
    kept = [w for i, w in enumerate(arguments) if "--ckpt_path" not in (w, arguments[i - 1] if i else "")]
    resolved_config(kept)


def targets() -> set[str]:
    """Targets of the Makefile that `make help` lists."""
    return set(re.findall(r"^([a-z-]+):.*##", (REPOSITORY / "Makefile").read_text(), flags=re.MULTILINE))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of configs/digits.yaml with a small network."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    here("fit", *SMALL, *SHORT, f"--trainer.default_root_dir={folder}")
    return folder


@pytest.mark.parametrize("page", CODE, ids=lambda page: page.stem)
def test_code_blocks_of_a_page_run(
    page: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    names = run_page(page, Reader(trained, lambda: request.getfixturevalue("reference_dir")), tmp_path, monkeypatch)
    if "images" in names:
        assert names["images"].shape == (16, 1, 8, 8)
        assert names["model"].lr == 1e-3


def run_page(page: Path, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the code of a page in a folder; returns the variables of its Python."""
    monkeypatch.chdir(tmp_path)
    for folder in ("configs", "experiments"):
        Path(folder).symlink_to(REPOSITORY / folder)
    monkeypatch.syspath_prepend(tmp_path)
    try:
        for language, code in blocks(page):
            assert language in ("sh", "bash", "python", "yaml"), f"a block in {language or 'no language'}:\n{code}"
            getattr(reader, language)(code)
    finally:  # another page may have a module of the same name
        for name, module in list(sys.modules.items()):
            if str(getattr(module, "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]
    return reader.names


def test_the_process_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for language, code in blocks(README):
        if language in ("python", "yaml"):
            write_named(code)
    assert len(Path("my_process.py").read_text().splitlines()) <= 25
    from my_process import WarmFlow

    process, like = WarmFlow(), torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    gains = process.gains(process.level(torch.tensor([0.25], dtype=torch.float64)), like)
    torch.testing.assert_close(gains.signal[0, 0], 0.75 * torch.exp(-frequencies(like) * 0.5**2 / 2))
    torch.testing.assert_close(gains.noise, torch.full_like(gains.noise, 0.25))
    here("fit", *SMALL, "--config=warm_flow.yaml", "--trainer.default_root_dir=run", "--model.duration=320")
    assert read_checkpoint(Path("run/checkpoints/last.ckpt"))["warm_lightning"]["images_seen"] == 320  # ten steps
    here("generate", "--ckpt_path=run/checkpoints/last.ckpt", "--seeds=0-2", "--outdir=out")
    assert len(list(Path("out").glob("*.png"))) == 3
    del sys.modules["my_process"]


def test_the_readme_is_short() -> None:
    assert len(README.read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", TEXT, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_and_paths_of_a_page_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for path in re.findall(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)", text):
        found = (page.parent / path).resolve()
        assert found.exists(), path
        # A page of the site cannot lead to a file beside the site.
        assert not page.is_relative_to(DOCS) or found.is_relative_to(DOCS), path
    for path in re.findall(r"`((?:configs|docs|experiments|tests|warm_lightning)/[^`*…\s]+)`", text):
        assert (REPOSITORY / path).exists(), path
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets()


def test_every_module_is_in_the_reference() -> None:
    pages = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    shown = re.findall(r"^::: (\S+)$", pages, flags=re.MULTILINE)
    packages = {name.rpartition(".")[0] for name in GRAPH}
    assert sorted(shown) == sorted(GRAPH.keys() - packages)


def test_the_floors_of_contributing_are_those_of_the_imports() -> None:
    """Every room is in the table, and none imports a room of a higher row."""
    table = (REPOSITORY / "CONTRIBUTING.md").read_text().partition("| floor |")[2].partition("\n\n")[0]
    rows = [re.findall(r"`([\w/]+)`", line.split("|")[2]) for line in table.splitlines()[2:]]
    height = {name: floor for floor, row in enumerate(rows) for name in row}
    arrows = {
        (source.rpartition(".")[2], target.rpartition(".")[2])
        for source, others in rooms(GRAPH).items()
        for target in others
        if source.startswith("warm_lightning.") and target.startswith("warm_lightning.")
    }
    assert height.keys() == {name.rpartition(".")[2] for name in rooms(GRAPH) if name.startswith("warm_lightning.")}
    assert not [(source, target) for source, target in arrows if height[source] < height[target]]


def test_lines_of_code_are_counted(tmp_path: Path) -> None:
    source = (
        '"""About."""\n\n# why\nclass A:\n    """About\n    A."""\n\n    def f(self) -> int:\n        return 1  # one\n'
    )
    assert code_lines(source) == code_lines(source, "A") == 3
    assert code_lines(source, "A.f") == 2
    page = tmp_path / "page.md"
    page.write_text(
        f"```python\n# a.py\n{source}```\n\n```yaml\n# a.yaml\na: 1\n```\n\n```python\n# b.py\nb = 1\n```\n"
    )
    assert first_example(page) == [("a.py", 3), ("a.yaml", 1)]


def test_the_way_from_disk_to_loss_is_followed() -> None:
    files = files_from_disk_to_loss()
    assert {f"warm_lightning/{name}.py" for name in ("data/decode", "data/stream", "model", "losses")} <= files
    assert "warm_lightning/samplers/rules.py" not in files
