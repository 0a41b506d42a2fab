"""Files that come with the program: the configurations of `configs/`, and the experiments, found wherever it lies.

In the repository they have folders of their own, beside the package. A wheel has them inside the package, by
`package-dir` in pyproject.toml. This imports nothing that takes time.
"""

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from warm_lightning.errors import UserError
from warm_lightning.paths import expand

PACKAGE = Path(__file__).resolve().parent
CHECKOUT = None if (PACKAGE / "configs").is_dir() else PACKAGE.parent
"""The repository that the package lies in; None where a wheel was installed."""
SHIPPED = CHECKOUT or PACKAGE
"""The folder in which `configs` and `experiments` are."""
CONFIG = "--config"
SHORT_CONFIG = "-c"


@cache
def shipped_configs() -> dict[str, Path]:
    """The shipped configurations by their names, such as digits and method/hot, those of data sets first."""
    folder = SHIPPED / "configs"
    paths = sorted(folder.glob("*.yaml")) + sorted(folder.glob("*/*.yaml"))
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in paths}


def config_file(name: str | Path, folder: Path | None = None) -> Path:
    """The YAML file that a value of `--config` names: its path, or a shipped configuration's name such as method/hot.

    The path wins where there is such a file.

    Args:
        name: as the user wrote it.
        folder: which relative paths start from; the working directory by default.

    Raises:
        UserError: there is neither a file nor a shipped configuration of that name.
    """
    path = expand(name)
    if (folder or Path()).joinpath(path).is_file():
        return path
    shipped = shipped_configs()
    if path.as_posix() in shipped:
        return shipped[path.as_posix()]
    meant = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    hint = f"the shipped one is {CONFIG} {meant}" if meant in shipped else "`warm fit` lists the names of shipped ones"
    raise UserError(f"{CONFIG} {path}: no such file; {hint}")


def with_config_files(arguments: Sequence[str]) -> list[str]:
    """The arguments of a command with the values of `--config` replaced by their files, see `config_file`."""
    words = iter(arguments)
    replaced = []
    for word in words:
        name, equals, value = word.partition("=")
        is_config = name in (CONFIG, SHORT_CONFIG)
        given = value if equals or not is_config else next(words, "")
        replaced.append(f"{CONFIG}={config_file(given)}" if is_config else word)
    return replaced


def config_list() -> str:
    """The names of the shipped configurations, each with a line that says what it is."""
    shipped = shipped_configs()
    width = max(map(len, shipped))
    return "\n".join(f"{name:<{width}}  {first_sentence(path)}" for name, path in shipped.items())


def first_sentence(path: Path) -> str:
    """The first sentence of the comment with which a YAML file begins."""
    comment = re.match(r"(?:# \S.*\n)*", path.read_text(encoding="utf-8"))
    text = " ".join(line.removeprefix("# ") for line in comment[0].splitlines()) if comment else ""
    return re.split(r"(?<!al)\.\s", text)[0].rstrip(".:")
