"""Feature extractors: their features, the names of scores on them, and their errors."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from warm_lightning.cache import cache_folder
from warm_lightning.data import Digits
from warm_lightning.errors import UserError
from warm_lightning.metrics import (
    DigitsFeatures,
    Enlarged,
    FrechetDistance,
    ImportedFeatures,
    InceptionFeatures,
    Pixels,
    Reference,
    TorchScriptFeatures,
    default_extractor,
)
from warm_lightning.metrics.distances import Normal


@pytest.fixture(scope="module")
def trained() -> dict[str, Tensor]:
    return DigitsFeatures().train_classifier()


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("WARM_CACHE", str(tmp_path))
    return tmp_path


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class MeanAndSpread(nn.Module):
    """Features of an image: the mean and spread of its grey levels."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.double().flatten(1)
        return torch.stack([pixels.mean(dim=1), pixels.std(dim=1)], dim=1)


class WithLogits(nn.Module):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.float().flatten(1)
        return pixels, pixels[:, :3]


class ByKeyword(nn.Module):
    """Probabilities of classes, or features if asked for them, as StyleGAN2-ADA's Inception has them."""

    def forward(self, images: Tensor, return_features: bool = False) -> Tensor:
        pixels = images.float().flatten(1)
        return pixels if return_features else pixels[:, :3].softmax(dim=1)


class OneNumber(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float().mean()


FRECHET = FrechetDistance()
UNKNOWN = Reference(Normal(torch.zeros(1).double(), torch.eye(1).double()), "data of unknown size")
INSTANCE = MeanAndSpread()
NOT_A_MODULE = 3


def make() -> nn.Module:
    return MeanAndSpread()


# ------------------------------------------------------------------ names


@pytest.mark.parametrize(
    ("count", "short"), [(1797, "1797"), (2000, "2k"), (50_000, "50k"), (10_500, "10500"), (999, "999")]
)
def test_scores_are_named_by_extractor_and_number_of_images(count, short):
    imported = ImportedFeatures(f"{__name__}:INSTANCE", "cifar10_features")
    assert FRECHET.full_name(imported, count, UNKNOWN) == f"fd{short}_cifar10_features"
    assert imported.score_name("precision", count) == f"precision{short}_cifar10_features"
    for extractor, name in ((DigitsFeatures(), "digits"), (Pixels(), "pixel")):
        assert FRECHET.full_name(extractor, count, replace(UNKNOWN, count=count)) == f"fd_{name}"
        for reference in (None, count + 1):
            assert extractor.score_name("is", count, reference) == f"is{short}_{name}"
    assert FRECHET.full_name(imported, count, replace(UNKNOWN, count=count)) == f"fd{short}_cifar10_features"
    inception = InceptionFeatures.__new__(InceptionFeatures)  # without its weights
    assert FRECHET.full_name(inception, count, replace(UNKNOWN, count=count)) == f"fid{short}"
    assert inception.score_name("is", count) == f"is{short}"


# ------------------------------------------------------------------ pixels


def test_pixels_are_those_of_the_images_between_minus_1_and_1():
    images = torch.arange(256, dtype=torch.uint8).view(4, 1, 8, 8)
    features, logits = Pixels()(images)
    assert logits is None
    assert torch.equal(features, images.view(4, 64).float() / 127.5 - 1)


def test_pixels_of_large_images_are_refused():
    with pytest.raises(UserError, match="3×128×128 have 49152 features"):
        Pixels()(torch.zeros(1, 3, 128, 128, dtype=torch.uint8))


def test_pixels_are_the_default_up_to_32_pixels_and_inception_above():
    assert [type(default_extractor(size)) for size in (8, 32)] == [Pixels, Pixels]
    assert [type(default_extractor(size)) for size in (33, 256)] == [InceptionFeatures, InceptionFeatures]


# ------------------------------------------------------------------ digits


def test_digits_classifier_knows_its_digits(trained, cache, monkeypatch):
    monkeypatch.setattr(DigitsFeatures, "train_classifier", lambda self: trained)
    data = Digits().train_images()
    extractor = DigitsFeatures()
    features, logits = extractor(data.images)
    assert features.shape == (1797, 64)
    assert (logits.argmax(dim=1) == data.labels).float().mean() >= 0.99
    last = list(trained)[-2:]
    assert torch.allclose(features @ trained[last[0]].T + trained[last[1]], logits, atol=1e-4)


def test_digits_classifier_is_the_same_whatever_surrounds_its_training(trained):
    threads, default = torch.get_num_threads(), torch.get_default_dtype()
    torch.manual_seed(1234)
    torch.set_num_threads(2)
    torch.set_default_dtype(torch.float64)
    torch.set_float32_matmul_precision("medium")
    state = torch.get_rng_state()
    try:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16), torch.device("meta"):
            again = DigitsFeatures().train_classifier()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
        torch.set_default_dtype(default)
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(torch.get_rng_state(), state)
    assert same(again, trained)


