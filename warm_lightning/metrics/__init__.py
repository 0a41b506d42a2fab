"""How good generated images are: Fréchet distances, class scores, precision and recall, memorisation."""

from warm_lightning.metrics.digits import DigitsFeatures
from warm_lightning.metrics.extractors import FeatureExtractor, ImportedFeatures, Pixels, TorchScriptFeatures
from warm_lightning.metrics.inception import InceptionFeatures
from warm_lightning.metrics.scores import NEIGHBOURS, Scores

__all__ = [
    "NEIGHBOURS",
    "DigitsFeatures",
    "FeatureExtractor",
    "ImportedFeatures",
    "InceptionFeatures",
    "Pixels",
    "Scores",
    "TorchScriptFeatures",
]
