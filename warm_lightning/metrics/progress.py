"""Progress of what takes more than a second."""

from collections.abc import Iterable
from typing import TypeVar

import torch.distributed as dist
from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str) -> Iterable[Item]:
    """The items, with a progress bar on the first of the processes once a second has passed."""
    silent = dist.is_available() and dist.is_initialized() and dist.get_rank() > 0
    return tqdm(items, what, delay=1, leave=False, disable=silent)
