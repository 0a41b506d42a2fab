"""When it is time: intervals in images, so that they mean the same at any batch size."""

from warm_lightning.errors import check
from warm_lightning.module import DiffusionModule


def check_every(every: float) -> int:
    """An interval in images as a whole number; 0 means never.

    Raises:
        UserError: if it is negative.
    """
    check(every >= 0, f"every is {every}: it is a number of images, or 0 for never")
    return int(every)


def due(module: DiffusionModule, every: int) -> bool:
    """Whether the step that has just ended crossed a multiple of `every` images."""
    seen, batch = module.images_seen, module.batch_size
    return every > 0 and seen // every > (seen - batch) // every
