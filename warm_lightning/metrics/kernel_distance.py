"""Kernel distance between two sets of features: the kernel inception distance, on Inception's."""

import torch
from torch import Tensor

from warm_lightning.rng import key

SUBSETS = 100
SUBSET_SIZE = 1000


def kernel_distance(samples: Tensor, reference: Tensor, seed: int = 0) -> tuple[float, float]:
    """Mean and standard deviation, over random subsets, of the unbiased squared MMD (Bińkowski et al. 2018, sec. 4).

    The kernel is (x·y/F + 1)³; of each set, 100 subsets of 1,000 images or, where there are fewer, as many as the
    smaller set has. That is torchmetrics' KernelInceptionDistance with its defaults, but summed in float64,
    and with subsets that are a function of `seed` and of the sets' sizes: two models are compared on the same ones.

    Args:
        samples: [S, F], S ≥ 2.
        reference: [R, F], R ≥ 2.
        seed: of the subsets.
    """
    size = subset_size(len(samples), len(reference))
    generator = torch.Generator().manual_seed(key(seed, "kernel distance"))
    distances = []
    for _ in range(SUBSETS):
        x, y = (
            features[torch.randperm(len(features), generator=generator)[:size].to(features.device)]
            for features in (reference, samples)
        )
        distances.append(squared_mmd(x, y))
    values = torch.stack(distances)
    return values.mean().item(), values.std(unbiased=False).item()


def subset_size(samples: int, reference: int) -> int:
    """Images in a subset."""
    return min(SUBSET_SIZE, samples, reference)


def squared_mmd(x: Tensor, y: Tensor) -> Tensor:
    """Unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012, Eq. 4); negative by chance.

    Args:
        x: [m, F], m ≥ 2.
        y: [m, F].
    """
    within, across = x.new_zeros((), dtype=torch.float64), _kernel(x, y).mean(dtype=torch.float64)
    for kernel in (_kernel(x, x), _kernel(y, y)):
        within += kernel.sum(dtype=torch.float64) - kernel.diagonal().sum(dtype=torch.float64)
    return within / (len(x) * (len(x) - 1)) - 2 * across


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    base = torch.addmm(x.new_ones(()), x, y.T, alpha=1 / x.shape[1])
    return (base * base).mul_(base)  # pow takes ten times as long
