"""The measuring programs: that they measure what they say, and that they run to their end without a GPU."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encode, store
from PIL import Image
from scipy.fft import dctn
from small import REPOSITORY

from experiments import bench, gaussian_oracle, gpu_check, machine
from experiments.training_step import TrainingStep
from warm_lightning import load_config

CIFAR10 = REPOSITORY / "configs" / "cifar10.yaml"
CIFAR10_SMALL = REPOSITORY / "configs" / "cifar10_small.yaml"
NO_INCEPTION = {"scores.extractors": "[Pixels]"}  # its weights need not be here


def algorithm_2(bnr: float, steps: int, variance: float, frequency: float) -> tuple[float, float]:
    """Algorithm 2 of the paper, line by line, for one coefficient of Gaussian data; starts at x = 80.

    Returns:
        Where it ends, and where the exact ODE would.
    """

    def blur(beta: float) -> float:
        return math.exp(-frequency * (bnr * beta) ** 2 / 2)

    def predictions(x: float, beta: float) -> tuple[float, float]:
        gain = blur(beta)
        clean = gain * variance / (gain**2 * variance + beta**2) * x
        blurred, residual = gain * clean, -math.expm1(math.log(gain) if gain else -math.inf) * clean
        lost = 1 - gain
        return (x - blurred) / beta, residual / lost if lost > 1e-9 else clean

    def schedule(i: int) -> float:
        low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
        return (high + (steps - i) / (steps - 1) * (low - high)) ** 7 if i else 0.0

    x = 80.0
    for i in range(steps, 0, -1):
        t, s = schedule(i), schedule(i - 1)
        noise, clean = predictions(x, t)
        moved = x + (blur(s) - blur(t)) * clean + (s - t) * noise
        if i != 1:
            noise_2, clean_2 = predictions(moved, s)
            moved = x + (blur(s) - blur(t)) * (clean + clean_2) / 2 + (s - t) * (noise + noise_2) / 2
        x = moved
    return x, 80 * math.sqrt(variance / (blur(80) ** 2 * variance + 80**2))


def distances(spectrum: np.ndarray, bnr: float, nfe: int) -> tuple[float, float]:
    """Squared Fréchet distances to the data and to the exact ODE, a coefficient at a time; S [C, H, W]."""
    to_data = to_ode = 0.0
    for _, i, j in (index := np.ndindex(spectrum.shape)) and list(index):
        height, width = spectrum.shape[1:]
        frequency = math.pi**2 * ((i / height) ** 2 + (j / width) ** 2)
        end, exact = algorithm_2(bnr, (nfe + 1) // 2, spectrum[_, i, j], frequency)
        to_data += (abs(end) - math.sqrt(spectrum[_, i, j])) ** 2
        to_ode += (abs(end) - exact) ** 2
    return to_data, to_ode
