"""`python -m experiments run`: the cells of an experiment, their jobs, its results and its report."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from warm_lightning.errors import UserError, check
from warm_lightning.paths import folder_lock
from warm_lightning.records import writable_folder

from .analyses import Description
from .cells import Cell, slug
from .experiment import Experiment, expand, read, select
from .identity import NO_PROGRESS_BAR, PAPERS
from .measures import Measure, Scores
from .paired import widest_interval
from .plan import Cost, check_affordable, estimate, prepare
from .report import write
from .results import Invocations, Result, collect, group_by_seed, rows_of, save_rows, shown_names
from .runner import Executor, Job, LocalProcesses, Slurm, ThisProcess, run_all, run_conditions

LAST_CHECKPOINT = Path("checkpoints") / "last.ckpt"


@dataclass(frozen=True)
class Measurement:
    """One measure on one cell, with the job that measures and the job that trains its model.

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
    measurements = measurements_of(experiment, chosen, out, folder)
    pending = missing(measurements)
    cost = estimate(list(to_train(pending).values()), [(m.cell, m.measure) for m in pending], options.tflops)
    print(plan_text(experiment, measurements, pending, cost), flush=True)
    if options.plan:
        return 0, "\n".join(f"{job.name}: warm {' '.join(job.arguments)}" for job in jobs_of(pending))
    check_affordable(cost, options.tflops, options.anyway or isinstance(executor, Slurm))
    check(
        not isinstance(executor, Slurm) or not cost.gpu or executor.wants_gpus() or options.anyway,
        '--slurm: this needs GPUs and does not ask for any: add "gpus_per_node": 8, or --anyway where jobs get them',
    )
    with_data = [m.cell for m in pending if not isinstance(m.measure, Description)]
    prepare(with_data, [m.cell for m in pending if isinstance(m.measure, Scores)])
    writable_folder(folder)
    invocations = Invocations(folder)
    at_a_time = options.jobs or (max(1, len(jobs_of(pending))) if isinstance(executor, Slurm) else 1)
    all_measurements = measurements_of(experiment, cells, out, folder)
    failures: dict[Job, str] = {}
    tried: list[Measurement] = []
    with folder_lock(out), invocations.noted(command, bool(pending)):
        for part in parts(measurements, options.until):
            tried = part
            failures |= run_all(jobs_of(missing(part)), executor, at_a_time, run_conditions(executor), path.stem)
            if failures or (options.until and width(experiment, measurements) <= options.until):
                break
    if options.until and not failures:  # further seeds are not wanted any more
        reached = max(m.cell.seed for m in tried)
        all_measurements = [m for m in all_measurements if m.cell.seed <= reached or m.job.done()]
    results, reasons = gather(all_measurements, tried, failures)
    check(bool(results), f"nothing was measured: {'; '.join(reasons)}")
    save_rows(rows_of(path.stem, results), folder / "results.csv")
    text = write(experiment, results, reasons, invocations.lines(), len(all_measurements), folder)
    return int(bool(reasons)), f"{text}\nwritten to {folder}: report.html, report.md, results.csv"


# ---------------------------------------------------------------------- options


def find(path: Path) -> Path:
    """The path of an experiment's file, given as a path or as a name alone."""
    return path if path.is_file() else PAPERS / f"{path.stem}.yaml"


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
    return ThisProcess() if options.in_process else LocalProcesses.sharing(options.jobs or 1)


def cells_of(experiment: Experiment, options: argparse.Namespace) -> tuple[list[Cell], list[Cell]]:
    """All cells of an experiment, and those of them that the options choose to be run."""
    for name in ("jobs", "seeds", "cells", "num_images", "rounds"):
        value = getattr(options, name)
        check(value is None or value >= 1, f"--{name} {value}: there must be at least 1")
    check(options.until is None or options.until > 0, f"--until {options.until}: a width is above 0, such as 0.05")
    cells = expand(experiment, options.data, options.budget, None, options.extra)
    check(
        options.until is None or (options.seeds or max(cell.seed for cell in cells) + 1) > 1,
        "--until: one training has no interval: give the largest number with --seeds, such as --seeds 20",
    )
    check(options.tflops is None or options.tflops > 0, f"--tflops {options.tflops}: it must be above 0")
    if options.seeds:  # the report has the others too, where they are done
        known = {cell.name for cell in cells}
        asked = expand(experiment, options.data, options.budget, options.seeds, options.extra)
        cells += [cell for cell in asked if cell.name not in known]
    counts = {"images": options.num_images, "rounds": options.rounds}
    given = {name: count for name, count in counts.items() if count is not None}
    cells = [replace(cell, scale=replace(cell.scale, **given)) for cell in cells]
    chosen = [cell for cell in select(cells, options.only or []) if options.seeds is None or cell.seed < options.seeds]
    return cells, chosen[: options.cells]


