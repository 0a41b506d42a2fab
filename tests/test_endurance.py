"""Trials of endurance with a command that takes a moment: what is counted as ended and as equal."""

import random
from pathlib import Path
from typing import Any

import pytest

from experiments.benchmarks import endurance
from experiments.benchmarks.endurance import Subject, Undisturbed, files_hash, run_undisturbed, summary, trial
from warm_lightning.errors import UserError

# Counts to ten in a file, a number at a time, and goes on where it was; or begins with what is there, and is wrong.
COUNTS = """
import sys, time
from pathlib import Path
path, again = Path(sys.argv[1]) / "numbers", sys.argv[2] == "again"
numbers = path.read_text().split() if path.exists() else []
for k in range(0 if again else len(numbers), 10):
    numbers.append(str(k))
    path.with_suffix(".new").write_text(" ".join(numbers))
    path.with_suffix(".new").replace(path)
    time.sleep(0.03)
"""


def result(folder: Path) -> str:
    return (folder / "numbers").read_text()


def trials(way: str, name: str, folder: Path) -> list[dict[str, Any]]:
    subject = Subject(name, ("-c", COUNTS, "FOLDER", name), result)
    known = run_undisturbed(subject, folder / "undisturbed")
    assert known.result == "0 1 2 3 4 5 6 7 8 9"
    assert known.file_bytes == 19
    return [trial(subject, way, known, random.Random(seed), folder) for seed in range(3)]


@pytest.mark.parametrize("way", ["kill", "disk", "memory"])
def test_a_command_that_goes_on_ends_equal(way: str, tmp_path: Path) -> None:
    rows = trials(way, "goes on", tmp_path)
    assert all(1 <= row["ended"] <= 3 and row["equal"] for row in rows)
    assert summary(rows).splitlines()[2].startswith(f"| goes on | {way} | 3 |")
    assert [folder.name for folder in tmp_path.iterdir()] == ["undisturbed"]


def test_a_command_that_begins_with_what_is_there_is_found(tmp_path: Path) -> None:
    assert not all(row["equal"] for row in trials("disk", "again", tmp_path))


def test_a_command_that_hangs_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As OpenBLAS does without memory: this one waits for ever when it cannot write, and goes on afterwards."""
    monkeypatch.setattr(endurance, "PATIENCE", 1.0)
    waits = """
import sys, time
from pathlib import Path
try:
    (Path(sys.argv[1]) / "numbers").write_text("0123456789")
except OSError:
    time.sleep(1000)
"""
    subject = Subject("waits", ("-c", waits, "FOLDER"), result)
    row = trial(subject, "disk", Undisturbed("0123456789", 0.2, 9, 1), random.Random(0), tmp_path)
    assert row["equal"]
    assert "exit code -9" in row["endings"]


def test_a_command_that_nothing_ends_is_no_trial(tmp_path: Path) -> None:
    subject = Subject("at once", ("-c", "pass"), lambda folder: "")
    with pytest.raises(UserError, match="no kill"):
        trial(subject, "kill", Undisturbed("", 60.0, 1, 1), random.Random(0), tmp_path)


def test_files_are_told_apart_by_name_and_content(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    one = files_hash(tmp_path, "*.png")
    (tmp_path / "a.png").rename(tmp_path / "b.png")
    assert files_hash(tmp_path, "*.png") != one
