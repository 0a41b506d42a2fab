"""The plan of an experiment before it starts: expected cost, and data and weights that its jobs share."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any

import torch

from warm_lightning.analysis.description import forward_flops
from warm_lightning.config import module_from_options, split_settings
from warm_lightning.errors import UserError, check
from warm_lightning.metrics.reference_file import is_folder
from warm_lightning.module import DiffusionModule
from warm_lightning.paths import expand

from .cells import Cell
from .identity import in_base, resolved
from .measures import Measure

# ---------------------------------------------------------------------- cost

TRAINING_PASSES = 3
"""FLOPs of a training step, forward and backward, in units of the forward pass alone."""
CPU_TFLOPS = 0.13
"""TFLOP/s in training on two cores: images/s times FLOPs per image in docs/measurements/bench.json."""
GPU_TFLOPS = 60.0
"""TFLOP/s of one GPU in training, bf16-mixed and compiled: an assumption until `make gpu-check` has measured it."""
DAY = 86400
MOST_CPU_DAYS = 7
"""Days of work that a machine without GPU starts on without --anyway."""


@dataclass(frozen=True)
class Cost:
    """The expected cost of trainings and measurements.

    Attributes:
        flops: floating-point operations.
        images: number of images that are trained on.
        network_calls: number of network calls in measuring.
        tflops: 10¹² operations per second that one device sustains.
        source: how `tflops` is known.
        gpu: whether the days are those of a GPU: if there is one, or if a CPU would take more than `MOST_CPU_DAYS`.
    """

    flops: float
    images: float
    network_calls: float
    tflops: float
    source: str
    gpu: bool

    @property
    def days(self) -> float:
        """Days that one device takes."""
        return self.flops / (self.tflops * 1e12) / DAY

    def line(self) -> str:
        """The cost in words."""
        unit = "GPU" if self.gpu else "CPU"
        days = f"{self.days:.1f} {unit}-days" if self.days >= 1 else f"{24 * self.days:.2g} {unit}-hours"
        work = f"{self.images:,.0f} images of training, {self.network_calls:,.0f} network calls in measuring"
        return f"expected: {days} at {self.tflops:g} TFLOP/s ({self.source}): {work}, {self.flops:.2g} FLOPs in all"


def estimate(to_train: Sequence[Cell], to_measure: Sequence[tuple[Cell, Measure]], tflops: float | None) -> Cost:
    """Estimate the cost of trainings and measurements.

    Args:
        to_train: a cell for each model that is to be trained.
        to_measure: cells with what is to be done with them.
        tflops: see `Cost`; None for the value that is known of a GPU or two CPU cores.
    """
    flops = images = network_calls = 0.0
    for cell in to_train:
        duration = module_with_small_network(without_seed(cell.training)).duration
        images += duration
        flops += TRAINING_PASSES * duration * network_flops(cell)
    for cell, measure in to_measure:
        if measure.needs_model:
            model = module_with_small_network(without_seed(cell.sampling)).model()
            calls = measure.network_calls(cell, model.own_nfe)
            network_calls += calls
            flops += calls * network_flops(cell)
    gpu = torch.cuda.is_available() or flops / (CPU_TFLOPS * 1e12) > MOST_CPU_DAYS * DAY
    known = (GPU_TFLOPS, "an assumption: no GPU was measured") if gpu else (CPU_TFLOPS, "measured on two cores")
    speed, source = (tflops, "as given") if tflops else known
    return Cost(flops, images, network_calls, speed, source, gpu)


def check_affordable(cost: Cost, tflops: float | None, anyway: bool) -> None:
    """Raise UserError where this machine has no GPU and would work for weeks, unless `anyway`.

    Args:
        cost: of the work.
        tflops: 10¹² operations per second that this machine sustains; None for those of two CPU cores.
        anyway: whether the user wants to start in any case.
    """
    days = cost.flops / ((tflops or CPU_TFLOPS) * 1e12) / DAY
    check(
        anyway or torch.cuda.is_available() or days < MOST_CPU_DAYS,
        f"this would take about {days:,.0f} days without a GPU: choose --budget small, or --anyway",
    )


NETWORK_OPTIONS = ("--config=", "--model.network", "--model.parameterization", "--model.augment")
"""Beginnings of the options that the size of a network depends on."""
SMALL_NETWORK = (
    "--model.network.model_channels=8",
    "--model.network.num_blocks=1",
    "--model.network.attn_resolutions=[]",
)


def network_flops(cell: Cell) -> float:
    """FLOPs of a forward pass of the cell's network for an image."""
    return network_flops_of(tuple(option for option in cell.training if option.startswith(NETWORK_OPTIONS)))


@cache
def network_flops_of(options: tuple[str, ...]) -> float:
    """FLOPs of a forward pass for an image of the network that options of `warm fit` describe."""
    return float(forward_flops(make_module(options).network))


@cache
def module_with_small_network(options: tuple[str, ...]) -> DiffusionModule:
    """The module of options of `warm fit` with a small network, which is made at once."""
    try:
        return make_module([*options, *SMALL_NETWORK])
    except UserError:  # a network of another class, without these arguments
        return make_module(options)


def make_module(options: Sequence[str]) -> DiffusionModule:
    """The module of options of `warm fit`."""
    with in_base():
        return module_from_options(split_settings(list(options))[0])[0]


def without_seed(options: Sequence[str]) -> tuple[str, ...]:
    """Options without the training seed, on which no cost depends."""
    return tuple(option for option in options if not option.startswith("--model.seed="))


# ---------------------------------------------------------------------- preparation


def prepare(cells: Iterable[Cell], scored: Iterable[Cell]) -> None:
    """Download or find the data of cells, and the weights of the extractors that score them, once for all jobs.

    Jobs that run at the same time would each download them to the same place, and a missing file would be noticed
    after days of training.

    Args:
        cells: whose data are used.
        scored: those of them that are scored.

    Raises:
        UserError: something is missing and cannot be downloaded.
    """
    data = {json.dumps(resolved(cell.sampling)["data"], sort_keys=True) for cell in cells}
    scores = [resolved(cell.sampling)["scores"] for cell in scored]
    extractors = {
        json.dumps(extractor, sort_keys=True) for of_cell in scores for extractor in of_cell["extractors"] or []
    }
    given = [of_cell["reference_stats"] for of_cell in scores]  # None, a file, or a list with one for each extractor
    statistics = {path for files in given for path in (files if isinstance(files, list) else [files]) if path}
    with in_base():  # where jobs run, since paths may be relative
        for text in sorted(data):
            make(json.loads(text)).prepare_data()
        for text in sorted(extractors):
            make(json.loads(text)).prepare()
        for path in sorted(statistics):
            check(is_folder(path) or expand(path).is_file(), f"--scores.reference_stats {path}: no such file")


def make(described: dict[str, Any]) -> Any:
    """The object that a class path and arguments describe, as in configurations."""
    module, _, name = described["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**described.get("init_args", {}))
