"""Endurance: commands that are ended at random moments go on by the same command, to the bits of an undisturbed run.

A trial starts a command in an empty folder, ends it in one of three ways, and starts it again until it is finished:

    kill      SIGKILL to the command and all processes that it has started, at a random moment
    disk      a limit on the size of files, which a write meets as it meets a full disk
    memory    a limit on the address space, which an allocation meets as it meets full memory

Moments are drawn evenly up to the time that the undisturbed run took, limits of files up to its largest file, and those
of memory from 80 % of its largest address space on, which PyTorch's libraries nearly fill. A command that is finished
before it is ended is started again in an empty folder. `Subject.result` says what must be equal at the end. Results go
to a CSV file and a table in Markdown. With `--overlays` the commands are trainings, one with each overlay of
configs/method, and all are killed.
"""

import argparse
import csv
import hashlib
import io
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm

from experiments.results import read_rows
from warm_lightning.errors import UserError, check
from warm_lightning.paths import path_argument
from warm_lightning.records import machine, markdown_table, tensors_hash, write_file

REPOSITORY = Path(__file__).resolve().parents[2]
WARM = ("-m", "warm_lightning.cli")
SMALL = (
    f"--config={REPOSITORY / 'configs' / 'digits.yaml'}",
    "--model.network.model_channels=8",
    "--model.network.channel_mult=[1,2]",
    "--data.batch_size=32",
    "--trainer.enable_progress_bar=false",
)
AUGMENTED = ("--model.network.augment_dim=9", "--model.augment={class_path: NonLeaky, init_args: {p: 0.5}}")
LIMITS = {"disk": resource.RLIMIT_FSIZE, "memory": resource.RLIMIT_AS}
"""The limit, in bytes, of each way to end a command but kill."""
FOLDER = "FOLDER"
HANGING, PATIENCE = 5, 60.0
"""A command under a limit is killed after HANGING times its undisturbed time, and PATIENCE seconds.

Where OpenBLAS cannot have memory when SciPy loads it, it tries again for ever (0.3.30 in SciPy 1.17).
"""
MOST_FOLDERS = 20
"""Number of times that a trial begins anew, because its command was finished before it was ended."""


@dataclass(frozen=True)
class Subject:
    """A command that must survive.

    Attributes:
        name: in the table.
        words: the arguments of Python, with `FOLDER` for the folder of results.
        result: what must be equal at the end, as a text, from that folder.
    """

    name: str
    words: tuple[str, ...]
    result: Callable[[Path], str]

    def arguments(self, folder: Path) -> list[str]:
        """The arguments of Python for a folder of results."""
        return [word.replace(FOLDER, str(folder)) for word in self.words]


# ---------------------------------------------------------------------- what must be equal


def files_hash(folder: Path, pattern: str) -> str:
    """SHA-256 of the names and contents of files."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob(pattern)):
        digest.update(path.relative_to(folder).as_posix().encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def training_hash(folder: Path) -> str:
    """SHA-256 of all tensors of the last checkpoint, Adam's moments among them, and of snapshots and pictures."""
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)
    adam = checkpoint["optimizer_states"][0]["state"]
    tensors = {f"adam.{k}.{n}": t for k, state in adam.items() for n, t in state.items()} | checkpoint["state_dict"]
    section = checkpoint["warm_lightning"]
    tensors |= {f"learned.{name}": tensor for name, tensor in section["learned"].items()}
    beside = f"{files_hash(folder, 'posthoc/*')} {files_hash(folder, 'samples/*')}"
    return f"{section['images_seen']} {tensors_hash(tensors.items())} {beside}"


def scores_text(folder: Path) -> str:
    """The scores of `warm test` without the protocol, which has times."""
    scores: dict[str, Any] = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    return json.dumps({name: value for name, value in scores.items() if name != "protocol"}, sort_keys=True)


def rows_text(folder: Path) -> str:
    """The measured values of all cells of an experiment."""
    (table,) = folder.glob("*/results.csv")
    rows = [{n: v for n, v in row.items() if "seconds" not in n} for row in read_rows(table)]
    return json.dumps(rows, sort_keys=True, default=str)


# ---------------------------------------------------------------------- subjects


