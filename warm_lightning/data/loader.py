"""A DataLoader from whose workers a user's error arrives as one line."""

import os
import threading
import time
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from warm_lightning.errors import UserError

T_co = TypeVar("T_co", covariant=True)


class Loader(DataLoader):
    """A DataLoader that hands out the items of its data set as they are, without collating them.

    A `UserError` in a worker is raised in the training process as itself: PyTorch would raise one whose message
    is the worker's traceback. Workers end with the process that has started them, however that ends.

    Args:
        dataset: what makes the items.
        **kwargs: those of `DataLoader`.
    """

    def __init__(self, dataset: Dataset, **kwargs: Any) -> None:
        generator = torch.Generator()  # or it would draw from the global one
        super().__init__(
            _Outcomes(dataset), batch_size=None, generator=generator, worker_init_fn=end_with_parent, **kwargs
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # PyTorch promises one of its own classes
        for outcome in super().__iter__():
            if isinstance(outcome, UserError):
                raise outcome
            yield outcome


def end_with_parent(worker: int) -> None:
    """End this process within a second of its parent's end.

    PyTorch's workers look for their parent too, but then wait for ever to hand over what they have made.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _Outcomes(Dataset[T_co | UserError]):
    """Items of a data set, or the error that came instead."""

    def __init__(self, dataset: Dataset[T_co]) -> None:
        self.dataset = dataset

    def __getitem__(self, index: Any) -> T_co | UserError:
        try:
            return self.dataset[index]
        except UserError as error:
            return error
        except MemoryError as error:
            message = "the memory is full: use fewer workers (num_workers, --workers) or smaller images"
            return UserError(f"{message} ({error})" if str(error) else message)