def test_digits_classifier_is_trained_once(trained, cache, monkeypatch):
    calls = []
    monkeypatch.setattr(DigitsFeatures, "train_classifier", lambda self: calls.append(1) or trained)
    assert same(DigitsFeatures().load_classifier().state_dict(), trained)
    assert same(DigitsFeatures().load_classifier().state_dict(), trained)
    assert len(calls) == 1
    assert [file.name for file in (cache / "warm_lightning").iterdir()] == ["digits-classifier-v1.pt"]


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", "code", "other weights"])
def test_a_damaged_cache_is_replaced_and_its_code_not_run(trained, cache, monkeypatch, tmp_path, content):
    class Code:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "was run"),)

    monkeypatch.setattr(DigitsFeatures, "train_classifier", lambda self: trained)
    path = cache_folder() / DigitsFeatures().file_name
    path.parent.mkdir()
    if content == "code":
        torch.save({"0.weight": Code()}, path)
    elif content == "other weights":
        torch.save({"0.weight": torch.zeros(3)}, path)
    else:
        path.write_bytes(content)
    with pytest.warns(UserWarning, match="made anew"):
        assert same(DigitsFeatures().load_classifier().state_dict(), trained)
    assert not (tmp_path / "was run").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(DigitsFeatures().load_classifier().state_dict(), trained)


