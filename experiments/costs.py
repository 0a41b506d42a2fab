"""What an experiment is expected to cost, before it starts."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from tqdm import tqdm

from experiments.cells import Cell
from warm_lightning.analysis.description import forward_flops
from warm_lightning.errors import check
from warm_lightning.lightning_cli import WarmCLI, user_errors
from warm_lightning.module import DiffusionModule

BACKWARD = 3
"""FLOPs of forward and backward pass over those of the forward pass alone."""
CPU = 0.08
"""TFLOP/s in training on two cores, as docs/measurements/bench.json measured it."""
GPU = 60.0
"""TFLOP/s of one current GPU in training with bf16-mixed: an assumption until `make gpu-check` has measured it."""
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
        images: trained on, and network calls in sampling.
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
        work = f"{self.images:,.0f} images of training, {self.calls:,.0f} network calls in sampling"
        return f"expected: {days} at {self.tflops:g} TFLOP/s ({self.source}): {work}, {self.flops:.2g} FLOPs in all"


def module_of(options: Sequence[str]) -> DiffusionModule:
    """The module of some options of `warm fit`."""
    with user_errors():
        return WarmCLI([*options, "--model.init_from=null"], run=False).model


@cache
def forward(options: tuple[str, ...]) -> float:
    """FLOPs of a network, an image."""
    return float(forward_flops(module_of(options).network))


def work(cells: Iterable[Cell]) -> Iterator[tuple[float, float, float]]:
    """FLOPs, images of training and network calls in sampling: of each model's training and each cell's samples."""
    small: dict[tuple[str, ...], DiffusionModule] = {}
    trained = set()
    for cell in cells:
        flops = forward(tuple(option for option in cell.training if option.startswith(NETWORK)))
        sampling = tuple(option for option in cell.sampling if not option.startswith("--model.seed="))
        if sampling not in small:
            small[sampling] = module_of([*sampling, *SMALL])
        module = small[sampling]
        if cell.training_name not in trained:
            trained.add(cell.training_name)
            yield BACKWARD * flops * module.duration, module.duration, 0.0
        calls = cell.scale.images * cell.scale.rounds * module.model("raw").nfe(module.sampler)
        yield flops * calls, 0.0, calls


def estimate(cells: Sequence[Cell], tflops: float | None) -> Cost:
    """Cost of training each model once and sampling each cell.

    Args:
        cells: to be run.
        tflops: see `Cost`; as known of such machines where None.
    """
    parts = list(work(tqdm(cells, desc="Planning", unit=" cells", leave=False, disable=len(cells) < 2)))
    flops, images, calls = (sum(part[k] for part in parts) for k in range(3))
    gpu = torch.cuda.is_available() or flops / (CPU * 1e12) > PATIENCE * DAY
    known = (GPU, "an assumption: no GPU was measured") if gpu else (CPU, "measured on two cores")
    speed, source = (tflops, "as given") if tflops else known
    return Cost(flops, images, calls, speed, source, gpu)


def check_affordable(cost: Cost, anyway: bool) -> None:
    """Raise UserError where this machine would be busy for weeks."""
    days = cost.flops / (CPU * 1e12) / DAY
    check(
        anyway or torch.cuda.is_available() or days < PATIENCE,
        f"this would take about {days:,.0f} days without a GPU: choose --budget small, or --anyway",
    )
