"""Inception features: torch-fidelity's own numbers, and what is said where its weights are missing or wrong."""

import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from torch import nn

from warm_lightning.errors import UserError
from warm_lightning.metrics import InceptionFeatures


@pytest.fixture(scope="module")
def inception() -> nn.Module:
    """torch-fidelity's own extractor with random weights that keep activations alive."""
    from torch_fidelity import feature_extractor_inceptionv3 as source

    nothing = patch.object(source, "load_state_dict_from_url", return_value={})
    unloaded = patch.object(source.FeatureExtractorInceptionV3, "load_state_dict")
    with nothing, unloaded:
        network = source.FeatureExtractorInceptionV3("inception", ["2048", "logits_unbiased"])
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, generator=generator)
    return network


def test_inception_features_are_torch_fidelitys(inception, tmp_path):
    path = tmp_path / "weights.pth"
    torch.save(inception.state_dict(), path)
    extractor = InceptionFeatures(str(path))
    images = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features, logits = extractor(images)
    expected = inception(images)
    assert features.shape == (2, 2048)
    assert features.std() > 0.01  # alive
    assert torch.allclose(features, expected[0], rtol=1e-5)
    assert torch.allclose(logits, expected[1], rtol=1e-4, atol=1e-4)
    grey = images[:, :1]
    assert torch.equal(extractor(grey)[0], extractor(grey.repeat(1, 3, 1, 1))[0])
    assert extractor.describe()["file"] == "weights.pth"


def test_inception_weights_are_found_in_torch_hubs_cache(inception, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"no Inception weights: put .*6726825d\.pth there") as caught:
        InceptionFeatures()(images)
    path = Path(str(caught.value).split(":")[0])
    path.parent.mkdir(parents=True)
    torch.save(inception.state_dict(), path)
    extractor = InceptionFeatures()
    assert extractor(images)[0].shape == (1, 2048)
    assert extractor.describe()["file"] == path.name


@pytest.mark.parametrize("content", ["missing", "text", "code", "other"])
def test_inception_weights_that_are_none_are_named(tmp_path, content):
    path = tmp_path / "weights.pth"
    if content == "text":
        path.write_text("hello")
    elif content == "code":
        torch.save({"weight": pytest.raises}, path)  # a pickle that imports
    elif content == "other":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(UserError, match=r"weights\.pth"):
        InceptionFeatures(str(path))(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_without_torch_fidelity_inception_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(UserError, match="pip install 'warm-lightning\\[inception\\]'"):
        InceptionFeatures()(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
