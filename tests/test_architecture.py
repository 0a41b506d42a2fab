"""The shape of the package: who may import whom, how long files are, and that configurations fit the code."""

import ast
from pathlib import Path

import pytest
import torch
import yaml
from small import REPOSITORY

from warm_lightning import load_config

PACKAGE = REPOSITORY / "warm_lightning"

# Left to right: each imports only what stands before it, or beside it in the same entry.
ORDER: list[set[str]] = [
    {"errors", "rng", "seeds", "defaults"},
    {"types", "spectral", "images"},
    {"processes"},
    {"parameterizations", "losses", "preconditioning"},
    {"targets"},
    {"samplers", "oracles"},
    {"restoration"},
    {"networks", "data", "augment"},
    {"reference"},
    {"metrics", "interop"},
    {"model", "checkpoints", "ema"},
    {"pictures", "strategies"},
    {"analysis"},
    {"module"},
    {"callbacks"},
    {"lightning_cli"},
    {"config"},
    {"tools", "cli"},
]
# These know no diffusion: nothing internal but the vocabulary (and data, for the digits' features).
FREE_OF_DIFFUSION = {"networks": set(), "data": set(), "augment": set(), "metrics": {"data"}}
VOCABULARY = {"errors", "rng", "seeds", "types", "spectral", "images"}


def part(path: Path) -> str:
    """The first level of a file below the package: `processes` for `processes/warm.py`."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """The parts of the package that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "warm_lightning":
                names = [f"warm_lightning.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("warm_lightning.")}
    return found - {"__version__"}


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_import_direction(path: Path) -> None:
    place = {name: i for i, names in enumerate(ORDER) for name in names}
    me = part(path)
    for other in imports(path) - {me}:
        assert place[other] <= place[me], f"{me} imports {other}, which comes after it"
        if me in FREE_OF_DIFFUSION:
            assert other in VOCABULARY | FREE_OF_DIFFUSION[me], f"{me} must not know {other}"


def test_the_package_knows_no_experiment() -> None:
    for path in FILES:
        assert "experiments" not in {n.split(".")[0] for n in path.read_text().split() if n.startswith("experiments")}


@pytest.mark.parametrize("folder", ["warm_lightning", "experiments", "tests"])
def test_files_are_short(folder: str) -> None:
    long = {str(p): n for p in (REPOSITORY / folder).rglob("*.py") if (n := len(p.read_text().splitlines())) > 300}
    assert not long


CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
OVERLAYS = sorted((REPOSITORY / "configs" / "method").glob("*.yaml"))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_every_configuration_builds(config: Path) -> None:
    module, data = load_config(config)
    assert module.network.branches == len(module.parameterization.names)
    # What the file sets has arrived: no key of it was dropped on the way.
    stated = yaml.safe_load(config.read_text())
    assert data.batch_size == stated["data"]["init_args"]["batch_size"]
    assert module.duration == int(float(stated["model"].get("duration", 200e6)))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_combines(overlay: Path) -> None:
    module, _ = load_config([REPOSITORY / "configs" / "digits.yaml", overlay])
    stated = yaml.safe_load(overlay.read_text())["model"]
    process = stated["process"] if isinstance(stated["process"], str) else stated["process"]["class_path"]
    assert type(module.process).__name__ == process
    assert type(module.parameterization).__name__ == stated["parameterization"]
    assert module.network.branches == len(module.parameterization.names)


@pytest.mark.parametrize("config", ["cifar10_cond", "ffhq64"])
@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: path.stem)
def test_every_overlay_combines_at_full_size(overlay: Path, config: str) -> None:
    # The network's size is no matter here, and takes seconds to make.
    small = {"model.network.model_channels": 8, "model.network.num_blocks": 1, "model.network.attn_resolutions": []}
    module, _ = load_config([REPOSITORY / "configs" / f"{config}.yaml", overlay], small)
    c = module.preconditioning(module.process.level(module.clock_law.quantile(torch.tensor([0.0, 0.5, 1 - 1e-6]))))
    told = c.noise * (module.network.time_scale if module.preconditioning.time else 1)
    # What the network is told suits its embedding: ln β/4, or a time of up to 1,000, a thousandth for Fourier features.
    assert told[2] == pytest.approx(1000 * module.network.time_scale, rel=0.01) or told.abs()[1:].max() < 2


def test_no_configuration_repeats_a_default() -> None:
    """Overlays hold only differences: none of the data sets' settings."""
    for overlay in OVERLAYS:
        assert set(yaml.safe_load(overlay.read_text())) == {"model"}
