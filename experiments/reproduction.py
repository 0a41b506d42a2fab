"""`python -m experiments reproduction`: every number of the papers' tables, with its command and its cost."""

import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from warm_lightning.errors import check
from warm_lightning.records import markdown_table, write_file

from .cells import CONDITIONAL, Cell, Scale
from .experiment import Experiment, expand, read
from .identity import BASE, PAPERS
from .plan import GPU_TFLOPS, estimate
from .report import number, published_numbers
from .results import read_rows

OUT = BASE / "docs" / "reproduction.md"
MEASURED = BASE / "docs" / "measurements"
TABLES = (
    "table1_systems",
    "table2_lsun",
    "table3_bnr",
    "table4_blurring_schedule",
    "table5_parameterizations",
    "table6_counts",
    "table7_ddpm_network",
    "blurring_table3_sigma",
    "blurring_table4_schedule",
    "lee_table1_rate",
)
MEASURED_BY = {"table3_bnr": ("table3_bnr", "ablation_bnr")}
"""Experiments whose results are shown in a table, where these are not the table's own only."""
FAST_TRAINING = "-- --trainer.precision=bf16-mixed --model.compile=true"
OF_10K = "of 10k"
"""Part of the names of published scores that are over 10,000 samples."""
HEAD = f"""# Reproduction

Every number of Tables 1 to 7 of *Warm Diffusion* (arXiv 2511.16904), and of the tables of *Blurring Diffusion* and of
Lee et al. that this suite runs, with the command that measures it. Written by `python -m experiments reproduction` from
the files in `experiments/papers/`.

* **published** are the papers' own numbers. Those for other systems than Warm Diffusion are their authors', with their
  networks.
* **GPU-hours** are those of one GPU for the training and all samples of the row, from counted FLOPs and {GPU_TFLOPS:g}
  TFLOP/s sustained in bfloat16 and compiled, as the commands train. Samples are drawn in float32, which takes longer
  than is counted here. That speed is an assumption: nothing has run on a GPU yet. `make gpu-check` measures images/s
  on yours; give `--tflops`. Rows of one table that differ in sampling only share one training, which is counted in
  each.
* **measured here** is what this repository's authors measured, at the scale that the column says; *not run* otherwise.
  Numbers on digits, on dead leaves and on CIFAR-10 at 16×16 are no reproduction of numbers on CIFAR-10: they say
  whether the order of the rows is the same. They stand in the rows of CIFAR-10 only.

At the paper's budget data are looked for where `configs/` says, and LSUN's of 64×64, resized without cropping as Lee et
al. do, at `data/lsun_church64.zip` and `data/lsun_bedroom64.zip`, which these commands make:

```
warm dataset church_outdoor_train_lmdb data/lsun_church64.zip --resolution 64 --crop stretch
warm dataset bedroom_train_lmdb data/lsun_bedroom64.zip --resolution 64 --crop stretch
```

Add `--data.path=…` at the end for another place. Without `--only` a command runs the whole table; before its `--` it
takes `--jobs 8`, on a machine with eight GPUs a training on each, or `--slurm '{{"gpus_per_node": 8}}'`. Where a
batch is too large for the memory of a GPU, as one of FFHQ or LSUN may be for a single one,
`--trainer.accumulate_grad_batches=4` beside the other options gives the same training in four parts.
"""


def write() -> Path:
    """Write docs/reproduction.md; returns its path.

    Raises:
        UserError: there is no folder docs/measurements, as only the repository has.
    """
    check(MEASURED.is_dir(), f"{MEASURED}: no such folder; this page is written in the repository, not elsewhere")
    parts = [HEAD]
    for name in TABLES:
        parts += table_section(PAPERS / f"{name}.yaml")
    write_file(OUT, ("\n\n".join(parts) + "\n").encode())
    return OUT


