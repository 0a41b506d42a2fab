"""Progress of what takes more than a second."""

from collections.abc import Iterable
from typing import TypeVar

from tqdm import tqdm

from warm_lightning.metrics.parallel import place

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str) -> Iterable[Item]:
    """The items, with a progress bar on the first of the processes once a second has passed."""
    return tqdm(items, what, delay=1, leave=False, disable=place()[0] > 0)
