"""`python -m experiments run`: cells, jobs, results and report of one experiment."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from filelock import FileLock, Timeout

from experiments.analyses import Description
from experiments.cells import QUIET, Cell, slug
from experiments.experiment import Experiment, expand, read, select
from experiments.identity import PAPERS
from experiments.measures import Measure, Scores
from experiments.plan import Cost, check_affordable, estimate, prepare
from experiments.report import write
from experiments.results import Calls, Result, collect, rows_of, save_rows
from experiments.runner import Executor, Job, Processes, Slurm, ThisProcess, circumstances, run_all
from warm_lightning.errors import UserError, check
from warm_lightning.records import writable_folder

LAST = Path("checkpoints") / "last.ckpt"


@dataclass(frozen=True)
class Work:
    """One measure of one cell.

    Attributes:
        cell: which.
        measure: what is done with it.
        job: that does it.
        training: that makes the model, where it needs one.
    """

    cell: Cell
    measure: Measure
    job: Job
    training: Job | None


def find(file: str) -> Path:
    """An experiment's file by its path, or its name alone."""
    path = Path(file)
    return path if path.exists() else PAPERS / f"{path.stem}.yaml"


def work_of(experiment: Experiment, cells: Sequence[Cell], out: Path, results: Path) -> list[Work]:
    """All that is to be done for some cells; a training is the same job for all cells with the same weights."""
    found = []
    trainings: dict[str, Job] = {}
    for cell in cells:
        training = None
        if any(measure.trains for measure in experiment.measures):
            # Others may say the same in other words.
            training = trainings.setdefault(cell.training_name, training_job(cell, out))
        for measure in experiment.measures:
            folder = results / "cells" / cell.name / measure.place(cell)
            its = training if measure.trains else None
            model = its.folder / LAST if its else None
            arguments = tuple(measure.arguments(cell, folder, model or Path()))
            meaning = partial(cell.meaning, arguments, measure.trains)
            job = Job(f"{measure.name} {cell.name}", arguments, folder, measure.makes, model, meaning, cell.images_file)
            found.append(Work(cell, measure, job, its))
    return found


def training_job(cell: Cell, out: Path) -> Job:
    """What trains a cell's model."""
    place = out / "trainings" / cell.training_name
    where = (f"--trainer.default_root_dir={place}", "--ckpt_path=last", QUIET)
    name = f"fit {cell.training_name}"
    return Job(name, ("fit", *cell.training, *where), place, str(LAST), meaning=cell.trained, images=cell.images_file)


def missing(work: Sequence[Work]) -> list[Work]:
    """What of it is to be done: what is not, and what else is measured of models that are trained again for that."""
    again = {one.training for one in work if one.training and not one.training.done() and not one.job.done()}
    return [one for one in work if one.training in again or not one.job.done()]


def jobs_of(work: Sequence[Work]) -> dict[Job, Job | None]:
    """The jobs of some work, each with the one it needs."""
    trainings: dict[Job, Job | None] = {one.training: None for one in work if one.training}
    return trainings | {one.job: one.training for one in work}


def show_plan(experiment: Experiment, work: Sequence[Work], pending: Sequence[Work], cost: Cost) -> str:
    """What is going to happen, and what it is expected to cost."""
    trainings = {one.training for one in work if one.training}
    to_train = {one.training for one in pending if one.training and not one.training.done()}
    cells = {one.cell.name: one.cell for one in work}
    where = ", ".join(dict.fromkeys(cell.data for cell in cells.values()))
    return "\n".join(
        [
            f"{experiment.title} ({experiment.source})",
            f"  {len(cells)} cells on {where}, budget {work[0].cell.budget}: {len(trainings)} trainings, {len(work)} "
            f"measurements; to do: {len(to_train)} trainings, {len(pending)} measurements",
            f"  {cost.line()}",
        ]
    )


def choose_executor(options: argparse.Namespace) -> Executor:
    """Where jobs run."""
    check(options.slurm is None or not options.in_process, "--slurm and --in_process: give one of them")
    check(
        not options.in_process or options.jobs in (None, 1),
        "--in_process runs one job after the other: leave --jobs out",
    )
    if options.slurm is not None:
        try:
            given = json.loads(options.slurm)
        except ValueError as error:
            raise UserError(f"--slurm {options.slurm}: write submitit's options as JSON ({error})") from error
        check(isinstance(given, dict), f'--slurm {options.slurm}: write {{"slurm_partition": "gpu", …}}')
        return Slurm(given)
    return ThisProcess() if options.in_process else Processes.sharing(options.jobs or 1)


