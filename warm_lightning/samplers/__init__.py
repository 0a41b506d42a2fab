"""Samplers: a grid of levels, a step rule, and the loop over them."""

from warm_lightning.samplers.multistep import Multistep
from warm_lightning.samplers.rules import (
    AdaptiveHeat,
    ColouredFreshNoise,
    Direct,
    Euler,
    Heun,
    Interpolating,
    Momentum,
    ReverseDiffusion,
    Step,
    StepRule,
    gain_difference,
    split_noise,
)
from warm_lightning.samplers.sampler import (
    Churn,
    ClippedImage,
    EpsilonScaling,
    EstimateTransform,
    EvenGrid,
    Grid,
    PowerGrid,
    Sampler,
)
from warm_lightning.samplers.spectral_grid import SpectralGrid

__all__ = [
    "AdaptiveHeat",
    "Churn",
    "ClippedImage",
    "ColouredFreshNoise",
    "Direct",
    "EpsilonScaling",
    "EstimateTransform",
    "Euler",
    "EvenGrid",
    "Grid",
    "Heun",
    "Interpolating",
    "Momentum",
    "Multistep",
    "PowerGrid",
    "ReverseDiffusion",
    "Sampler",
    "SpectralGrid",
    "Step",
    "StepRule",
    "gain_difference",
    "split_noise",
]
