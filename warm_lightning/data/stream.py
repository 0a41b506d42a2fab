"""The training stream: an endless order of the training images, the positions of each device, and the loader.

Position p of the stream holds entry `permutation(M, seed, p // M)[p mod M]` of the data, with a new permutation for
each pass over the M entries. With mirroring, M = 2N and entry N + i is image i mirrored left-right; otherwise M = N.
The order depends on the seed and M only. Training can therefore start at any position, and the number of devices
changes only which device takes which positions.
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

WORKER_DIED = "DataLoader worker (pid"
"""The beginning of PyTorch's message for a worker that the system has killed."""

# ---- batches by position


@lru_cache(maxsize=2)  # a batch may end one pass over the data and begin the next
def permutation(length: int, seed: int, epoch: int) -> Tensor:
    """The order of the entries in one pass over the data, int64 [length]. Cached: do not write to it."""
    return torch.randperm(length, generator=torch.Generator().manual_seed(key(seed, "order", epoch)))


class TrainingStream(Dataset[Batch]):
    """The training images as a data set whose items are batches of the stream, by position.

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
        """The images at these positions ≥ 0 of the stream."""
        index = torch.arange(positions.start, positions.stop, positions.step)
        return Batch(*self.take(self.entries(index)), index)

    def take(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """The images, uint8 [b, C, H, W], and classes, int64 [b], of entries in [0, M), int64 [b]."""
        index = entries % len(self.image_set)
        images = self.image_set.take(index)
        (mirrored,) = torch.where(entries >= len(self.image_set))
        images.index_copy_(0, mirrored, images.index_select(0, mirrored).flip(-1))
        return images, self.image_set.labels[index]

    def entries(self, positions: Tensor) -> Tensor:
        """The entries at positions of the stream, int64 [b] → int64 [b] in [0, M)."""
        epochs = positions // self.length
        entries = torch.empty_like(positions)
        for epoch in epochs.unique().tolist():
            chosen = epochs == epoch
            entries[chosen] = permutation(self.length, self.seed, epoch)[positions[chosen] % self.length]
        return entries


class InOrder(Dataset[Batch]):
    """A set of images as a data set whose items are batches in the order of the set; positions are indices."""

    def __init__(self, image_set: ImageSet) -> None:
        self.image_set = image_set

    def __getitem__(self, positions: range) -> Batch:
        """The images with these indices."""
        index = torch.arange(positions.start, positions.stop, positions.step)
        return Batch(self.image_set.take(index), self.image_set.labels[index], index)


# ---- positions of each device


class StreamSampler(Sampler[range]):
    """The endless sequence of positions of one device's micro-batches.

    Optimizer step n takes B = b·W·k images, with W devices and k micro-batches on each. Micro-batch j on device r
    holds the b positions from n·B + (j·W + r)·b on: the micro-batches of all devices together are the stream.

    Args:
        start: returns the number of images that training has seen. It is called whenever iteration begins, so that
            a resumed run, or a new epoch, continues at the right position.
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


# ---- the loader

T_co = TypeVar("T_co", covariant=True)


class Loader(DataLoader):
    """A DataLoader that returns the items of its data set unchanged, without collating them.

    A `UserError` in a worker is raised in the training process with its own message: PyTorch would raise an error
    whose message is the worker's traceback. Workers end when the process that started them ends, even if it is killed.

    Args:
        dataset: makes the items.
        **kwargs: the arguments of `DataLoader`.
    """

    def __init__(self, dataset: Dataset, **kwargs: Any) -> None:
        generator = torch.Generator()  # by default PyTorch would draw from the global generator
        super().__init__(
            _ItemsOrErrors(dataset), batch_size=None, generator=generator, worker_init_fn=end_with_parent, **kwargs
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # PyTorch promises one of its own classes
        for item in super().__iter__():
            if isinstance(item, UserError):
                raise item
            yield item


def end_with_parent(worker: int) -> None:
    """Start a thread that ends this process within a second of its parent's end.

    PyTorch's workers also watch their parent, but then wait for ever to hand over their last items.
    """
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


class _ItemsOrErrors(Dataset[T_co | UserError]):
    """The items of another data set; where it raises a `UserError`, the item is that error."""

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
