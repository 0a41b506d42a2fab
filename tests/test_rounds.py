"""`warm test` in rounds: seeds, summary, going on after a kill, and two processes as one."""

import json
import math
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import start_warm, warm_on_two
from small import DIGITS, SMALL, here

from warm_lightning.callbacks import ScoreSamples
from warm_lightning.callbacks import rounds as rounds_module
from warm_lightning.callbacks import scores as scores_module
from warm_lightning.callbacks.rounds import FILE, Rounds
from warm_lightning.errors import UserError
from warm_lightning.metrics import Pixels
from warm_lightning.module import SeedPlan

QUICK = ["--model.sampler.grid.steps=2", "--scores.companions=false", "--scores.max_neighbours=100"]


def options(double_ckpt: Path, folder: Path, *more: str) -> list[str]:
    where = [f"--trainer.default_root_dir={folder}", f"--ckpt_path={double_ckpt}", "--trainer.precision=64-true"]
    return ["test", *SMALL, *QUICK, *where, *more]


def scores(folder: Path) -> dict:
    return json.loads((folder / "scores.json").read_text())


def stored(folder: Path) -> list[dict]:
    """The entries of rounds.json, one for each set of conditions."""
    return list(json.loads((folder / FILE).read_text()).values())


@pytest.mark.parametrize(
    ("count", "batch_size", "world_size"), [(1797, 256, 1), (513, 256, 2), (50_000, 250, 8), (7, 3, 4), (9, 4, 9)]
)
def test_devices_share_the_seeds_of_a_round(count, batch_size, world_size) -> None:
    plan = SeedPlan([range(count), range(count, 2 * count)], batch_size)
    shares = [plan.batches(1, rank, world_size) for rank in range(world_size)]
    assert max(len(batch) for batches in shares for batch in batches) <= batch_size
    for rank, batches in enumerate(shares):
        assert [seed for batch in batches for seed in batch] == list(range(count + rank, 2 * count, world_size))
    assert plan.label(1) == f"{count}-{2 * count - 1}"


def test_three_rounds_have_their_seeds_names_and_summary(double_ckpt, tmp_path, capsys) -> None:
    here(*options(double_ckpt, tmp_path / "three", "--scores.rounds=3", "--scores.first_seed=100"))
    three = scores(tmp_path / "three")
    protocol = three.pop("protocol")
    assert protocol["seeds"] == ["100-115", "116-131", "132-147"]
    assert (protocol["num_images"], protocol["rounds"], protocol["nfe"], protocol["weights"]) == (16, 3, 3, "ema")
    over = torch.tensor([three[f"fd16_pixel_round{k}"] for k in (1, 2, 3)])
    assert three["fd16_pixel_min"] == pytest.approx(over.min().item(), rel=1e-6)
    assert three["fd16_pixel_std"] == pytest.approx(over.std().item(), rel=1e-4)
    assert "fd16_pixel" not in three
    assert "best of 3" in capsys.readouterr().out
    # A round alone is the same round.
    here(*options(double_ckpt, tmp_path / "one", "--scores.first_seed=116"))
    one = scores(tmp_path / "one")
    assert one["protocol"]["seeds"] == "116-131"
    assert one["fd16_pixel"] == three["fd16_pixel_round2"]
    assert one["kid16_pixel"] == three["kid16_pixel_round2"]


