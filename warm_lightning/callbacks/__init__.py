"""Callbacks of the Trainer: log, pictures, scores, checkpoints, progress."""

from warm_lightning.callbacks.checkpoints import Checkpoints
from warm_lightning.callbacks.expectations import Expectations
from warm_lightning.callbacks.posthoc import PostHocEMA
from warm_lightning.callbacks.samples import SampleGrid
from warm_lightning.callbacks.scores import ScoreSamples
from warm_lightning.callbacks.training import ImageProgressBar, Interrupt, TrainingLog

__all__ = [
    "Checkpoints",
    "Expectations",
    "ImageProgressBar",
    "Interrupt",
    "PostHocEMA",
    "SampleGrid",
    "ScoreSamples",
    "TrainingLog",
]
