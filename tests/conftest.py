"""Fixtures that tests of several files share, files outside of the repository, and the order of the tests."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small import SMALL, here

if TYPE_CHECKING:
    from pretend import Pretend

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = REPOSITORY.parent / "shared"

LONG = [
    "test_experiment_files",
    "test_documents",
    "test_strategies",
    "test_determinism",
    "test_benchmarks",
    "test_every_system",
    "test_full_size",
    "test_manners",
    "test_one_run",
    "test_exploration",
    "test_scores",
    "test_samplers",
    "test_seed_contract",
    "test_rounds",
    "test_locks",
    "test_full_disk",
    "test_runner_jobs",
    "test_encoding",
    "test_likelihood",
    "test_image_records",
    "test_restore",
    "test_configurations",
    "test_checkpoints",
    "test_cli",
    "test_export",
    "test_describe",
    "test_ema_posthoc",
    "test_network_memory",
    "test_networks",
]
"""Files that take ten seconds of a processor and more, the longest first."""

QUICK = {
    "test_architecture",
    "test_augment",
    "test_blurring",
    "test_churn",
    "test_cold_processes",
    "test_ddpm",
    "test_edm_arrays",
    "test_fake_devices",
    "test_hot_is_a_point",
    "test_layers",
    "test_networks",
    "test_paired",
    "test_parameterizations",
    "test_pfgmpp",
    "test_pickles",
    "test_preconditioning",
    "test_process_oracles",
    "test_processes",
    "test_samplers",
    "test_spectral",
    "test_variance_preserving",
}
"""Files that are marked `quick`: mathematics, units and imports, without a training run or a subprocess."""


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m quick`, leave other files out before their imports, which take seconds."""
    others = collection_path.suffix == ".py" and collection_path.stem not in QUICK
    return True if others and config.option.markexpr == "quick" else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the quick files; put the long ones first, or one process would be left alone with the last of them."""
    for item in items:
        if item.path.stem in QUICK:
            item.add_marker("quick")
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
def pretend(monkeypatch: pytest.MonkeyPatch) -> "Pretend":
    """The executor of experiments, which writes files in place of running processes."""
    from pretend import Pretend

    from experiments import run as runner

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