def test_only_rounds_of_equal_conditions_are_kept(double_ckpt, tmp_path, capsys, monkeypatch) -> None:
    here(*options(double_ckpt, tmp_path))
    first = scores(tmp_path)
    capsys.readouterr()
    here(*options(double_ckpt, tmp_path, "--scores.rounds=2"))
    assert "Scored before, and kept in" in (output := capsys.readouterr().out)
    assert "round 1 (seeds 0-15)" in output
    two = scores(tmp_path)
    assert two["fd16_pixel_round1"] == first["fd16_pixel"]
    assert [set(entry["rounds"]) for entry in stored(tmp_path)] == [{"0-15", "16-31"}]

    # What is printed beside the scores does not matter to them.
    here(*options(double_ckpt, tmp_path, "--scores.companions=true"))
    assert "round 1 (seeds 0-15)" in capsys.readouterr().out
    # Any setting of the model does, and so does this package's version.
    for change, name in (
        ("--scores.weights=raw", "weights, weights (sha256)"),
        ("--model.sampler.grid.rho=8", "sampler"),
        ("--model.network.dropout=0.1", "network"),
        ("--scores.max_neighbours=10", "scores, reference"),
    ):
        here(*options(double_ckpt, tmp_path, change))
        assert f"holds rounds of a test that differs in {name}: all rounds are sampled" in capsys.readouterr().out
    monkeypatch.setattr(rounds_module, "PACKAGE_VERSION", "0")
    here(*options(double_ckpt, tmp_path))
    assert "holds rounds of a test that differs in package_version: all rounds are sampled" in capsys.readouterr().out
    monkeypatch.undo()
    # And all of these have left the first rounds where they were.
    assert len(stored(tmp_path)) == 6
    here(*options(double_ckpt, tmp_path))
    assert "round 1 (seeds 0-15)" in capsys.readouterr().out
    (tmp_path / FILE).write_text("{")
    here(*options(double_ckpt, tmp_path))
    assert "cannot be read: all rounds are sampled" in capsys.readouterr().out
    assert scores(tmp_path) == first


def test_a_renamed_extractor_or_a_damaged_round_is_scored_again(double_ckpt, tmp_path, capsys) -> None:
    """Stored rounds whose scores have other names would leave dashes in the table."""
    for name in ("a", "b"):
        extractor = f"{{class_path: ImportedFeatures, init_args: {{module: 'test_rounds:Mean', name: {name}}}}}"
        here(*options(double_ckpt, tmp_path, f"--scores.extractors=[{extractor}]"))
        output = capsys.readouterr().out
        assert re.search(rf"^fd16_{name} +\d", output, re.MULTILINE)
    assert "holds rounds of a test that differs in scores: all rounds are sampled" in output
    for damage in ({}, {"fd16_b": None}, {"fd16_b": "1"}, {"more": 1.0}):
        content = json.loads((tmp_path / FILE).read_text())
        values = list(content.values())[-1]["rounds"]["0-15"]
        list(content.values())[-1]["rounds"]["0-15"] = {**values, **damage} if damage else {}
        (tmp_path / FILE).write_text(json.dumps(content))
        here(*options(double_ckpt, tmp_path, f"--scores.extractors=[{extractor}]"))
        assert "damaged rounds, which are sampled again: seeds 0-15" in capsys.readouterr().out
        assert stored(tmp_path)[-1]["rounds"]["0-15"] == values


