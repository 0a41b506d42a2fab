"""Distributed computing: rank and world size, sharing out items, gathering and summing tensors,
a progress bar on rank 0."""

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from tqdm import tqdm

Item = TypeVar("Item")


def rank_and_world_size() -> tuple[int, int]:
    """Rank of this process and number of processes; (0, 1) where there is one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def gather(tensor: Tensor) -> list[Tensor]:
    """The tensors of all processes by rank; all processes must call this.

    Args:
        tensor: [N, …] on a device that the processes communicate from; only N may differ between them.
    """
    world_size = rank_and_world_size()[1]
    if world_size == 1:
        return [tensor]
    length = torch.tensor([len(tensor)], device=tensor.device)
    lengths = [torch.empty_like(length) for _ in range(world_size)]
    dist.all_gather(lengths, length)
    padded = tensor.new_zeros(int(torch.cat(lengths).max()), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    parts = [torch.empty_like(padded) for _ in range(world_size)]
    dist.all_gather(parts, padded)
    return [part[: int(n)] for part, n in zip(parts, lengths, strict=True)]


def total(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all processes, which must all call this and get the same bits.

    Args:
        tensor: of one shape on all processes, on a device that they communicate from.
    """
    return torch.stack(gather(tensor[None])).sum(dim=0)[0]


def strided_batches(items: range, batch_size: int, rank: int = 0, world_size: int = 1) -> list[range]:
    """Split every `world_size`-th item, from the one of index `rank` on, into batches; the last may be short."""
    share = items[rank::world_size]
    return [share[i : i + batch_size] for i in range(0, len(share), batch_size)]


def progress(items: Iterable[Item], title: str) -> Iterable[Item]:
    """The items, with a progress bar on the first process once a second has passed."""
    return tqdm(items, title, delay=1, leave=False, disable=rank_and_world_size()[0] > 0)