def table_section(path: Path) -> Iterator[str]:
    """The heading and the table of a paper's table.

    Args:
        path: of the experiment.
    """
    experiment = read(path, Experiment)
    file = f"`experiments/papers/{path.name}`"
    yield f"## {experiment.source}\n\n{experiment.title}: {file}. {experiment.about}"
    rows = []
    for cell in expand(experiment, None, "paper", seeds=1):
        numbers = published_numbers(experiment, cell)
        scales = published_scales(cell, numbers)
        measures = [measure for measure in experiment.measures if measure.applies(cell)]
        measurements = [(replace(cell, scale=scale), measure) for scale in scales for measure in measures]
        trained = [cell] if any(measure.needs_model for _, measure in measurements) else []
        hours = f"{24 * estimate(trained, measurements, GPU_TFLOPS).days:,.0f}"
        published = (f"{name.removeprefix('paper: ').partition(',')[0]} {value}" for name, value in numbers.items())
        commands = (f"`{command(path, cell, scale, bool(trained))}`" for scale in scales)
        labels = ", ".join(cell.labels.values())
        texts = ["; ".join(published) or "–", measured(path.stem, cell), "; ".join(commands)]
        rows.append([cell.data, labels, *texts, hours])
    header = ["data", ", ".join(experiment.axes), "published", "measured here", "command", "GPU-hours"]
    yield markdown_table(header, rows, words=5)


def published_scales(cell: Cell, names: Collection[str]) -> list[Scale]:
    """The numbers of samples that published scores are over: the budget's, and 10,000 where their names say so.

    Args:
        cell: at the paper's budget.
        names: of the published scores.
    """
    few = replace(cell.scale, images=10_000, rounds=1)
    scores = [name for name in names if "NFE" not in name]
    scales = [few if OF_10K in name else cell.scale for name in scores] or [cell.scale]
    distinct = [cell.scale] if few == cell.scale else [cell.scale, few]
    return [scale for scale in distinct if scale in scales]


def command(path: Path, cell: Cell, scale: Scale, trains: bool) -> str:
    """The command that measures a cell with the samples of a scale.

    Args:
        path: of the experiment.
        cell: at the paper's budget.
        scale: with the number of samples.
        trains: whether a model is trained, for which there are options that make it fast.
    """
    labels = {"data": cell.data, **cell.labels}
    chosen = [f"--only {shlex.quote(f'{axis}={label}')}" for axis, label in labels.items()]
    counts = [] if scale == cell.scale else [f"--num_images {scale.images} --rounds {scale.rounds}"]
    fast = [FAST_TRAINING] if trains else []
    return " ".join(["python -m experiments run", path.stem, "--budget paper", *chosen, *counts, *fast])


def measured(name: str, cell: Cell) -> str:
    """The committed results of a cell in words, as means over training seeds.

    Results on digits, dead leaves and small CIFAR-10 are shown in the rows of CIFAR-10 only, whose place they take.

    Args:
        name: of the experiment.
        cell: a combination of labels on one of the paper's data sets.
    """
    values: dict[str, list[float]] = {}
    words: dict[str, str] = {}
    files = [
        path for other in MEASURED_BY.get(name, (name,)) for path in sorted(MEASURED.glob(f"{other}-*/results.csv"))
    ]
    for row in (row for path in files for row in read_rows(path) if row["shown"] and is_of(row, cell)):
        if row["value"] is None:
            words[row["score"]] = row["text"]
        else:
            text = f"{row['score']} on {row['data']} ({row['experiment']}, budget {row['budget']})"
            values.setdefault(text, []).append(row["value"])
    parts = [f"{score} {word}" for score, word in words.items()]
    for text, numbers in values.items():
        trainings = f", mean of {len(numbers)} trainings" if len(numbers) > 1 else ""
        parts.append(f"{number(sum(numbers) / len(numbers))} {text}{trainings}")
    return "; ".join(parts) or "not run"


def is_of(row: Mapping[str, Any], cell: Cell) -> bool:
    """Whether a row of results has a cell's labels, and is of its data set or of one that took its place."""
    is_cifar10 = cell.data.removesuffix(CONDITIONAL) == "cifar10"
    same_data = row["data"] == cell.data or (is_cifar10 and cell.data in row["paper_data"].split("+"))
    return same_data and all(row.get(axis) == label for axis, label in cell.labels.items())