class Mean(torch.nn.Module):
    """The mean grey level as the only feature."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).float().mean(1, keepdim=True)


def test_two_tests_in_one_folder_keep_each_others_rounds(tmp_path) -> None:
    first, second, other = (
        Rounds(tmp_path / FILE, {"a": a}, ["x", "memorisation"], ["memorisation"]) for a in (1, 1, 2)
    )
    first.add("0-9", {"x": 1.0, "memorisation": math.nan})
    second.add("10-19", {"x": 2.0, "memorisation": 1.0})
    other.add("0-9", {"x": 3.0, "memorisation": 1.0})
    again = Rounds(tmp_path / FILE, {"a": 1}, ["x", "memorisation"], ["memorisation"])
    assert again.resume() == ""
    assert {seeds: values["x"] for seeds, values in again.finished.items()} == {"0-9": 1, "10-19": 2}
    assert math.isnan(again.finished["0-9"]["memorisation"])
    json.loads((tmp_path / FILE).read_text(), parse_constant=pytest.fail)  # NaN is no JSON


def test_killed_after_round_one_the_protocol_on_all_digits_goes_on_with_rounds_two_and_three(tmp_path, capsys) -> None:
    """A SIGKILL after the first of three rounds of 1,797 images."""
    here("fit", *SMALL, "--model.duration=64", f"--trainer.default_root_dir={tmp_path}")
    arguments = [
        "test",
        *SMALL,
        *QUICK,
        f"--trainer.default_root_dir={tmp_path}",
        "--scores.num_images=1797",
        "--scores.rounds=3",
    ]
    process = start_warm(tmp_path, *arguments)
    while not (tmp_path / FILE).exists():
        assert process.exitcode is None, "ended before the kill"
        time.sleep(0.02)
    process.kill()
    process.join()
    kept = stored(tmp_path)[0]["rounds"]
    assert list(kept) == ["0-1796"]
    assert not (tmp_path / "scores.json").exists()

    before = (tmp_path / FILE).stat().st_mtime
    capsys.readouterr()
    here(*arguments)
    output = capsys.readouterr().out
    assert "round 1 (seeds 0-1796)" in output
    assert [line for line in output.splitlines() if line.startswith("Round 1 of 3 (")] == []
    found = scores(tmp_path)
    assert found["fd_pixel_round1"] == kept["0-1796"]["fd_pixel"]  # as many samples as digits: no number in the name
    assert len({found[f"fd_pixel_round{k}"] for k in (1, 2, 3)}) == 3
    assert (tmp_path / FILE).stat().st_mtime > before


def test_two_processes_score_as_one(double_ckpt, tmp_path) -> None:
    """17 seeds a round, so that one process has one more; round 1 is there already, and both must skip it."""
    more = ["--scores.num_images=17", "--scores.rounds=3", "--scores.batch_size=4"]
    here(*options(double_ckpt, tmp_path / "one", *more))
    two, references = tmp_path / "two", f"--scores.reference_stats={tmp_path / 'references'}"
    two.mkdir()
    content = json.loads((tmp_path / "one" / FILE).read_text())
    entry = next(iter(content.values()))
    entry["rounds"] = {"0-16": entry["rounds"]["0-16"]}
    (two / FILE).write_text(json.dumps(content))
    output, _ = warm_on_two(two, *options(double_ckpt, two, *more, references))
    assert "round 1 (seeds 0-16)" in output
    here(*options(double_ckpt, tmp_path / "three", *more, references))  # with the reference that two processes kept
    assert "from Pixels-1797-" in scores(tmp_path / "three")["protocol"]["reference"][0]
    expected = scores(tmp_path / "one")
    for name in ("fd17_pixel_round2", "fd17_pixel_round3", "kid17_pixel_round2", "fd17_pixel_min"):
        for folder in (two, tmp_path / "three"):
            # Float64 sums in another order, and square roots of what should be 0, with fewer images than features.
            assert scores(folder)[name] == pytest.approx(expected[name], rel=1e-7, abs=1e-12)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 0}, "rounds is 0"),
        ({"max_neighbours": 3}, "max_neighbours is 3"),
        ({"extractors": [Pixels(), Pixels()]}, "the same names, fd10k_pixel, fd10k_pixel"),
        ({"reference_stats": ["a.npz", "b.npz"]}, "2 files for 1 extractors"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, message) -> None:
    with pytest.raises(UserError, match=message):
        ScoreSamples(**{"extractors": [Pixels()], **options})


def test_statistics_take_the_place_of_the_data(double_ckpt, tmp_path, monkeypatch) -> None:
    here(*options(double_ckpt, tmp_path / "data"))
    expected = scores(tmp_path / "data")
    names = [name for name in expected if name != "protocol"]
    path, moments = tmp_path / "stats.npz", tmp_path / "moments.npz"
    here(
        "reference-stats",
        str(DIGITS),
        str(path),
        "--extractor=Pixels",
        "--device=cpu",
        "--memorisation=true",
        "--max_neighbours=100",
    )
    with np.load(path) as file:
        np.savez(moments, mu=file["mu"], sigma=file["sigma"])
    with monkeypatch.context() as patch:
        patch.setattr(scores_module, "measure_reference", None)  # no pass over the data
        here(*options(double_ckpt, tmp_path / "file", f"--scores.reference_stats={path}"))
        here(*options(double_ckpt, tmp_path / "moments", f"--scores.reference_stats={moments}"))
    found = scores(tmp_path / "file")
    assert found["protocol"]["reference"][0].startswith("Digits: 1797 training images, from stats.npz")
    assert set(found) == set(expected)  # without the companions that are in the file
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}
    found = scores(tmp_path / "moments")
    assert set(found) == {"fd16_pixel", "protocol"}
    assert found["fd16_pixel"] == expected["fd16_pixel"]
    # With companions, the data give what the moments do not.
    here(*options(double_ckpt, tmp_path / "both", f"--scores.reference_stats=[{moments}]", "--scores.companions=true"))
    found = scores(tmp_path / "both")
    assert {"fd16_pixel_gaussian", "recall16_pixel_halves"} <= set(found)
    assert {name: found[name] for name in names} == {name: expected[name] for name in names}


def test_references_are_kept_in_a_folder(double_ckpt, tmp_path, monkeypatch) -> None:
    """Once for the same images and protocol, with the scores that the data give; what is damaged is made anew."""
    references = tmp_path / "references"
    kept = f"--scores.reference_stats={references}"
    extractors = '--scores.extractors=[{"class_path": "Pixels"}, {"class_path": "DigitsFeatures"}]'

    def measured(name: str, *more: str) -> dict[str, float]:
        here(*options(double_ckpt, tmp_path / name, extractors, *more))
        return {score: value for score, value in scores(tmp_path / name).items() if score != "protocol"}

    expected = measured("data")
    assert "memorisation16_pixel" in expected
    assert measured("first", kept) == expected
    files = sorted(references.iterdir())
    assert [file.name.split("-")[:2] for file in files] == [["DigitsFeatures", "1797"], ["Pixels", "1797"]]
    with monkeypatch.context() as patch:
        patch.setattr(scores_module, "measure_reference", fails)  # no pass over the data
        assert measured("second", kept) == expected
    files[0].write_bytes(files[0].read_bytes()[:-100])
    with pytest.warns(UserWarning, match=f"{files[0].name} is damaged.*this is done now"):
        assert measured("third", kept) == expected
    assert sorted(references.iterdir()) == files
    measured("neighbours", kept, "--scores.max_neighbours=50")
    measured("companions", kept, "--scores.companions=true")
    measured("one score", kept, "--scores.scores=[FrechetDistance]")
    measured("other images", kept, "--data.held_out=100")
    assert len(list(references.iterdir())) == 5 * len(files)
    monkeypatch.setattr("warm_lightning.metrics.reference_file.write_file", fails)
    with pytest.warns(UserWarning, match="disk is full.*is not kept"):
        assert measured("full", f"--scores.reference_stats={tmp_path / 'other'}") == expected


def fails(*arguments: object, **settings: object) -> None:
    raise UserError("the disk is full")


def test_a_round_keeps_the_commit_that_it_is_of(double_ckpt, tmp_path, monkeypatch) -> None:
    """A test that goes on with other code does not say that all of it is of that code."""
    for commit, rounds in (("a", 1), ("b", 2), ("c", 2)):
        monkeypatch.setattr("warm_lightning.records.git_commit", lambda commit=commit: commit)
        here(*options(double_ckpt, tmp_path, f"--scores.rounds={rounds}"))
        expected = {"a": "a", "b": ["a", "b"], "c": ["a", "b"]}[commit]
        assert scores(tmp_path)["protocol"]["git_commit"] == expected
    assert scores(tmp_path)["protocol"]["torch_version"] == torch.__version__