def test_a_cache_that_cannot_be_written_is_named(trained, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("WARM_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(DigitsFeatures, "train_classifier", lambda self: trained)
    with (
        pytest.warns(UserWarning, match="made anew"),
        pytest.raises(UserError, match="set WARM_CACHE to a folder"),
    ):
        DigitsFeatures().load_classifier()


def test_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    for variable in ("WARM_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "warm_lightning"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "warm_lightning"
    monkeypatch.setenv("WARM_CACHE", str(tmp_path / "warm"))
    assert cache_folder() == tmp_path / "warm" / "warm_lightning"


def test_digits_features_refuse_other_images():
    with pytest.raises(UserError, match=r"1×8×8, not \(3, 32, 32\)"):
        DigitsFeatures()(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


# ------------------------------------------------------------------ TorchScript and imported modules


def script(module: nn.Module, path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.script(module).save(str(path))
    return str(path)


def test_torchscript_features_of_cifar10(cifar10_features):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        extractor = TorchScriptFeatures(str(cifar10_features))
        features, logits = extractor(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert features.shape == (2, 256)
    assert logits is None
    assert extractor.name == "cifar10_features"
    with pytest.raises(UserError, match="does not take uint8 images of 1×8×8") as caught:
        extractor(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert "\n" not in str(caught.value)


def test_torchscript_with_logits_and_a_name(tmp_path):
    extractor = TorchScriptFeatures(script(WithLogits(), tmp_path / "my net-2.pt"))
    assert extractor.name == "my_net_2"
    images = torch.arange(64, dtype=torch.uint8).view(2, 2, 4, 4)
    features, logits = extractor(images)
    assert torch.equal(features, images.flatten(1).float())
    assert torch.equal(logits, features[:, :3])


def test_torchscript_is_called_with_the_keywords_given(tmp_path):
    path = script(ByKeyword(), tmp_path / "inception.pt")
    images = torch.arange(64, dtype=torch.uint8).view(2, 2, 4, 4)
    assert TorchScriptFeatures(path)(images)[0].shape == (2, 3)
    extractor = TorchScriptFeatures(path, name="", kwargs={"return_features": True}, frechet_name="fid")
    features, logits = extractor(images)
    assert torch.equal(features, images.flatten(1).float())
    assert logits is None
    assert FRECHET.full_name(extractor, 50_000, UNKNOWN) == "fid50k"
    assert extractor.score_name("kid", 50_000) == "kid50k"
    # With other keywords it is another extractor; under another file's name the same.
    identity = extractor.identity()
    assert identity != TorchScriptFeatures(path).identity()
    Path(path).rename(tmp_path / "moved.pt")
    assert TorchScriptFeatures(str(tmp_path / "moved.pt"), kwargs={"return_features": True}).identity() == identity
    with pytest.raises(UserError, match=r"moved\.pt does not take .*return_featurs"):
        TorchScriptFeatures(str(tmp_path / "moved.pt"), kwargs={"return_featurs": True})(images)


@pytest.mark.parametrize("damage", ["missing", "text", "truncated", "state_dict"])
def test_a_missing_or_broken_torchscript_file_is_named(tmp_path, damage):
    path = Path(script(MeanAndSpread(), tmp_path / "net.pt"))
    if damage == "missing":
        path.unlink()
    elif damage == "text":
        path.write_text("hello")
    elif damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    else:
        torch.save(nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(UserError, match=r"net\.pt.*(no such file|TorchScript)") as caught:
        TorchScriptFeatures(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", [":INSTANCE", ":MeanAndSpread", ":make", ".make"])
def test_imported_features_of_a_module_a_class_and_a_function(what):
    images = torch.arange(64, dtype=torch.uint8).view(2, 2, 4, 4)
    features, logits = ImportedFeatures(__name__ + what, "spread")(images)
    assert features.dtype == torch.float32
    assert torch.equal(features, INSTANCE(images).float())
    assert logits is None


def weighted() -> nn.Module:
    return nn.Linear(2, 2)


def test_imported_modules_of_other_weights_are_other_extractors():
    a, b = (ImportedFeatures(f"{__name__}:weighted", "x") for _ in range(2))
    assert a.identity() != b.identity()
    b.load_state_dict(a.state_dict())
    assert a.identity() == b.identity()


@pytest.mark.parametrize(
    ("module", "message"),
    [
        ("no_such_package.x:Net", "cannot be imported"),
        (f"{__name__}:no_such_name", "cannot be imported"),
        ("justaword", "cannot be imported"),
        (f"{__name__}:NOT_A_MODULE", "gives a int"),
    ],
)
def test_import_errors_name_the_module(module, message):
    with pytest.raises(UserError, match=message):
        ImportedFeatures(module, "x")


def test_features_of_a_wrong_shape_and_bad_names_are_refused():
    with pytest.raises(UserError, match=r"gives shape \[\] for 2 images"):
        ImportedFeatures(f"{__name__}:OneNumber", "x")(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(UserError, match="use letters, digits and underscores"):
        ImportedFeatures(f"{__name__}:make", "a b")


def test_images_are_enlarged_by_the_stated_rule() -> None:
    images = torch.randint(0, 256, (5, 3, 4, 4), generator=torch.Generator().manual_seed(0)).byte()
    features = {rule: Enlarged(Pixels(), 8, rule)(images)[0] for rule in ("nearest", "bilinear", "bicubic")}
    repeated = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(features["nearest"], Pixels()(repeated)[0])
    # Half-pixel centres: inside the image, a new pixel is 3/4 of the nearest old one and 1/4 of the next, in each
    # direction; cubic convolution with a = -3/4 has the weights of Keys (1981, Eq. 4) at distances of 1/4 and 3/4.
    for rule, weights in {
        "bilinear": [0, 0.75, 0.25, 0],
        "bicubic": [-0.10546875, 0.87890625, 0.26171875, -0.03515625],
    }.items():
        matrix = torch.zeros(8, 4).double()
        for new in range(8):
            old = new // 2  # the nearest one, and the order in which its neighbours are nearer
            step = 1 if new % 2 else -1
            for k, weight in zip(range(-1, 3), weights, strict=True):
                matrix[new, min(max(old + k * step, 0), 3)] += weight
        expected = (matrix @ images.double() @ matrix.T).round().clamp(0, 255).byte()
        assert (features[rule] - Pixels()(expected)[0]).abs().max() <= 1.001 / 127.5  # where rounding is a tie
    enlarged = Enlarged(Pixels(), 8)
    assert enlarged.score_name("fd", 1000) == "fd1k_pixel_at8"
    assert enlarged.describe()["extractor"] == Pixels().describe()
    inception = Enlarged(InceptionFeatures(), 32)
    assert (inception.frechet_name, inception.score_name("fd", 1000)) == ("fd", "fd1k_inception_at32")
    with pytest.raises(UserError, match="larger than 8"):
        enlarged(torch.zeros(1, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(UserError, match="at least 1"):
        Enlarged(Pixels(), 0)
