"""`warm dataset` that is killed, terminated, or not alone: no half file, nothing left running."""

import contextlib
import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from image_files import RNG, encode, pixels, store
from small import command, environment, here
from torch.utils.data import Dataset

from warm_lightning.cli import main
from warm_lightning.commands.dataset import atomic_file, items_of_workers
from warm_lightning.data import ImageFolder
from warm_lightning.data.stream import Loader
from warm_lightning.errors import UserError


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> str:
    """A zip that takes seconds to convert."""
    images = {f"{i:05}.png": encode(RNG.integers(0, 256, (64, 64, 3), np.uint8)) for i in range(40)}
    files = {f"{k:03}-{name}": content for k in range(75) for name, content in images.items()}
    return store(tmp_path_factory.mktemp("large"), files, "zip")


@pytest.fixture
def small(tmp_path) -> str:
    (tmp_path / "small").mkdir()
    return store(tmp_path / "small", {"1.png": encode(pixels())}, "zip")


def partial(target: Path) -> list[Path]:
    return list(target.parent.glob(".warm-dataset-*.partial"))


@contextlib.contextmanager
def converting(source: str, target: Path, workers: int) -> Iterator[subprocess.Popen[str]]:
    """A conversion that has written some megabytes. Its workers have its standard output too."""
    arguments = command("dataset", source, str(target), "--resolution=96", f"--workers={workers}")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(arguments, env=environment(), **pipes) as run:
        while not any(file.stat().st_size > 2_000_000 for file in partial(target)):
            assert run.poll() is None, run.communicate()
            time.sleep(0.01)
        yield run


def test_a_run_that_is_killed_leaves_no_workers_and_no_name_and_the_next_one_writes_over_the_rest(
    tmp_path, large, small
):
    target = tmp_path / "set.zip"
    with converting(large, target, workers=2) as run:
        run.send_signal(signal.SIGKILL)
        run.communicate(timeout=60)  # reads to the end, which comes when the last worker has closed its side
    assert not target.exists()
    assert len(partial(target)) == 1
    here("dataset", small, str(target), "--workers=0")
    assert not partial(target)
    assert len(ImageFolder(str(target)).train_images()) == 1


def test_a_second_conversion_is_refused_and_sigterm_removes_the_partial_file(tmp_path, capsys, large, small):
    target = tmp_path / "set.zip"
    with converting(large, target, workers=1) as run:
        assert main(["dataset", small, str(target), "--workers=0"]) == 2
        assert "set.zip is being written by another conversion" in capsys.readouterr().err
        assert len(partial(target)) == 1
        here("dataset", small, str(tmp_path / "other.zip"), "--workers=0")
        run.send_signal(signal.SIGTERM)
        output, _ = run.communicate(timeout=60)
    assert run.returncode == 143
    assert "Traceback" not in output
    assert not partial(target)
    assert not target.exists()


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_replaced(tmp_path, monkeypatch, links):
    def link(source: Path, target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")  # what FAT says

    if not links:
        monkeypatch.setattr(os, "link", link)
    target = tmp_path / "set.zip"
    with pytest.raises(UserError, match="exists by now"), atomic_file(target, overwrite=False):
        target.write_bytes(b"mine")
    assert target.read_bytes() == b"mine"
    with atomic_file(target, overwrite=True) as file:
        file.write(b"ours")
    assert target.read_bytes() == b"ours"
    with atomic_file(tmp_path / "new.zip", overwrite=False) as file:
        file.write(b"ours")
    assert (tmp_path / "new.zip").read_bytes() == b"ours"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.zip", "set.zip"]


def test_names_may_be_as_long_as_the_file_system_allows(tmp_path, small):
    target = tmp_path / ("x" * 251 + ".zip")
    here("dataset", small, str(target), "--workers=0")
    assert len(ImageFolder(str(target)).train_images()) == 1


class Fails(Dataset[list[bytes]]):
    def __init__(self, bug: bool) -> None:
        self.bug = bug

    def __getitem__(self, index: range) -> list[bytes]:
        if self.bug:
            raise RuntimeError("a bug")
        os.kill(os.getpid(), signal.SIGKILL)  # as the system does when the memory is full
        return []


def test_dead_workers_and_bugs_and_full_disks_are_told_apart(tmp_path):
    with pytest.raises(UserError, match=r"^a worker has died .* Use fewer --workers$"):
        list(items_of_workers(Loader(Fails(False), sampler=[range(1)], num_workers=1)))
    with pytest.raises(RuntimeError, match="a bug"):
        list(items_of_workers(Loader(Fails(True), sampler=[range(1)], num_workers=1)))
    target = tmp_path / "set.zip"
    with (
        pytest.raises(UserError, match=r"set\.zip: cannot be written \(No space"),
        atomic_file(target, overwrite=False),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert not list(tmp_path.iterdir())