def cells_of(experiment: Experiment, options: argparse.Namespace) -> tuple[list[Cell], list[Cell]]:
    """All cells of an experiment, and those of them that are to be run."""
    for name in ("jobs", "seeds", "cells", "num_images", "rounds"):
        value = getattr(options, name)
        check(value is None or value >= 1, f"--{name} {value}: there must be at least 1")
    check(options.tflops is None or options.tflops > 0, f"--tflops {options.tflops}: it must be above 0")
    own = experiment.seeds.get(options.budget, 1)
    cells = expand(experiment, options.data, options.budget, max(own, options.seeds or 0), options.extra)
    counts = {"images": options.num_images, "rounds": options.rounds}
    given = {name: count for name, count in counts.items() if count is not None}
    cells = [replace(cell, scale=replace(cell.scale, **given)) for cell in cells]
    chosen = [cell for cell in select(cells, options.only or []) if cell.seed < (options.seeds or own)]
    return cells, chosen[: options.cells]


def run(options: argparse.Namespace, command: str) -> tuple[int, str]:
    """Run one experiment as the options say; gives the exit code and the report, of all cells that are done.

    Raises:
        UserError: for wrong files and options, or when nothing at all could be measured.
    """
    path = find(options.file)
    experiment = read(path, Experiment)
    executor = choose_executor(options)
    cells, chosen = cells_of(experiment, options)
    out = Path(options.out).resolve()
    results = out / slug(path.stem, options.data or "paper-data", options.budget)
    work = work_of(experiment, chosen, out, results)
    pending = missing(work)
    to_train = {one.training: one.cell for one in pending if one.training and not one.training.done()}
    cost = estimate(list(to_train.values()), [(one.cell, one.measure) for one in pending], options.tflops)
    print(show_plan(experiment, work, pending, cost), flush=True)
    if options.plan:
        return 0, "\n".join(f"{job.name}: warm {' '.join(job.arguments)}" for job in jobs_of(pending))
    check_affordable(cost, options.anyway or isinstance(executor, Slurm))
    check(
        not isinstance(executor, Slurm) or not cost.gpu or executor.wants_gpus() or options.anyway,
        '--slurm: this needs GPUs and does not ask for any: add "gpus_per_node": 8, or --anyway where jobs get them',
    )
    seeing = [one.cell for one in pending if not isinstance(one.measure, Description)]
    prepare(seeing, [one.cell for one in pending if isinstance(one.measure, Scores)])
    writable_folder(results)
    calls = Calls(results)
    at_a_time = options.jobs or (max(1, len(jobs_of(pending))) if isinstance(executor, Slurm) else 1)
    try:
        with FileLock(out / ".lock", timeout=0), calls.noted(command, bool(pending)):
            failed = run_all(jobs_of(pending), executor, at_a_time, circumstances(executor), path.stem)
    except Timeout as error:
        raise UserError(f"{out}: another run works in this folder: wait for it, or choose another --out") from error
    everything = work_of(experiment, cells, out, results)
    found, reasons = gather(everything, work, failed)
    check(bool(found), f"nothing was measured: {'; '.join(reasons)}")
    save_rows(rows_of(path.stem, found), results / "results.csv")
    text = write(experiment, found, reasons, {"calls": calls.lines(), "of": len(everything)}, results)
    return int(bool(reasons)), f"{text}\nwritten to {results}: report.html, report.md, results.csv"


def gather(
    everything: Sequence[Work], work: Sequence[Work], failed: Mapping[Job, str]
) -> tuple[list[Result], list[str]]:
    """What is done of everything, and what went wrong with the work of this call."""
    found, reasons = [], list(failed.values())
    for one in everything:
        if one.job.done():
            try:
                found.append(collect(one.cell, one.measure, one.job, one.training))
            except UserError as error:
                reasons.append(f"{one.job.name}: {error}")
    if not failed:
        late = [one.job.name for one in work if not one.job.done()]
        reasons += [f"{name}: what it was to work with has changed meanwhile: run this again" for name in late]
    return found, reasons
