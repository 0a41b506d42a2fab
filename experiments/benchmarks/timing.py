"""Times of calls in rounds, their ratios, peak memory, and the speed of matrix products."""

import resource
import statistics
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.benchmark import timer
from tqdm import tqdm


def peak_memory(device: str) -> int:
    """The largest number of bytes until now: of tensors on the GPU, or of this process in main memory."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def seconds(call: Callable[[], Any]) -> float:
    """The seconds that a call takes."""
    began = timer()
    call()
    return timer() - began


def rounds(
    calls: Mapping[str, Callable[[], Any]], title: str, limit: float, minimum: int = 3
) -> dict[str, list[float]]:
    """The seconds of each call in each round.

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
    return {name: of_rounds[1:] for name, of_rounds in times.items()}


def ratios(times: Mapping[str, list[float]], name: str, other: str) -> list[float]:
    """The quartiles over rounds of the ratio of two calls' times; a load that slows both for a while cancels."""
    return statistics.quantiles((a / b for a, b in zip(times[name], times[other], strict=True)), method="inclusive")


def ratio(times: Mapping[str, list[float]], name: str, other: str) -> float:
    """The median over rounds of the ratio of two calls' times."""
    return ratios(times, name, other)[1]


class Product:
    """Float32 products of two square matrices; a call computes as many as have about `work` FLOPs together."""

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
    """Find the fastest matrix product of some sizes.

    Args:
        device: where.
        sizes: of the matrices.
        limit: seconds to measure for.
        work: FLOPs of a call, so many that cold caches and short disturbances do not count.

    Returns:
        FLOP/s at best, at which size, and at all sizes; and that product, to be timed beside other things.
    """
    products = {str(size): Product(size, device, work) for size in sizes}
    times = rounds(products, "Matrix products", limit)
    speeds = {name: products[name].flops / min(t) for name, t in times.items()}
    best = max(speeds, key=lambda name: speeds[name])
    return {"flops": speeds[best], "size": int(best), "flops_by_size": speeds}, products[best]
