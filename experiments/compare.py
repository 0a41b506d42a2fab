"""Every system of the papers on the digits: `make compare`, or

    python -m experiments.compare --out runs/compare --jobs 2

Trains each system once through `warm fit`, samples and scores what `plans/compare.yaml` says through `warm test`, each
in a process and a folder of its own, and writes a table, a picture and their protocol. Started again after it was
stopped, it does what is missing: a training goes on from its last checkpoint, and rows that are there are kept, unless
what was asked for or what they are made of has changed.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from warm_lightning.config import as_text
from warm_lightning.errors import UserError, check
from warm_lightning.pictures import writable_folder, write_file

REPOSITORY = Path(__file__).resolve().parent.parent
PLAN = Path(__file__).parent / "plans" / "compare.yaml"
LAST = Path("checkpoints") / "last.ckpt"
QUIET = ["--trainer.enable_progress_bar=false"]


@dataclass(frozen=True)
class Job:
    """A call of `warm`.

    Attributes:
        name: for people.
        command: fit or test.
        arguments: its options.
        folder: where it writes, with its output in `log.txt`, and in `job.json` what was asked for and whether it is
            done.
        checkpoint: the file that it samples with, if it does.
    """

    name: str
    command: str
    arguments: list[str]
    folder: Path
    checkpoint: Path | None = None

    def note(self) -> dict[str, Any]:
        """What is known of earlier runs."""
        path = self.folder / "job.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def run(self, threads: int) -> None:
        """Run it, unless it was done before, with the same options and checkpoint; anew where they have changed.

        Raises:
            UserError: if it fails.
        """
        digest = hashlib.sha256(self.checkpoint.read_bytes()).hexdigest() if self.checkpoint else None
        wanted = {"arguments": [self.command, *self.arguments], "checkpoint": digest}
        note = self.note()
        if any(note.get(name) != value for name, value in wanted.items()):
            shutil.rmtree(self.folder, ignore_errors=True)
            note = wanted | {"done": False, "seconds": 0.0}
        if note["done"]:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        write_file(self.folder / "job.json", json.dumps(note, indent=2).encode())
        began = time.perf_counter()
        with (self.folder / "log.txt").open("a") as log:
            path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
            environment = os.environ | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": path}
            command = [sys.executable, "-m", "warm_lightning.cli", self.command, *self.arguments]
            code = subprocess.run(
                command, cwd=REPOSITORY, env=environment, stdout=log, stderr=log, check=False
            ).returncode
        note |= {"done": code == 0, "seconds": round(note["seconds"] + time.perf_counter() - began, 1)}
        write_file(self.folder / "job.json", json.dumps(note, indent=2).encode())
        lines = (self.folder / "log.txt").read_text().strip().splitlines()
        reason = lines[-1] if lines else "no output"
        check(code == 0, f"{self.name}: `warm {self.command}` failed ({reason}); see {self.folder}/log.txt")


@dataclass(frozen=True)
class System:
    """A row of the table: a training, and how its model is sampled."""

    name: str
    training: Job
    test: Job


def values(entry: Mapping[str, Any], full: bool) -> list[str]:
    """What an entry of the plan sets, as options of `warm`."""
    found = {**entry.get("set", {}), **({} if full else entry.get("short", {}))}
    return [f"--{name}={as_text(value)}" for name, value in found.items()]


def read_plan(path: Path, out: Path, full: bool, extra: list[str]) -> tuple[list[System], range]:
    """The rows of a plan, and the seeds of their images.

    Args:
        path: YAML file.
        out: folder of the whole comparison.
        full: whole chains and as many images as there are data.
        extra: options for all trainings and tests.

    Raises:
        UserError: for a plan that is not there, or a row without a name or a training.
    """
    check(path.is_file(), f"{path}: no such plan; leave --plan out for the one of all systems")
    plan = yaml.safe_load(path.read_text())
    count = plan["images"]["full" if full else "short"]
    scored = [
        f"--scores.num_images={count}",
        f"--scores.first_seed={plan['seed']}",
        "--scores.extractors=[DigitsFeatures,Pixels]",
    ]
    silent = ["--samples.every=0", "--samples.trajectory=0", "--samples.seeds=0-15"]
    trainings = {}
    for name, entry in plan["trainings"].items():
        folder = out / "trainings" / name
        files = [f"--config={plan['config']}", f"--config=configs/method/{entry.get('method', name)}.yaml"]
        options = [*files, *values(entry, full), *silent, *QUIET, *extra]
        where = [f"--trainer.default_root_dir={folder}", "--ckpt_path=last", "--scores.num_images=64"]
        trainings[name] = Job(name, "fit", [*options, *where], folder)
    systems = []
    for number, row in enumerate(plan["systems"]):
        check(
            "name" in row and row.get("training") in trainings,
            f"{path}: system {row.get('name', number)} needs a name, and a training of {', '.join(trainings)}",
        )
        training, entry = trainings[row["training"]], plan["trainings"][row["training"]]
        own = entry.get("method", row["training"])
        files = [f"--config={plan['config']}", f"--config=configs/method/{row.get('method', own)}.yaml"]
        options = [*files, *values(entry, full), *values(row, full), *scored, *QUIET, *extra]
        folder = out / "systems" / f"{number:02d}-{''.join(c if c.isalnum() else '-' for c in row['name'])}"
        checkpoint = training.folder / LAST
        where = [f"--trainer.default_root_dir={folder}", f"--ckpt_path={checkpoint}"]
        systems.append(System(row["name"], training, Job(row["name"], "test", [*options, *where], folder, checkpoint)))
    return systems, range(plan["seed"], plan["seed"] + count)


def run(systems: Sequence[System], jobs: int) -> tuple[list[System], list[str]]:
    """Run all trainings and then tests, `jobs` at a time; gives the systems that were scored, and what failed."""
    threads = max(1, (os.cpu_count() or 1) // jobs)
    trainings = list({system.training.name: system.training for system in systems}.values())
    failed: list[str] = []
    pool = ThreadPoolExecutor(jobs)
    try:
        with tqdm(total=len(trainings) + len(systems), desc="Comparing", unit=" runs") as bar:

            def finish(waiting: Mapping[Future[None], Job]) -> set[str]:
                done = set()
                for future in as_completed(waiting):
                    error = future.exception()
                    failed.extend([str(error)] if error else [])
                    done |= set() if error else {waiting[future].name}
                    bar.update()
                    bar.set_postfix_str(f"{waiting[future].command} {waiting[future].name}")
                return done

            trained = finish({pool.submit(training.run, threads): training for training in trainings})
            ready = [system for system in systems if system.training.name in trained]
            scored = finish({pool.submit(system.test.run, threads): system.test for system in ready})
    finally:
        pool.shutdown(cancel_futures=True)  # after Ctrl-C, which the running ones have had too
    return [system for system in systems if system.name in scored], failed


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
        strange = [word for word in options.extra if not (word.startswith("--") and "=" in word)]
        check(not strange, f"{strange[:1]}: write options of warm as --name=value")
        check(
            importlib.util.find_spec("matplotlib") is not None,
            "the pictures need matplotlib: pip install 'warm-lightning[plots]'",
        )
        from experiments.compare_report import report

        out = writable_folder(options.out).resolve()
        systems, seeds = read_plan(options.plan, out, options.full, options.extra)
        began = time.perf_counter()
        done, failed = run(systems, options.jobs)
        check(bool(done), f"nothing was scored: {'; '.join(failed)}")
        command = " ".join([parser.prog, *(sys.argv[1:] if arguments is None else arguments)])
        protocol = {
            "command": command,
            "jobs": options.jobs,
            "seconds of this call": round(time.perf_counter() - began),
        }
        print(report(done, seeds, out, protocol))
    except UserError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    for reason in failed:
        print(f"compare: {reason}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
