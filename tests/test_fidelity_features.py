"""torch-fidelity's extractors and scores against ours, with small networks of their layouts and random weights."""

from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch_fidelity
import torchvision
from PIL import Image
from sklearn.metrics.pairwise import rbf_kernel
from small import DIGITS, REPOSITORY
from test_documents import blocks
from torch import Tensor, nn
from torch_fidelity.feature_extractor_clip import CLIPVisual
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from warm_lightning.config import resolved_config
from warm_lightning.data import ImageSet
from warm_lightning.errors import UserError
from warm_lightning.metrics import Evaluation, Extraction, FidelityFeatures, measure_reference
from warm_lightning.metrics.distances import clip_distance
from warm_lightning.metrics.features import FeatureExtractor
from warm_lightning.metrics.scores import FrechetDistance, KernelDistance, Precision, Recall


class Clip(nn.Module):
    """A small CLIP in the layout of OpenAI's files, whose text half is empty."""

    def __init__(self) -> None:
        super().__init__()
        # A head of CLIP has 64 channels.
        self.visual = CLIPVisual(16, 64, 1, 64, 16).visual
        self.text_projection = nn.Parameter(torch.zeros(64, 16))

    def forward(self, x: Tensor) -> Tensor:
        return x


def small_vgg16(*args: Any, **kwargs: Any) -> nn.Module:
    """VGG-16's layers with few channels."""
    layers = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.ReLU())
    network = torchvision.models.VGG(layers, num_classes=10, init_weights=False)
    sizes = {0: 4 * 49, 3: 32, 6: 32}
    network.classifier = nn.Sequential(*(nn.Linear(sizes[k], 32) if k in sizes else nn.ReLU() for k in range(7)))
    return network


HUB = """
import torch
class Tiny(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.patches = torch.nn.Conv2d(3, 24, 14, stride=14)
    def forward(self, x):
        return self.patches(x).square().mean(dim=(2, 3))
def dinov2_vits14(pretrained=True):
    return Tiny()
"""


def network(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str | None]:
    """Make random weights of a network in its own format; gives torch-fidelity's name of it and the path."""
    torch.manual_seed(0)
    monkeypatch.setenv("TORCH_HOME", str(folder))
    path = folder / "weights.pt"
    if name == "clip":
        torch.jit.trace(Clip(), torch.zeros(1)).save(str(path))
        return "clip-vit-b-32", str(path)
    if name == "vgg16":
        monkeypatch.setattr(torchvision.models, "vgg16", small_vgg16)
        torch.save(small_vgg16().state_dict(), path)
        return "vgg16", str(path)
    repository = folder / "hub" / "facebookresearch_dinov2_main"
    repository.mkdir(parents=True)
    (repository / "hubconf.py").write_text(HUB)
    return "dinov2-vit-s-14", None


def pictures(count: int, side: int) -> Tensor:
    """Images of noise, in which every filter shows, uint8 [count, 3, side, side]."""
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1)).byte()


