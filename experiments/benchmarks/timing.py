"""What the machine is, how long things take on it, and how fast it multiplies matrices."""

import resource
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.benchmark import timer
from tqdm import tqdm


def peak_memory(device: str) -> int:
    """Bytes: the most that tensors have taken of the GPU, or this process of main memory, until now."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def seconds(call: Callable[[], Any]) -> float:
    """Of one call."""
    began = timer()
    call()
    return timer() - began


def rounds(
    calls: Mapping[str, Callable[[], Any]], title: str, limit: float, minimum: int = 3
) -> dict[str, list[float]]:
    """Seconds of each call in each round.

    Args:
        calls: what to time, in this order in every round.
        title: of the progress bar.
        limit: seconds after which no new round begins.
        minimum: rounds to take in any case, after a first one that does not count.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    began = timer()
    with tqdm(desc=title, unit=" rounds") as bar:
        while bar.n <= minimum or timer() - began < limit:
            for name, call in calls.items():
                times[name].append(seconds(call))
            bar.update()
    return {name: taken[1:] for name, taken in times.items()}


def ratios(times: Mapping[str, list[float]], name: str, other: str) -> list[float]:
    """Quartiles over rounds of the ratio of two calls' times: what slows the machine for a while slows both."""
    return statistics.quantiles((a / b for a, b in zip(times[name], times[other], strict=True)), method="inclusive")


def ratio(times: Mapping[str, list[float]], name: str, other: str) -> float:
    """Their median."""
    return ratios(times, name, other)[1]


class Product:
    """Float32 products of two square matrices: a call computes several, of about `work` FLOPs in all."""

    def __init__(self, size: int, device: str, work: float) -> None:
        self.size = size
        self.a, self.b = torch.randn(2, size, size, device=device)
        self.times = max(1, round(work / (2 * size**3)))
        self.flops = self.times * 2 * size**3

    def __call__(self) -> None:
        for _ in range(self.times):
            self.a @ self.b


def matmul_peak(
    device: str, sizes: tuple[int, ...], limit: float, work: float = 1e11
) -> tuple[dict[str, Any], Product]:
    """The fastest matrix product of some sizes.

    Args:
        device: where.
        sizes: of the matrices.
        limit: seconds to measure for.
        work: FLOPs of a call, enough that cold caches and a machine's moments do not count.

    Returns:
        FLOP/s at best, at which size, and at all sizes; and that product, to be timed beside other things.
    """
    products = {str(size): Product(size, device, work) for size in sizes}
    times = rounds(products, "Matrix products", limit)
    speeds = {name: products[name].flops / min(t) for name, t in times.items()}
    best = max(speeds, key=lambda name: speeds[name])
    return {"flops": speeds[best], "size": int(best), "flops_by_size": speeds}, products[best]