def subjects(prepared: Path) -> list[Subject]:
    """The commands, with the model and images that some of them need in `prepared`."""
    model = prepared / "model"
    experiment = prepared / "endurance.yaml"
    fit = (*WARM, "fit", *SMALL, *AUGMENTED, "--posthoc_ema.sigma_rel=[0.05,0.1]", "--posthoc_ema.every=640")
    every = ("--checkpoints.every=160", "--samples.every=960", "--samples.seeds=0-3", "--ckpt_path=last")
    scores = ("--scores.extractors=[Pixels]", "--scores.num_images=64", "--scores.rounds=4", "--scores.batch_size=16")
    checkpoint = f"--ckpt_path={model / 'checkpoints' / 'last.ckpt'}"
    root = f"--trainer.default_root_dir={FOLDER}"
    return [
        Subject("fit", (*fit, *every, "--model.duration=1920", root), training_hash),
        Subject("test", (*WARM, "test", *SMALL, *AUGMENTED, *scores, checkpoint, root), scores_text),
        Subject(
            "experiments run",
            ("-m", "experiments", "run", str(experiment), "--data=digits", "--budget=smoke", f"--out={FOLDER}"),
            rows_text,
        ),
        Subject(
            "dataset",
            (*WARM, "dataset", str(prepared / "images"), f"{FOLDER}/out.zip", "--overwrite=true"),
            partial(files_hash, pattern="out.zip"),
        ),
        Subject(
            "generate",
            (*WARM, "generate", checkpoint, "--seeds=0-95", "--batch_size=8", f"--outdir={FOLDER}/out"),
            partial(files_hash, pattern="out/*.png"),
        ),
    ]


def overlay_trainings() -> list[Subject]:
    """A short training with each overlay of configs/method, with a checkpoint every 160 of its 960 images."""
    fit = (*WARM, "fit", *SMALL, "--checkpoints.every=160", "--samples.every=640", "--samples.seeds=0-3")
    ends = ("--model.duration=960", "--ckpt_path=last", f"--trainer.default_root_dir={FOLDER}")
    overlays = sorted((REPOSITORY / "configs" / "method").glob("*.yaml"))
    return [Subject(f"fit {path.stem}", (*fit, f"--config={path}", *ends), training_hash) for path in overlays]


EXPERIMENT = """\
title: Endurance
source: none
about: Two trainings and their scores, to be ended at random moments.
measures: [Scores]
axes:
  BNR:
    setting: model.process.path.bnr
    values: [0, 0.5]
"""


def prepare(folder: Path) -> None:
    """Make the model, images and experiment that some commands start from."""
    generator = torch.Generator().manual_seed(0)
    from warm_lightning.images import write_png

    for k in range(400):
        write_png(folder / "images" / f"{k:04d}.png", torch.randint(0, 256, (3, 64, 64), generator=generator).byte())
    write_file(folder / "endurance.yaml", EXPERIMENT.encode())
    words = [*WARM, "fit", *SMALL, *AUGMENTED, "--model.duration=320", "--samples.seeds=0-3"]
    code, output = start([*words, f"--trainer.default_root_dir={folder / 'model'}"])
    check(code == 0, f"the model that is sampled cannot be trained: {output[-400:]}")


# ---------------------------------------------------------------------- trials


def start(
    arguments: Sequence[str],
    kill_after: float = math.inf,
    limit: tuple[int, int] | None = None,
    watch: Callable[[int], object] | None = None,
) -> tuple[int, str]:
    """Run Python with some arguments to its end, or to its killing; gives its exit code and its output.

    Args:
        arguments: of Python.
        kill_after: seconds, after which all its processes are killed.
        limit: number and value of a resource limit.
        watch: called with the number of the process ten times a second.
    """
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        if limit:
            resource.prlimit(process.pid, limit[0], (limit[1], limit[1]))
        end = time.monotonic() + kill_after
        while process.poll() is None:
            if watch:
                watch(process.pid)
            left = end - time.monotonic()
            if left <= 0:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            with suppress(subprocess.TimeoutExpired):
                process.wait(min(left, 0.1))
        output.seek(0)
        return process.returncode, output.read().decode(errors="replace")


