"""Scores of generated images: Fréchet and kernel distances, class scores, precision and recall, memorisation."""

from warm_lightning.metrics.classifiers import DigitsFeatures, LeavesFeatures
from warm_lightning.metrics.efficientnet import EfficientNetFeatures
from warm_lightning.metrics.evaluation import Evaluation, split_rounds, summarise_rounds
from warm_lightning.metrics.features import (
    BATCH_SIZE,
    Enlarged,
    Extraction,
    FeatureExtractor,
    ImportedFeatures,
    Pixels,
    TorchScriptFeatures,
)
from warm_lightning.metrics.inception import FidelityFeatures, InceptionFeatures, default_extractor
from warm_lightning.metrics.reference import measure_reference
from warm_lightning.metrics.reference_file import read_statistics
from warm_lightning.metrics.scores import NEIGHBOURS, Better, FrechetDistance, Reference, Score, ScoreProtocol

__all__ = [
    "BATCH_SIZE",
    "NEIGHBOURS",
    "Better",
    "DigitsFeatures",
    "EfficientNetFeatures",
    "Enlarged",
    "Evaluation",
    "Extraction",
    "FeatureExtractor",
    "FidelityFeatures",
    "FrechetDistance",
    "ImportedFeatures",
    "InceptionFeatures",
    "LeavesFeatures",
    "Pixels",
    "Reference",
    "Score",
    "ScoreProtocol",
    "TorchScriptFeatures",
    "default_extractor",
    "measure_reference",
    "read_statistics",
    "split_rounds",
    "summarise_rounds",
]
