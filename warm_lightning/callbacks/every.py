"""When it is time: intervals in images, so that they mean the same at any batch size."""

from warm_lightning.errors import check
from warm_lightning.module import DiffusionModule


def check_every(every: float) -> int:
    """An interval in images as a whole number; 0 means never.

    Raises:
        UserError: if it is neither 0 nor at least 1.
    """
    check(every == 0 or every >= 1, f"every is {every}: it is a number of images, or 0 for never")
    return int(every)


def due(module: DiffusionModule, every: int) -> bool:
    """Whether the batch that has just ended made an optimizer step that crossed a multiple of `every` images."""
    seen, batch = module.images_seen, module.batch_size
    return every > 0 and module.stepped and seen // every > (seen - batch) // every