@pytest.mark.parametrize("name", ["clip", "vgg16", "dinov2"])
def test_features_are_torch_fidelitys(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are with TensorFlow's resizing; of images that Pillow has resized with the bicubic one.

    Found so: another filter or size, missing antialiasing or rounding, images that are resized twice.
    """
    chosen, path = network(name, tmp_path, monkeypatch)
    kind = FEATURE_EXTRACTORS_REGISTRY[chosen]
    own = kind(chosen, [kind.get_default_feature_layer_for_metric("fid")], path)
    side = {"clip": 64}.get(name, 224)
    for size in (40, 300):  # enlarged, and made smaller
        images = pictures(3, size)
        by_tensorflow = FidelityFeatures(chosen, "tensorflow", path)
        features, logits = by_tensorflow(images)
        assert logits is None
        assert torch.equal(features, own(images)[0])
        resized = [
            Image.fromarray(image.permute(1, 2, 0).numpy()).resize((side, side), Image.Resampling.BICUBIC)
            for image in images
        ]
        expected = own(torch.stack([torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in resized]))[0]
        bicubic = FidelityFeatures(chosen, weights_path=path)
        difference = (bicubic(images)[0] - expected).norm() / expected.norm()
        assert difference < 1e-2  # Pillow rounds once more, between rows and columns
        assert difference < 0.2 * (features - expected).norm() / expected.norm()  # the protocols differ
    assert by_tensorflow.name == bicubic.name + "_tf1"
    assert by_tensorflow.identity() != bicubic.identity()
    grey = images[:, :1]
    assert torch.equal(bicubic(grey)[0], bicubic(grey.expand(-1, 3, -1, -1))[0])


def test_the_extractors_of_the_page_are_a_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The YAML of docs/how-to/score.md against the real signatures; no weights are looked for."""
    code = next(code for _, code in blocks(REPOSITORY / "docs" / "how-to" / "score.md") if "dinov2" in code)
    (tmp_path / "features.yaml").write_text(code)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    options = [f"--config={DIGITS}", f"--config={tmp_path / 'features.yaml'}"]
    specs = resolved_config(options)["scores"]["extractors"]
    assert [FidelityFeatures(**spec["init_args"]).name for spec in specs] == [
        "dinov2",
        "clip_vit_l_14_336px",
        "vgg16_tf1",
    ]


def test_names_of_scores() -> None:
    assert FidelityFeatures().score_name("fd", 50_000) == "fd50k_dinov2"
    assert FidelityFeatures("clip-vit-l-14-336px").score_name("cmmd", 10_000) == "cmmd10k_clip_vit_l_14_336px"
    assert FidelityFeatures("inception-v3-compat", "tensorflow").score_name("fd", 50_000) == "fd50k_inception_tf1"


@pytest.mark.parametrize("name", ["clip", "vgg16", "dinov2", "dinov2 with a path", "other weights"])
def test_missing_weights_are_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    if name == "dinov2 with a path":
        with pytest.raises(UserError, match="TORCH_HOME"):
            FidelityFeatures("dinov2-vit-s-14", weights_path="weights.pt")
        return
    if name == "other weights":
        _, path = network("vgg16", tmp_path, monkeypatch)
        chosen = FidelityFeatures("inception-v3-compat", weights_path=path)
    else:
        chosen = FidelityFeatures({"clip": "clip-rn50", "vgg16": "vgg16", "dinov2": "dinov2-vit-g-14"}[name])
    with patch("torch.hub.urlopen", side_effect=URLError("no route")), pytest.raises(UserError) as caught:
        chosen.prepare()
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


class Projected(FeatureExtractor):
    """Ten fixed projections of the pixels."""

    name = "projected"

    def forward(self, images: Tensor) -> tuple[Tensor, None]:
        weights = torch.randn(images[0].numel(), 10, generator=torch.Generator().manual_seed(0))
        return images.flatten(1).float() @ weights / 100, None

    def describe(self) -> dict[str, Any]:
        return {"class": "Projected"}


class ProjectedThere(torch_fidelity.FeatureExtractorBase):
    """The features of `Projected` for torch-fidelity."""

    def __init__(self, name: str, features: list[str], **settings: Any) -> None:
        super().__init__(name, features)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (Projected()(images)[0],)

    @staticmethod
    def get_provided_features_list() -> tuple[str]:
        return ("all",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        return "all"

    @staticmethod
    def can_be_compiled() -> bool:
        return False


class TensorImages(torch.utils.data.Dataset):
    """Images for torch-fidelity."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def test_scores_are_torch_fidelitys() -> None:
    """Fréchet and kernel distance, precision and recall of the same images, by torch-fidelity's own functions."""
    generator = torch.Generator().manual_seed(0)
    data = torch.randint(0, 200, (300, 3, 8, 8), generator=generator).byte()
    samples = torch.randint(40, 256, (300, 3, 8, 8), generator=generator).byte()
    samples[:100] = data[:100] // 2 + samples[:100] // 3
    torch_fidelity.register_feature_extractor("projected", ProjectedThere)
    theirs = torch_fidelity.calculate_metrics(
        input1=TensorImages(samples),
        input2=TensorImages(data),
        fid=True,
        kid=True,
        prc=True,
        cuda=False,
        feature_extractor="projected",
        kid_subset_size=300,
        kid_subsets=2,
        cache=False,
        verbose=False,
    )
    chosen = [FrechetDistance(), KernelDistance(), Precision(), Recall()]
    extraction = Extraction(Projected())
    reference = measure_reference(extraction, ImageSet.without_classes(data), scores=chosen)
    evaluation = Evaluation(extraction, reference, (3, 8, 8), scores=chosen)
    evaluation.update(samples)
    _, ours = evaluation.compute()
    assert 0.1 < theirs["precision"] < 0.9  # a test worth its name
    assert 0.1 < theirs["recall"] < 0.9
    assert ours["precision300_projected"] == pytest.approx(theirs["precision"], abs=1e-6)
    assert ours["recall300_projected"] == pytest.approx(theirs["recall"], abs=1e-6)
    assert ours["kid300_projected"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert ours["fd300_projected"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4)


def test_clip_distance_is_the_squared_mmd_of_unit_vectors() -> None:
    """Against scikit-learn's Gaussian kernel, and by the means, which are most of it for so wide a kernel."""
    x, y = (torch.randn(n, 12, generator=torch.Generator().manual_seed(n)) * n for n in (40, 30))
    a, b = (z.double().numpy() / np.linalg.norm(z.double().numpy(), axis=1, keepdims=True) for z in (x, y))
    k = rbf_kernel
    expected = k(a, a, 1 / 200).mean() + k(b, b, 1 / 200).mean() - 2 * k(a, b, 1 / 200).mean()
    assert clip_distance(x, y) == pytest.approx(1000 * expected, rel=1e-9)
    linear = np.square(a.mean(axis=0) - b.mean(axis=0)).sum() / 100  # k = exp((x·y - 1)/100) ≈ 1 + (x·y - 1)/100
    assert clip_distance(x, y) == pytest.approx(1000 * linear, rel=0.02)


def test_clip_distance_is_for_clip_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, path = network("clip", tmp_path, monkeypatch)
    data = ImageSet.without_classes(pictures(12, 16))
    for extractor, names in (
        (FidelityFeatures(chosen, weights_path=path), ["cmmd12_clip_vit_b_32"]),
        (Projected(), []),
    ):
        extraction = Extraction(extractor)
        evaluation = Evaluation(extraction, measure_reference(extraction, data), (3, 16, 16))
        evaluation.update(data.as_tensor().flip(3))
        assert [name for name in evaluation.compute()[1] if name.startswith("cmmd")] == names