class Undisturbed(NamedTuple):
    """The result and the needs of an undisturbed run of a command.

    Attributes:
        result: `Subject.result`.
        seconds: that it took.
        file_bytes: the size of its largest file.
        memory: the largest address space of its processes, in bytes.
    """

    result: str
    seconds: float
    file_bytes: int
    memory: int

    def limit(self, way: str, draw: random.Random) -> int:
        """A random limit, in bytes, that probably ends the command in this way."""
        return draw.randint(1, self.file_bytes) if way == "disk" else draw.randint(self.memory * 4 // 5, self.memory)


def address_space(process: int) -> int:
    """The largest address space so far of a process and of all that it started and that still run, in bytes."""
    peak = 0
    with suppress(OSError):  # it has ended
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
        peak = max(
            (1024 * int(line.split()[1]) for line in status.splitlines() if line.startswith("VmPeak")), default=0
        )
        started = Path(f"/proc/{process}/task/{process}/children").read_text(encoding="ascii").split()
        peak = max([peak, *(address_space(int(child)) for child in started)])
    return peak


def run_undisturbed(subject: Subject, folder: Path) -> Undisturbed:
    """Run a command from its start to its end in an empty folder.

    Raises:
        UserError: it fails.
    """
    folder.mkdir()
    began, memory = time.monotonic(), [0]
    code, output = start(subject.arguments(folder), watch=lambda process: memory.append(address_space(process)))
    check(code == 0, f"{subject.name} fails undisturbed: {output[-400:]}")
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return Undisturbed(subject.result(folder), time.monotonic() - began, max(sizes), max(memory))


def trial(subject: Subject, way: str, known: Undisturbed, draw: random.Random, folder: Path) -> dict[str, Any]:
    """End a command one to three times, finish it, and compare its result with that of the undisturbed run.

    Args:
        subject: the command.
        way: kill, disk or memory.
        known: of the undisturbed run.
        draw: random numbers.
        folder: for the folders of results.
    """
    for _ in range(MOST_FOLDERS):
        with tempfile.TemporaryDirectory(dir=folder) as name:
            results, endings = Path(name), []
            for _ in range(draw.randint(1, 3)):
                after = draw.uniform(0, known.seconds) if way == "kill" else HANGING * known.seconds + PATIENCE
                limit = None if way == "kill" else (LIMITS[way], known.limit(way, draw))
                code, output = start(subject.arguments(results), after, limit)
                if code == 0:
                    break
                where = f"{after:.1f} s" if limit is None else f"{limit[1]:,} bytes"
                endings.append(f"{where} (exit code {code})")
            if not endings:  # it was finished before
                continue
            code, output = start(subject.arguments(results))
            equal = code == 0 and subject.result(results) == known.result
            went_on = "" if code == 0 else output[-400:]
            found = {"ended": len(endings), "endings": "; ".join(endings), "equal": equal, "error": went_on}
            return {"command": subject.name, "way": way, **found}
    raise UserError(f"{subject.name}: no {way} of {MOST_FOLDERS} ended it before it was finished")


def run(trials: int, seed: int, out: Path, overlays: bool = False) -> list[dict[str, Any]]:
    """Make some trials, and write the rows of all after each.

    Args:
        trials: their number.
        seed: of the moments and limits.
        out: folder of the CSV file.
        overlays: whether they are trainings of all overlays, which are killed; otherwise all commands, of whose trials
            three of five are killed.
    """
    draw, rows = random.Random(seed), []
    ways = ("kill",) if overlays else ("kill", "kill", "kill", "disk", "memory")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if not overlays:
            prepare(folder)
        everything = overlay_trainings() if overlays else subjects(folder)
        known = {
            subject.name: run_undisturbed(subject, folder / f"undisturbed-{subject.name}")
            for subject in tqdm(everything[:trials], "undisturbed")
        }
        for k in tqdm(range(trials), "trials"):
            subject, way = everything[k % len(everything)], ways[k // len(everything) % len(ways)]
            rows.append(trial(subject, way, known[subject.name], draw, folder))
            text = io.StringIO()
            writer = csv.DictWriter(text, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
            write_file(out / "endurance.csv", text.getvalue().encode())
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """The trials of each command and way, how often they were ended, and how many ended with equal results."""
    table = []
    for command, way in dict.fromkeys((row["command"], row["way"]) for row in rows):
        own = [row for row in rows if (row["command"], row["way"]) == (command, way)]
        table.append([command, way, len(own), sum(row["ended"] for row in own), sum(row["equal"] for row in own)])
    totals = [sum(row[k] for row in table) for k in (2, 3, 4)]
    return markdown_table(["command", "way", "trials", "ended", "equal"], [*table, ["all", "", *totals]], words=2)


def main() -> int:
    """Run from the command line; returns 1 if a trial ended with another result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--overlays", action="store_true", help="trainings of all overlays of configs/method, killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=path_argument, help="folder for CSV and table")
    options = parser.parse_args()
    out = options.out or Path("runs/endurance-overlays" if options.overlays else "runs/endurance")
    rows = run(options.trials, options.seed, out, options.overlays)
    facts = {**machine("cpu"), "seed": options.seed}
    about = ", ".join(f"{name} {facts[name]}" for name in ("cpu", "cores", "torch_version", "git_commit", "seed"))
    command = f"`make endurance{f' TRIALS={options.trials} ARGS=--overlays' if options.overlays else ''}`"
    text = f"# Endurance\n\n{about}. {command}.\n\n{summary(rows)}\n"
    write_file(out / "endurance.md", text.encode())
    print(text)
    return int(not all(row["equal"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
