"""Every system of the papers on the digits: `make compare`, or

    python -m experiments.compare --out runs/compare --jobs 2

Trains each system once through `warm fit`, samples and scores what `compare.yaml` says through `warm test`, each in a
process and a folder of its own, and writes a table, a picture and their protocol. Started again after it was stopped,
it does what is missing: a training goes on where it was, and rows that are there are kept.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from experiments.compare_report import report
from warm_lightning.config import as_text
from warm_lightning.errors import UserError, check
from warm_lightning.pictures import writable_folder, write_file

REPOSITORY = Path(__file__).resolve().parent.parent
PLAN = Path(__file__).with_suffix(".yaml")
LAST = Path("checkpoints") / "last.ckpt"
QUIET = ["--trainer.enable_progress_bar=false"]


@dataclass(frozen=True)
class Job:
    """A call of `warm`.

    Attributes:
        name: of the folder it works in.
        command: fit or test.
        arguments: its options.
        folder: where it writes, with its output in `log.txt`.
    """

    name: str
    command: str
    arguments: list[str]
    folder: Path

    def run(self, threads: int) -> None:
        """Run it, unless it was run before with the same arguments.

        Raises:
            UserError: if it fails.
        """
        note = self.folder / "job.json"
        wanted = [self.command, *self.arguments]
        if note.exists() and json.loads(note.read_text())["arguments"] == wanted:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        began = time.perf_counter()
        with (self.folder / "log.txt").open("w") as log:
            environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(REPOSITORY)}
            command = [sys.executable, "-m", "warm_lightning.cli", *wanted]
            code = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, check=False)
        lines = (self.folder / "log.txt").read_text().strip().splitlines()
        reason = lines[-1] if lines else "no output"
        check(code.returncode == 0, f"{self.name}: `warm {self.command}` failed ({reason}); see {self.folder}/log.txt")
        done = {"arguments": wanted, "seconds": round(time.perf_counter() - began, 1)}
        write_file(note, json.dumps(done, indent=2).encode())


@dataclass(frozen=True)
class System:
    """A row of the table: a training, and how its model is sampled."""

    name: str
    training: Job
    test: Job


def settings(plan: Mapping[str, Any], entry: Mapping[str, Any], method: str, full: bool) -> list[str]:
    """The options of `warm` for an entry of the plan."""
    values = {**entry.get("set", {}), **({} if full else entry.get("short", {}))}
    files = [plan["config"], f"configs/method/{method}.yaml"]
    return [*(f"--config={file}" for file in files), *(f"--{name}={as_text(value)}" for name, value in values.items())]


def read_plan(path: Path, out: Path, full: bool, extra: list[str]) -> tuple[list[System], range]:
    """The rows of a plan, and the seeds of their images.

    Args:
        path: YAML file.
        out: folder of the whole comparison.
        full: whole chains and as many images as there are data.
        extra: options for all trainings and tests.

    Raises:
        UserError: for a row without a training.
    """
    plan = yaml.safe_load(path.read_text())
    count = plan["images"]["full" if full else "short"]
    scored = [
        f"--scores.num_images={count}",
        f"--scores.first_seed={plan['seed']}",
        "--scores.extractors=[DigitsFeatures,Pixels]",
    ]
    silent = ["--samples.every=0", "--samples.trajectory=0", "--samples.seeds=0-15", "--checkpoints.every=1e12"]
    trainings = {}
    for name, entry in plan["trainings"].items():
        folder = out / "trainings" / name
        options = [*settings(plan, entry, entry.get("method", name), full), *silent, *QUIET, *extra]
        where = [f"--trainer.default_root_dir={folder}", "--ckpt_path=last", "--scores.num_images=64"]
        trainings[name] = Job(name, "fit", [*options, *where], folder)
    systems = []
    for row in plan["systems"]:
        check(
            row["training"] in trainings, f"{path}: {row['name']} is of a training {row['training']} that is not there"
        )
        training = trainings[row["training"]]
        entry = plan["trainings"][row["training"]]
        method = row.get("method", entry.get("method", row["training"]))
        base = settings(plan, entry, method, full)
        options = [*base, *settings(plan, row, method, full)[2:], *scored, *QUIET, *extra]
        folder = out / "systems" / "".join(c if c.isalnum() else "-" for c in row["name"])
        where = [f"--trainer.default_root_dir={folder}", f"--ckpt_path={training.folder / LAST}"]
        systems.append(System(row["name"], training, Job(row["name"], "test", [*options, *where], folder)))
    return systems, range(plan["seed"], plan["seed"] + count)


def run(systems: list[System], jobs: int) -> list[str]:
    """Run all trainings and tests, `jobs` at a time; gives what failed."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    trainings = list({system.training.name: system.training for system in systems}.values())
    failed = []
    total = len(trainings) + len(systems)
    with ThreadPoolExecutor(jobs) as pool, tqdm(total=total, desc="Comparing", unit=" runs") as bar:
        waiting = {pool.submit(training.run, threads): training for training in trainings}
        for future in as_completed(waiting):
            bar.update()
            training = waiting[future]
            if error := future.exception():
                failed.append(str(error))
                continue
            bar.set_postfix_str(f"trained {training.name}")
        tests = {pool.submit(s.test.run, threads): s for s in systems if (s.training.folder / LAST).exists()}
        for future in as_completed(tests):
            bar.update()
            if error := future.exception():
                failed.append(str(error))
            bar.set_postfix_str(f"scored {tests[future].name}")
    return failed


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code: 1 if a run failed."""
    parser = argparse.ArgumentParser(prog="python -m experiments.compare", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for runs, table and picture")
    parser.add_argument("--full", action="store_true", help="whole chains and as many images as there are data")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--plan", type=Path, default=PLAN, help="YAML file of trainings and systems")
    parser.add_argument("extra", nargs="*", help="options of warm for every run, such as -- --model.duration=6400")
    options = parser.parse_args(arguments)
    try:
        check(options.jobs >= 1, f"--jobs {options.jobs}: there must be at least 1")
        out = writable_folder(options.out).resolve()
        systems, seeds = read_plan(options.plan, out, options.full, options.extra)
        began = time.perf_counter()
        failed = run(systems, options.jobs)
        command = " ".join([parser.prog, *(sys.argv[1:] if arguments is None else arguments)])
        protocol = {"command": command, "jobs": options.jobs, "seconds": round(time.perf_counter() - began)}
        done = [s for s in systems if (s.test.folder / "scores.json").exists()]
        check(bool(done), f"nothing was scored: {'; '.join(failed)}")
        print(report(done, seeds, out, protocol))
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    for reason in failed:
        print(f"compare: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
