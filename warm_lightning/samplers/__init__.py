"""Samplers: a grid of levels, a rule for a step, and the one loop."""

from warm_lightning.samplers.multistep import Multistep
from warm_lightning.samplers.rules import (
    Direct,
    Euler,
    Heun,
    Interpolating,
    Momentum,
    ReverseDiffusion,
    Step,
    StepRule,
    clean_view,
    gain_difference,
    split_noise,
)
from warm_lightning.samplers.sampler import (
    Belief,
    Churn,
    ClippedImage,
    EpsilonScaling,
    EvenGrid,
    Grid,
    PowerGrid,
    Sampler,
)

__all__ = [
    "Belief",
    "Churn",
    "ClippedImage",
    "Direct",
    "EpsilonScaling",
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
    "Step",
    "StepRule",
    "clean_view",
    "gain_difference",
    "split_noise",
]
