"""`python -m experiments run`: the cells of an experiment, their jobs, its results and its report."""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from experiments.analyses import Description
from experiments.cells import Cell, slug
from experiments.experiment import Experiment, expand, read, select
from experiments.identity import NO_PROGRESS_BAR, PAPERS
from experiments.measures import Measure, Scores
from experiments.plan import Cost, check_affordable, estimate, prepare
from experiments.report import write
from experiments.results import Calls, Result, collect, rows_of, save_rows
from experiments.runner import Executor, Job, Processes, Slurm, ThisProcess, run_all, run_conditions
from warm_lightning.errors import UserError, check
from warm_lightning.paths import folder_lock
from warm_lightning.records import writable_folder

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"


@dataclass(frozen=True)
class Work:
    """One measure of one cell, with its jobs.

    Attributes:
        cell: which cell is measured.
        measure: what is done with it.
        job: the job that measures.
        training: the job that makes the model, where one is needed.
    """

    cell: Cell
    measure: Measure
    job: Job
    training: Job | None


def run(options: argparse.Namespace, command: str) -> tuple[int, str]:
    """Run one experiment.

    Args:
        options: see `experiments.__main__.parser`.
        command: as the user typed it.

    Returns:
        The exit code, 1 if a job failed, and the report of all cells that are done; or, with --plan, the commands.

    Raises:
        UserError: a file or option is wrong, or nothing at all could be measured.
    """
    path = find(options.file)
    experiment = read(path, Experiment)
    executor = choose_executor(options)
    cells, chosen = cells_of(experiment, options)
    out = Path(options.out).resolve()
    folder = out / slug(path.stem, options.data or "paper-data", options.budget)
    work = work_of(experiment, chosen, out, folder)
    pending = missing(work)
    to_train = {one.training: one.cell for one in pending if one.training and not one.training.done()}
    cost = estimate(list(to_train.values()), [(one.cell, one.measure) for one in pending], options.tflops)
    print(plan_text(experiment, work, pending, cost), flush=True)
    if options.plan:
        return 0, "\n".join(f"{job.name}: warm {' '.join(job.arguments)}" for job in jobs_of(pending))
    check_affordable(cost, options.anyway or isinstance(executor, Slurm))
    check(
        not isinstance(executor, Slurm) or not cost.gpu or executor.wants_gpus() or options.anyway,
        '--slurm: this needs GPUs and does not ask for any: add "gpus_per_node": 8, or --anyway where jobs get them',
    )
    with_data = [one.cell for one in pending if not isinstance(one.measure, Description)]
    prepare(with_data, [one.cell for one in pending if isinstance(one.measure, Scores)])
    writable_folder(folder)
    calls = Calls(folder)
    at_a_time = options.jobs or (max(1, len(jobs_of(pending))) if isinstance(executor, Slurm) else 1)
    with folder_lock(out), calls.noted(command, bool(pending)):
        failures = run_all(jobs_of(pending), executor, at_a_time, run_conditions(executor), path.stem)
    all_work = work_of(experiment, cells, out, folder)
    results, reasons = gather(all_work, work, failures)
    check(bool(results), f"nothing was measured: {'; '.join(reasons)}")
    save_rows(rows_of(path.stem, results), folder / "results.csv")
    text = write(experiment, results, reasons, {"calls": calls.lines(), "of": len(all_work)}, folder)
    return int(bool(reasons)), f"{text}\nwritten to {folder}: report.html, report.md, results.csv"


# ---------------------------------------------------------------------- options


def find(path: Path) -> Path:
    """The path of an experiment's file, given as a path or as a name alone."""
    return path if path.exists() else PAPERS / f"{path.stem}.yaml"


def choose_executor(options: argparse.Namespace) -> Executor:
    """The executor that the options ask for."""
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
    """All cells of an experiment, and those of them that the options choose to be run."""
    for name in ("jobs", "seeds", "cells", "num_images", "rounds"):
        value = getattr(options, name)
        check(value is None or value >= 1, f"--{name} {value}: there must be at least 1")
    check(options.tflops is None or options.tflops > 0, f"--tflops {options.tflops}: it must be above 0")
    seeds = experiment.seeds.get(options.budget, 1)
    cells = expand(experiment, options.data, options.budget, max(seeds, options.seeds or 0), options.extra)
    counts = {"images": options.num_images, "rounds": options.rounds}
    given = {name: count for name, count in counts.items() if count is not None}
    cells = [replace(cell, scale=replace(cell.scale, **given)) for cell in cells]
    chosen = [cell for cell in select(cells, options.only or []) if cell.seed < (options.seeds or seeds)]
    return cells, chosen[: options.cells]


