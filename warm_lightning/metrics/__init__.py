"""How good generated images are: Fréchet and kernel distances, class scores, precision and recall, memorisation."""

from warm_lightning.metrics.digits import DigitsFeatures
from warm_lightning.metrics.features import (
    BATCH_SIZE,
    FeatureExtractor,
    ImportedFeatures,
    Observer,
    Pixels,
    TorchScriptFeatures,
)
from warm_lightning.metrics.inception import InceptionFeatures
from warm_lightning.metrics.reference import NEIGHBOURS, Reference, ScoreProtocol, measure
from warm_lightning.metrics.reference_file import read_statistics
from warm_lightning.metrics.scores import Scores, summarise_rounds

__all__ = [
    "BATCH_SIZE",
    "NEIGHBOURS",
    "DigitsFeatures",
    "FeatureExtractor",
    "ImportedFeatures",
    "InceptionFeatures",
    "Observer",
    "Pixels",
    "Reference",
    "ScoreProtocol",
    "Scores",
    "TorchScriptFeatures",
    "measure",
    "read_statistics",
    "summarise_rounds",
]
