"""Where the tests find what is not in the repository, and what they share."""

import os
from pathlib import Path

import pytest
from pretend import Pretend
from small import SMALL, here

from experiments import run as runner

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

LONG = [
    "test_strategies",
    "test_every_system",
    "test_experiment_files",
    "test_documents",
    "test_restore",
    "test_scored_runs",
    "test_rounds",
    "test_determinism",
    "test_seed_contract",
    "test_experiments",
    "test_describe",
    "test_drift",
    "test_likelihood",
    "test_data_killed",
    "test_full_size",
    "test_network_memory",
    "test_pickle_memory",
    "test_runner_jobs",
    "test_reproduction",
    "test_edm_arrays",
    "test_checkpoints",
]
"""Files that take half a minute and more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, or one process would be left alone with the last of them (with --no-loadscope-reorder)."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def find(what: str, variable: str, default: Path) -> Path:
    """`default`, or the path that an environment variable gives; skips, or fails under CI, where there is none."""
    path = Path(os.environ.get(variable, default))
    if not path.exists():
        message = f"{what} not found at {path}: set {variable} to its path"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return path


@pytest.fixture(scope="session")
def reference_dir() -> Path:
    """Folder with the reference arrays (`edm_*.npz`, `edm_parameters.json`)."""
    return find("reference arrays", "WARM_REFERENCE_DIR", SHARED / "reference")


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Pretend:
    """What experiments run with, in place of processes."""
    executor = Pretend()
    monkeypatch.setattr(runner, "choose_executor", lambda options: executor)
    return executor


@pytest.fixture(scope="session")
def double_ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small model after two steps in float64."""
    folder = tmp_path_factory.mktemp("double")
    here("fit", *SMALL, "--model.duration=64", f"--trainer.default_root_dir={folder}", "--trainer.precision=64-true")
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def learned_ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a small model that has learned a little, without 40 of the digits."""
    folder = tmp_path_factory.mktemp("learned")
    options = ["--model.duration=2560", "--model.lr_ramp=320", "--model.lr=5e-3", "--data.held_out=40"]
    here("fit", *SMALL, *options, f"--trainer.default_root_dir={folder}", "--trainer.accelerator=cpu")
    return folder / "checkpoints" / "last.ckpt"


@pytest.fixture(scope="session")
def cifar10_zip() -> Path:
    """Zip of CIFAR-10 as `train/<class>/*.jpg` and `test/<class>/*.jpg`."""
    return find("CIFAR-10 zip", "WARM_CIFAR10", SHARED / "data" / "cifar10-jpeg.zip")


@pytest.fixture(scope="session")
def cifar10_features() -> Path:
    """TorchScript feature extractor for CIFAR-10: uint8 [B, 3, 32, 32] → float32 [B, 256]."""
    return find("CIFAR-10 features", "WARM_CIFAR10_FEATURES", SHARED / "data" / "cifar10-features.pt")
