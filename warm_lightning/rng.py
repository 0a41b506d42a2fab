"""Random numbers that depend on their purpose alone, and not on the batch, the device or the time of drawing.

Training draws are keyed by (seed, images seen) and sampling draws by the image's seed.
"""

import hashlib
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from warm_lightning.errors import UserError, check


def key(seed: int, *names: int | str) -> int:
    """A 63-bit seed for a random generator, a hash of the arguments: equal in all processes and versions."""
    text = ":".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


SEEDS = 2**32
"""Number of seeds of images: `SeedStreams` takes larger ones modulo this."""


class Draws(ABC):
    """Random draws for the images of a batch, one row per image; drawn in float32 and then converted."""

    @abstractmethod
    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal draws, [B, *shape]."""

    @abstractmethod
    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform draws in [0, 1), [B, *shape]."""

    @abstractmethod
    def chi_square(self, degrees: float) -> Tensor:
        """Draws from the chi-square law with `degrees` degrees of freedom, [B]."""


class BatchDraws(Draws):
    """Draws for one optimizer step, of which each device takes the rows of its own images.

    Every device draws for the whole global batch, so that the draws for image k of step n do not depend on the
    number of devices or of accumulated batches.

    Args:
        seed: the training seed.
        images_seen: number of images trained on before this step.
        batch_size: global batch size.
        rows: the images of the global batch that are on this device, int64 [B] with values in [0, batch_size).
    """

    def __init__(self, seed: int, images_seen: int, batch_size: int, rows: Tensor) -> None:
        self.generator = torch.Generator(rows.device).manual_seed(key(seed, "step", images_seen))
        self.batch_size = batch_size
        self.rows = rows

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._rows(torch.randn, shape).to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._rows(torch.rand, shape).to(dtype)

    def chi_square(self, degrees: float) -> Tensor:
        half = torch.full((self.batch_size,), degrees / 2, device=self.rows.device, dtype=torch.float32)
        return 2 * torch._standard_gamma(half, generator=self.generator)[self.rows]

    def common_order(self, length: int) -> Tensor:
        """A random permutation of 0 … length - 1, the same on all devices, int64 [length]."""
        return torch.randperm(length, generator=self.generator, device=self.rows.device)

    def _rows(self, law: Callable[..., Tensor], shape: tuple[int, ...]) -> Tensor:
        size = (self.batch_size, *shape)
        return law(size, generator=self.generator, device=self.rows.device, dtype=torch.float32)[self.rows]


class SeedStreams(Draws):
    """Draws with one generator for each image, so that they are the same bits in any batch on any device.

    The order of draws from a stream is part of the contract for sampling: first `normal(C, H, W)` for the
    initial noise, then a class if the model has classes, even if the caller has given one, then the other draws of the
    prior, then those of a stochastic sampler.

    Args:
        seeds: one per image; taken modulo 2³².
        device: where to put the draws.
    """

    def __init__(self, seeds: Sequence[int], device: torch.device | str = "cpu") -> None:
        # Drawn on the CPU: a CUDA generator gives other bits for the same seed.
        self.generators = [torch.Generator("cpu").manual_seed(seed % SEEDS) for seed in seeds]
        self.device = device

    def normal(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._each(lambda g: torch.randn(shape, generator=g, dtype=torch.float32)).to(dtype)

    def uniform(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self._each(lambda g: torch.rand(shape, generator=g, dtype=torch.float32)).to(dtype)

    def chi_square(self, degrees: float) -> Tensor:
        half = torch.tensor(degrees / 2, dtype=torch.float32)
        return 2 * self._each(lambda g: torch._standard_gamma(half, generator=g))

    def integers(self, high: int) -> Tensor:
        """The next integer in [0, high) of each stream, int64 [B]."""
        return self._each(lambda g: torch.randint(high, [], generator=g))

    def _each(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        return torch.stack([draw(generator) for generator in self.generators]).to(self.device)


MOST_SEEDS = 10_000_000
"""The longest range of seeds, whose list takes 0.4 GB."""


def parse_seeds(text: str, distinct: bool = True) -> list[int]:
    """The seeds that a text such as "0-3,7" lists, here [0, 1, 2, 3, 7].

    Args:
        text: numbers and ranges.
        distinct: whether no seed may come twice, which would be one image counted as two.

    Raises:
        UserError: for anything but numbers from 0 to 2³² - 1 and rising ranges, separated by commas.
    """
    seeds: list[int] = []
    for part in str(text).split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if not match:
            raise UserError(f"seeds {text!r}: write numbers and ranges separated by commas, such as 0-63 or 1,5,8-11")
        first, last = int(match[1]), int(match[2] or match[1])
        check(first <= last, f"seeds {text!r}: the range {part.strip()} runs backwards; write {last}-{first}")
        check(last < SEEDS, f"seeds {text!r}: {last} is too large, the largest seed is {SEEDS - 1}")
        check(last - first < MOST_SEEDS, f"seeds {text!r}: at most {MOST_SEEDS:,} at once: sample them in parts")
        seeds.extend(range(first, last + 1))
    twice = len(seeds) - len(set(seeds))
    check(not distinct or not twice, f"seeds {text!r}: names {twice} of its seeds more than once; name each once")
    return seeds