# ---------------------------------------------------------------------- work


def work_of(experiment: Experiment, cells: Sequence[Cell], out: Path, folder: Path) -> list[Work]:
    """All work on some cells; cells whose weights are the same have the same job of training.

    Args:
        experiment: which experiment.
        cells: of it.
        out: folder of all experiments, with their trainings.
        folder: folder of this experiment's results.
    """
    work = []
    trainings: dict[str, Job] = {}
    for cell in cells:
        training = None
        if any(measure.needs_model for measure in experiment.measures):
            training = trainings.setdefault(cell.training_name, training_job(cell, out))
        for measure in experiment.measures:
            place = folder / "cells" / cell.name / measure.folder_name(cell)
            needed = training if measure.needs_model else None
            checkpoint = needed.folder / LAST_CHECKPOINT if needed else None
            arguments = tuple(measure.arguments(cell, place, checkpoint or Path()))
            job = Job(
                name=f"{measure.name} {cell.name}",
                arguments=arguments,
                folder=place,
                result=measure.result_file,
                checkpoint=checkpoint,
                identity=partial(cell.measurement_identity, arguments, measure.needs_model),
                images=cell.images_file,
            )
            work.append(Work(cell, measure, job, needed))
    return work


def training_job(cell: Cell, out: Path) -> Job:
    """The job that trains the model of a cell, in the folder of all experiments."""
    folder = out / "trainings" / cell.training_name
    return Job(
        name=f"fit {cell.training_name}",
        arguments=(
            "fit",
            *cell.training,
            f"--trainer.default_root_dir={folder}",
            "--ckpt_path=last",
            NO_PROGRESS_BAR,
        ),
        folder=folder,
        result=str(LAST_CHECKPOINT),
        identity=cell.training_identity,
        images=cell.images_file,
    )


def missing(work: Sequence[Work]) -> list[Work]:
    """The measurements that are not done, and the finished ones of a model that must be trained again."""
    again = {one.training for one in work if one.training and not one.training.done() and not one.job.done()}
    return [one for one in work if one.training in again or not one.job.done()]


def jobs_of(work: Sequence[Work]) -> dict[Job, Job | None]:
    """The jobs of some work, each with the job that it needs."""
    trainings: dict[Job, Job | None] = {one.training: None for one in work if one.training}
    return trainings | {one.job: one.training for one in work}


def plan_text(experiment: Experiment, work: Sequence[Work], pending: Sequence[Work], cost: Cost) -> str:
    """The numbers of cells and jobs, and the expected cost, in words."""
    trainings = {one.training for one in work if one.training}
    to_train = {one.training for one in pending if one.training and not one.training.done()}
    cells = {one.cell.name: one.cell for one in work}
    data = ", ".join(dict.fromkeys(cell.data for cell in cells.values()))
    return "\n".join(
        [
            f"{experiment.title} ({experiment.source})",
            f"  {len(cells)} cells on {data}, budget {work[0].cell.budget}: {len(trainings)} trainings, {len(work)} "
            f"measurements; to do: {len(to_train)} trainings, {len(pending)} measurements",
            f"  {cost.line()}",
        ]
    )


def gather(
    all_work: Sequence[Work], chosen: Sequence[Work], failures: Mapping[Job, str]
) -> tuple[list[Result], list[str]]:
    """The results of all work that is done, and the reasons why work that was chosen is not.

    Args:
        all_work: of the experiment.
        chosen: the work that this call was to do.
        failures: reasons by job, see `run_all`.
    """
    results, reasons = [], list(failures.values())
    for one in all_work:
        if one.job.done():
            try:
                results.append(collect(one.cell, one.measure, one.job, one.training))
            except UserError as error:
                reasons.append(f"{one.job.name}: {error}")
    if not failures:
        changed = [one.job.name for one in chosen if not one.job.done()]
        reasons += [
            f"{name}: its checkpoint or its images changed while the experiment ran; run the same command again"
            for name in changed
        ]
    return results, reasons
