"""`python -m experiments run`: cells, jobs, results and report of one experiment."""

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments.cells import Cell, expand, select, slug
from experiments.costs import Cost, check_affordable, estimate
from experiments.jobs import Executor, Job, Processes, Slurm, ThisProcess, machine
from experiments.report import write
from experiments.results import collect, lines, save
from experiments.schedule import run_all
from experiments.schema import FOLDER, Experiment, read
from warm_lightning.errors import UserError, check
from warm_lightning.pictures import writable_folder

LAST = Path("checkpoints") / "last.ckpt"
QUIET = "--trainer.enable_progress_bar=false"


def find(file: str) -> Path:
    """An experiment's file by its path, or its name alone."""
    path = Path(file)
    return path if path.exists() or path.suffix else FOLDER / f"{file}.yaml"


def training_job(cell: Cell, out: Path) -> Job:
    """What trains a cell's model; the same for all cells with the same options."""
    folder = out / "trainings" / cell.training_name
    where = (f"--trainer.default_root_dir={folder}", "--ckpt_path=last", QUIET)
    return Job(f"fit {cell.training_name}", ("fit", *cell.training, *where), folder)


def jobs_of(experiment: Experiment, cells: Sequence[Cell], out: Path, results: Path) -> dict[Job, Job | None]:
    """All jobs, each with the one it needs; in the order of the cells."""
    jobs: dict[Job, Job | None] = {}
    for cell in cells:
        training = training_job(cell, out) if any(measure.trains for measure in experiment.measures) else None
        if training:
            jobs.setdefault(training, None)
        for job in measuring(experiment, cell, training, results):
            jobs[job] = training if job.needs else None
    return jobs


def measuring(experiment: Experiment, cell: Cell, training: Job | None, results: Path) -> list[Job]:
    """What measures a cell."""
    found = []
    for measure in experiment.measures:
        folder = results / "cells" / cell.name / measure.name
        checkpoint = training.folder / LAST if training else Path()
        arguments = tuple(measure.arguments(cell, folder, checkpoint))
        found.append(Job(f"{measure.name} {cell.name}", arguments, folder, checkpoint if measure.trains else None))
    return found


def show_plan(experiment: Experiment, cells: Sequence[Cell], jobs: Mapping[Job, Job | None], cost: Cost) -> str:
    """What is going to happen, and what it is expected to cost."""
    done = sum(job.done() for job in jobs)
    trainings = sum(job.name.startswith("fit ") for job in jobs)
    first = cells[0]
    return "\n".join(
        [
            f"{experiment.title} ({experiment.source})",
            f"  {len(cells)} cells on {', '.join(dict.fromkeys(cell.data for cell in cells))}, budget {first.budget}: "
            f"{trainings} trainings, {len(jobs) - trainings} measurements; {done} of these {len(jobs)} runs are done",
            f"  {cost.line()}",
        ]
    )


def choose_executor(options: argparse.Namespace) -> Executor:
    """Where jobs run."""
    if options.slurm is not None:
        try:
            given = json.loads(options.slurm)
        except ValueError as error:
            raise UserError(f"--slurm {options.slurm}: write submitit's options as JSON ({error})") from error
        check(isinstance(given, dict), f'--slurm {options.slurm}: write {{"slurm_partition": "gpu", …}}')
        return Slurm(given)
    return ThisProcess() if options.in_process else Processes.sharing(options.jobs)


def run(options: argparse.Namespace, command: str) -> tuple[int, str]:
    """Run one experiment as the options say; gives the exit code and the report.

    Raises:
        UserError: for wrong files and options, or when nothing at all could be measured.
    """
    path = find(options.file)
    experiment = read(path, Experiment)
    check(options.jobs >= 1, f"--jobs {options.jobs}: there must be at least 1")
    strange = [word for word in options.extra if not (word.startswith("--") and "=" in word)]
    check(not strange, f"{strange[:1]}: write options of warm as --name=value")
    cells = expand(experiment, options.data, options.budget, options.seeds, options.extra)
    cells = select(cells, options.only or [])[: options.cells]
    out = Path(options.out).resolve()
    results = out / slug(path.stem, options.data or "paper-data", options.budget)
    jobs = jobs_of(experiment, cells, out, results)
    trained = any(measure.trains for measure in experiment.measures)
    cost = estimate(cells if trained else [], options.tflops)
    print(show_plan(experiment, cells, jobs, cost), flush=True)
    if options.plan:
        return 0, "\n".join(f"{job.name}: warm {' '.join(job.arguments)}" for job in jobs)
    executor = choose_executor(options)
    check_affordable(cost, options.anyway or isinstance(executor, Slurm))
    writable_folder(results)
    began = time.perf_counter()
    try:
        with FileLock(out / ".lock", timeout=0):
            failed = run_all(jobs, executor, options.jobs, machine(executor), path.stem)
    except Timeout as error:
        raise UserError(f"{out}: another run works in this folder: wait for it, or choose another --out") from error
    found = []
    for cell in cells:
        training = training_job(cell, out) if trained else None
        for measure, job in zip(experiment.measures, measuring(experiment, cell, training, results), strict=True):
            if job not in failed and training not in failed:
                found.append(collect(cell, measure, job, training))
    check(bool(found), f"nothing was measured: {'; '.join(failed.values())}")
    save(lines(path.stem, found), results)
    protocol: dict[str, Any] = {"command": command, "seconds": time.perf_counter() - began}
    text = write(experiment, found, list(failed.values()), protocol, results)
    return int(bool(failed)), f"{text}\nwritten to {results}: report.html, report.md, results.csv, results.json"
