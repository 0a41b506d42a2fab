"""What an experiment is expected to cost, before it starts."""

import json
from collections.abc import Iterable, Sequence
from contextlib import chdir
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from experiments.cells import Cell
from experiments.identity import REPOSITORY, resolved
from experiments.measures import Measure
from warm_lightning.analysis.description import forward_flops
from warm_lightning.config import configured, split_settings
from warm_lightning.errors import check
from warm_lightning.module import DiffusionModule

BACKWARD = 3
"""FLOPs of forward and backward pass over those of the forward pass alone."""
CPU = 0.13
"""TFLOP/s in training on two cores: images/s times FLOPs an image in docs/measurements/bench.json."""
GPU = 60.0
"""TFLOP/s of one current GPU in training, bf16-mixed and compiled: an assumption until `make gpu-check` measured it."""
DAY = 86400
PATIENCE = 7
"""Days on a machine without GPU that are started without being asked twice."""

NETWORK = ("--config=", "--model.network", "--model.parameterization", "--model.augment")
"""Options that a network's size follows from."""
SMALL = ("--model.network.model_channels=8", "--model.network.num_blocks=1", "--model.network.attn_resolutions=[]")
"""For modules of which all but the network is asked."""


@dataclass(frozen=True)
class Cost:
    """Of all cells together.

    Attributes:
        flops: floating-point operations.
        images: trained on.
        calls: of the network, for what is measured.
        tflops: 10¹² operations per second that one device sustains.
        source: where that number is from.
        gpu: whether the device is a GPU.
    """

    flops: float
    images: float
    calls: float
    tflops: float
    source: str
    gpu: bool

    @property
    def days(self) -> float:
        """Of one device."""
        return self.flops / (self.tflops * 1e12) / DAY

    def line(self) -> str:
        """In words."""
        unit = "GPU" if self.gpu else "CPU"
        days = f"{self.days:.1f} {unit}-days" if self.days >= 1 else f"{24 * self.days:.2g} {unit}-hours"
        work = f"{self.images:,.0f} images of training, {self.calls:,.0f} network calls in measuring"
        return f"expected: {days} at {self.tflops:g} TFLOP/s ({self.source}): {work}, {self.flops:.2g} FLOPs in all"


def module_of(options: Sequence[str]) -> DiffusionModule:
    """The module of some options of `warm fit`."""
    return configured(split_settings(list(options))[0])[0]


@cache
def forward(options: tuple[str, ...]) -> float:
    """FLOPs of a network, an image."""
    return float(forward_flops(module_of(options).network))


@cache
def small(options: tuple[str, ...]) -> DiffusionModule:
    """The module of some options with a network of no matter."""
    return module_of([*options, *SMALL])


def network_flops(cell: Cell) -> float:
    """Of a cell's network, an image."""
    return forward(tuple(option for option in cell.training if option.startswith(NETWORK)))


def estimate(to_train: Sequence[Cell], to_measure: Sequence[tuple[Cell, Measure]], tflops: float | None) -> Cost:
    """Cost of some trainings and measurements.

    Args:
        to_train: a cell for each model that is to be trained.
        to_measure: cells, and what is to be done with them.
        tflops: see `Cost`; as known of such machines where None.
    """
    flops = images = calls = 0.0
    for cell in to_train:
        duration = small(seedless(cell.training)).duration
        images += duration
        flops += BACKWARD * duration * network_flops(cell)
    for cell, measure in to_measure:
        if measure.trains:
            model = small(seedless(cell.sampling)).model()
            mine = measure.calls(cell, model.nfe(model.sampler))
            calls += mine
            flops += mine * network_flops(cell)
    gpu = torch.cuda.is_available() or flops / (CPU * 1e12) > PATIENCE * DAY
    known = (GPU, "an assumption: no GPU was measured") if gpu else (CPU, "measured on two cores")
    speed, source = (tflops, "as given") if tflops else known
    return Cost(flops, images, calls, speed, source, gpu)


def seedless(options: Sequence[str]) -> tuple[str, ...]:
    """Options without the training seed, which costs nothing."""
    return tuple(option for option in options if not option.startswith("--model.seed="))


def check_affordable(cost: Cost, anyway: bool) -> None:
    """Raise UserError where this machine would be busy for weeks."""
    days = cost.flops / (CPU * 1e12) / DAY
    check(
        anyway or torch.cuda.is_available() or days < PATIENCE,
        f"this would take about {days:,.0f} days without a GPU: choose --budget small, or --anyway",
    )


def prepare(cells: "Iterable[Cell]", scored: "Iterable[Cell]") -> None:
    """Download or find the data of some cells, and the weights of what scores some, once for all jobs.

    Jobs that run at the same time would each download them to the same place; and what is missing would be missed
    after days of training.

    Raises:
        UserError: something is not there and cannot be had.
    """
    data = {json.dumps(resolved(cell.sampling)["data"], sort_keys=True) for cell in cells}
    scored = list(scored)
    named = [one for cell in scored for one in resolved(cell.sampling)["scores"]["extractors"] or []]
    extractors = {json.dumps(one, sort_keys=True) for one in named}
    statistics = {resolved(cell.sampling)["scores"]["reference_stats"] for cell in scored} - {None}
    with chdir(REPOSITORY):  # where jobs run, whose paths may be relative
        for text in sorted(data):
            make(json.loads(text)).prepare_data()
        for text in sorted(extractors):
            make(json.loads(text)).prepare()
        for path in sorted(statistics):
            check(Path(path).expanduser().is_file(), f"--scores.reference_stats {path}: no such file")


def make(described: dict[str, Any]) -> Any:
    """The object of a class's path and arguments, as configurations describe it."""
    module, _, name = described["class_path"].rpartition(".")
    return getattr(import_module(module), name)(**described.get("init_args", {}))
