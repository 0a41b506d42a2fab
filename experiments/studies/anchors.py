"""Lines of code and numbers of files by which this suite is compared with other code bases: `docs/anchors.md`.

    python -m experiments.studies.anchors
    python -m experiments.studies.anchors --count sampling.py:sample_heun

The first prints the row of this checkout, the second lines of code of any file, class or function. A line of code is
one that holds something else than a comment, a docstring or nothing.
"""

import argparse
import ast
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "warm_lightning"
HOW_TO = ROOT / "docs" / "how-to"
EXTENSIONS = {
    "process": ROOT / "README.md",
    "score": HOW_TO / "add-a-score.md",
    "data set": HOW_TO / "add-a-data-set.md",
    "experiment": HOW_TO / "add-an-experiment.md",
}
"""The pages whose first example adds a process, a score, a data set and an experiment."""


def code_lines(source: str, name: str = "") -> int:
    """Lines of code of a Python file, or of the class, function or method of it that has a (dotted) name."""
    tree: Any = ast.parse(source)
    for part in filter(None, name.split(".")):
        tree = next(node for node in ast.walk(tree) if getattr(node, "name", None) == part)
    docstrings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docstrings |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = source.splitlines()
    first, last = getattr(tree, "lineno", 1), getattr(tree, "end_lineno", len(lines))
    kept = (n for n in range(first, last + 1) if n not in docstrings)
    return sum(bool(lines[n - 1].strip()) and not lines[n - 1].strip().startswith("#") for n in kept)


def count(place: str) -> int:
    """Lines of code of FILE or FILE:NAME; of another language, lines that are neither empty nor begin with #."""
    path, _, name = place.partition(":")
    source = Path(path).read_text(encoding="utf-8")
    if path.endswith(".py"):
        return code_lines(source, name)
    return sum(bool(line.strip()) and not line.strip().startswith("#") for line in source.splitlines())


def first_example(page: Path) -> list[tuple[str, int]]:
    """The files of the first example of a how-to page with their lines: a YAML block ends it."""
    files = []
    for name, code in re.findall(r"^```\w+\n# (\S+\.(?:py|yaml))\n(.*?)^```$", page.read_text(), re.M | re.S):
        lines = code_lines(code) if name.endswith(".py") else sum(map(bool, map(str.strip, code.splitlines())))
        files.append((name, lines))
        if name.endswith(".yaml"):
            break
    return files


def files_from_disk_to_loss() -> set[str]:
    """The files of the package whose functions run while a batch of PNG files is read, decoded and made a loss."""
    from PIL import Image

    from warm_lightning.cli import main as warm

    seen: set[str] = set()
    inside: list[FrameType] = []

    def profile(frame: FrameType, event: str, _: object) -> None:
        code = frame.f_code
        if event == "call":
            fetches = code.co_name == "__next__" and code.co_filename.endswith("utils/data/dataloader.py")
            if fetches or (code.co_name == "training_step" and code.co_filename.startswith(str(PACKAGE))):
                inside.append(frame)
            if inside and code.co_filename.startswith(str(PACKAGE)):
                seen.add(str(Path(code.co_filename).relative_to(ROOT)))
        elif event == "return" and inside and inside[-1] is frame:
            inside.pop()

    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        images.mkdir()
        for i in range(8):
            Image.effect_noise((8, 8), 50).save(images / f"{i}.png")
        options = ["--data=ImageFolder", f"--data.path={images}", "--data.cache=false", "--data.batch_size=8"]
        quick = [
            "--model.duration=8",
            "--samples.seeds=0",
            "--samples.trajectory=0",
            "--trainer.limit_val_batches=0",
            "--scores.extractors=[Pixels]",
        ]
        where = [f"--config={ROOT / 'configs' / 'digits.yaml'}", f"--trainer.default_root_dir={folder}/run"]
        sys.setprofile(profile)
        try:
            code = warm(["fit", *where, *options, *quick, "--trainer.enable_progress_bar=false"])
        finally:
            sys.setprofile(None)
    if code:
        raise RuntimeError("the training that is traced has failed")
    return seen


def heun_lines() -> int:
    """Lines of the rule, of what it inherits, of the update and of the loop: all that runs for a step."""
    parts = ("rules.py:Heun", "rules.py:Interpolating.__call__", "rules.py:move", "sampler.py:Sampler.descend")
    return sum(count(str(PACKAGE / "samplers" / part)) for part in parts)


def row() -> Iterator[str]:
    """The columns of the table's row for this checkout."""
    yield "this suite"
    yield str(len(files_from_disk_to_loss()))
    yield f"{count(str(PACKAGE / 'samplers' / 'rules.py') + ':Heun')} (with update and loop {heun_lines()})"
    for page in EXTENSIONS.values():
        files = first_example(page)
        yield f"{sum(lines for _, lines in files)} in {len(files)}"


def main(arguments: list[str] | None = None) -> int:
    """Print the row, or counts; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", nargs="+", metavar="FILE[:NAME]", help="lines of code of these instead")
    options = parser.parse_args(arguments)
    if options.count:
        for place in options.count:
            print(f"{count(place):6} {place}")
    else:
        print("| " + " | ".join(row()) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
