"""The training order: which image stands at which position of an endless stream.

Position p holds entry `perm(seed, p // M)[p mod M]` of the data, a new permutation for each pass over the M
entries. With mirroring M = 2N and entry N + i is image i mirrored left-right; otherwise M = N. The order is
a pure function of the seed and N, so it can be entered at any position, and the number
of devices only decides who takes which positions.
"""

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from warm_lightning.data.image_set import ImageSet
from warm_lightning.errors import UserError
from warm_lightning.rng import key
from warm_lightning.types import Batch


@lru_cache(maxsize=2)  # a batch may end one pass over the data and begin the next
def permutation(length: int, seed: int, epoch: int) -> Tensor:
    """The order of the entries in a pass over the data, int64 [length]. Cached: not to be written to."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(key(seed, "order", epoch)))


class TrainingStream(Dataset[Batch]):
    """Batches of the training stream by position.

    Args:
        image_set: the images, N of them.
        seed: the training seed.
        xflip: whether each pass over the data shows every image a second time, mirrored left-right.
    """

    def __init__(self, image_set: ImageSet, seed: int, xflip: bool = False) -> None:
        self.image_set = image_set
        self.seed = seed
        self.length = len(image_set) * (2 if xflip else 1)

    def __getitem__(self, positions: range) -> Batch:
        """The images at these positions ≥ 0."""
        where = torch.arange(positions.start, positions.stop, positions.step)
        return Batch(*self.take(self.entries(where)), where)

    def take(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Images [b, C, H, W] and classes [b] of entries in [0, M), int64 [b]."""
        index = entries % len(self.image_set)
        images = self.image_set.take(index)
        (mirrored,) = torch.where(entries >= len(self.image_set))
        images.index_copy_(0, mirrored, images.index_select(0, mirrored).flip(-1))
        return images, self.image_set.labels[index]

    def entries(self, positions: Tensor) -> Tensor:
        """What stands at positions, int64 [b] → int64 [b] in [0, M)."""
        epochs = positions // self.length
        entries = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            here = epochs == epoch
            entries[here] = permutation(self.length, self.seed, epoch)[positions[here] % self.length]
        return entries


class StoredOrder(Dataset[Batch]):
    """Batches of a set in the order in which it is stored; positions are indices."""

    def __init__(self, image_set: ImageSet) -> None:
        self.image_set = image_set

    def __getitem__(self, positions: range) -> Batch:
        """The images with these indices."""
        where = torch.arange(positions.start, positions.stop, positions.step)
        return Batch(self.image_set.take(where), self.image_set.labels[where], where)


class StreamSampler(Sampler[range]):
    """The positions of one device's micro-batches, without end.

    Of B = b·W·k images of optimizer step n, with W devices and k micro-batches each, micro-batch j on device
    r holds the positions n·B + (j·W + r)·b … + b: the devices' micro-batches, put together, are the stream.

    Args:
        start: gives the number of images that training has seen. Asked whenever iteration begins, so that
            a run that is resumed, or begins another epoch, goes on where it was.
        micro_batch: b.
        rank: r, in [0, W).
        world_size: W.
    """

    def __init__(self, start: Callable[[], int], micro_batch: int, rank: int = 0, world_size: int = 1) -> None:
        self.start = start
        self.micro_batch = micro_batch
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[range]:
        first = self.start() + self.rank * self.micro_batch
        for position in count(first, self.world_size * self.micro_batch):
            yield range(position, position + self.micro_batch)


def strided_batches(length: int, micro_batch: int, rank: int = 0, world_size: int = 1) -> list[range]:
    """Batches of every `world_size`-th index in 0 … length − 1, from `rank`; the last may be short."""
    mine = range(rank, length, world_size)
    return [mine[i : i + micro_batch] for i in range(0, len(mine), micro_batch)]


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