# ---------------------------------------------------------------------- measurements


def measurements_of(experiment: Experiment, cells: Sequence[Cell], out: Path, folder: Path) -> list[Measurement]:
    """All measurements of some cells; cells whose weights are the same have the same job of training.

    Args:
        experiment: which experiment.
        cells: of it.
        out: folder of all experiments, with their trainings.
        folder: folder of this experiment's results.
    """
    measurements = []
    trainings: dict[str, Job] = {}
    for cell in cells:
        training = None
        if any(measure.needs_model for measure in experiment.measures):
            training = trainings.setdefault(cell.training_name, training_job(cell, out))
        for measure in (measure for measure in experiment.measures if measure.applies(cell)):
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
            measurements.append(Measurement(cell, measure, job, needed))
    return measurements


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
            "--scores.every=0",  # measures score the trained model
            NO_PROGRESS_BAR,
        ),
        folder=folder,
        result=str(LAST_CHECKPOINT),
        identity=cell.training_identity,
        images=cell.images_file,
    )


def parts(measurements: Sequence[Measurement], until: float | None) -> list[list[Measurement]]:
    """The measurements to do before each look at the intervals: those of two seeds, of three, and so on.

    Args:
        measurements: all.
        until: width of the intervals that ends the work; None for no look, and one part.
    """
    seeds = max(m.cell.seed for m in measurements) + 1
    counts = [seeds] if until is None else range(min(2, seeds), seeds + 1)
    return [[m for m in measurements if m.cell.seed < count] for count in counts]


def width(experiment: Experiment, measurements: Sequence[Measurement]) -> float:
    """The half width of the widest paired interval of the main score over all data sets; see `widest_interval`."""
    results, _ = gather([m for m in measurements if m.measure is experiment.measures[0]], [], {})
    widths = []
    for data in dict.fromkeys(result.cell.data for result in results):
        groups = group_by_seed([result for result in results if result.cell.data == data])
        widths.append(widest_interval(experiment.plot, groups, shown_names(groups)[0]))
    return max(widths, default=math.inf)


def to_train(measurements: Sequence[Measurement]) -> dict[Job, Cell]:
    """The trainings that some measurements need and that are not done, each with a cell of its model."""
    return {m.training: m.cell for m in measurements if m.training and not m.training.done()}


def missing(measurements: Sequence[Measurement]) -> list[Measurement]:
    """The measurements that are not done, and the finished ones of a model that must be trained again."""
    again = to_train([m for m in measurements if not m.job.done()])
    return [m for m in measurements if m.training in again or not m.job.done()]


def jobs_of(measurements: Sequence[Measurement]) -> dict[Job, Job | None]:
    """The jobs of some measurements, each with the job that it needs."""
    trainings: dict[Job, Job | None] = {m.training: None for m in measurements if m.training}
    return trainings | {m.job: m.training for m in measurements}


def plan_text(
    experiment: Experiment, measurements: Sequence[Measurement], pending: Sequence[Measurement], cost: Cost
) -> str:
    """The numbers of cells and jobs, and the expected cost, in words."""
    trainings = {m.training for m in measurements if m.training}
    cells = {m.cell.name: m.cell for m in measurements}
    data = ", ".join(dict.fromkeys(cell.data for cell in cells.values()))
    return "\n".join(
        [
            f"{experiment.title} ({experiment.source})",
            f"  {len(cells)} cells on {data}, budget {measurements[0].cell.budget}: {len(trainings)} trainings, "
            f"{len(measurements)} measurements; to do: {len(to_train(pending))} trainings, {len(pending)} measurements",
            f"  {cost.line()}",
        ]
    )


def gather(
    all_measurements: Sequence[Measurement], chosen: Sequence[Measurement], failures: Mapping[Job, str]
) -> tuple[list[Result], list[str]]:
    """The results of all measurements that are done, and the reasons why chosen ones are not.

    Args:
        all_measurements: of the experiment.
        chosen: those that this call was to do.
        failures: reasons by job, see `run_all`.
    """
    results, reasons = [], list(failures.values())
    for measurement in all_measurements:
        if measurement.job.done():
            try:
                results.append(collect(measurement.cell, measurement.measure, measurement.job, measurement.training))
            except UserError as error:
                reasons.append(f"{measurement.job.name}: {error}")
    if not failures:
        changed = [m.job.name for m in chosen if not m.job.done()]
        reasons += [
            f"{name}: its checkpoint or its images changed while the experiment ran; run the same command again"
            for name in changed
        ]
    return results, reasons
