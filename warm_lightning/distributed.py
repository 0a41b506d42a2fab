"""Where this process stands among those that score together."""

from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.distributed as dist
from tqdm import tqdm


def place() -> tuple[int, int]:
    """Rank and number of processes; (0, 1) where there is one."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def total(count: int, device: torch.device) -> int:
    """The sum of a number over all processes, which must all call this; `device` is one they communicate from."""
    if place()[1] == 1:
        return count
    everywhere = torch.tensor(count, device=device)
    dist.all_reduce(everywhere)
    return int(everywhere)


Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str) -> Iterable[Item]:
    """The items, with a progress bar on the first of the processes once a second has passed."""
    return tqdm(items, what, delay=1, leave=False, disable=place()[0] > 0)
