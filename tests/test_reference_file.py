"""Reference statistics as files: they score as computed ones do, and other files are refused in one line."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from warm_lightning.data import Digits, ImageSet
from warm_lightning.errors import UserError
from warm_lightning.metrics import (
    Evaluation,
    Extraction,
    ImportedFeatures,
    Pixels,
    Reference,
    measure_reference,
    read_statistics,
)
from warm_lightning.metrics.reference_file import to_bytes

plain = ImageSet.without_classes


class Halves(torch.nn.Module):
    """The first and the other pixels' sums, as an extractor of another number of features; with logits."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        pixels = images.float().flatten(1) / 255
        return pixels.unflatten(1, (4, -1)).sum(2), pixels[:, :3]


@pytest.fixture(scope="module")
def extraction() -> Extraction:
    return Extraction(ImportedFeatures(f"{__name__}:Halves", "halves"))


@pytest.fixture(scope="module")
def measured(extraction) -> Reference:
    digits = Digits().train_images().as_tensor()
    return measure_reference(extraction, plain(digits[:300]), plain(digits[300:400]), source="digits")


def score(extraction: Extraction, reference: Reference) -> tuple[dict[str, float], dict[str, float]]:
    scores = Evaluation(extraction, reference, (1, 8, 8))
    scores.update(Digits().train_images().as_tensor()[400:500])
    count, values = scores.compute()
    return values, scores.companions(count)


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_injected_statistics_score_as_computed_ones(extraction, measured, tmp_path):
    """To the bit: all that a file of ours holds is what was computed."""
    expected = score(extraction, measured)
    assert len(expected[0]) == 7
    whole = read_statistics(write(tmp_path / "a.npz", to_bytes(measured, extraction, memorisation=True)), extraction)
    assert score(extraction, whole) == expected
    small = read_statistics(write(tmp_path / "b.npz", to_bytes(measured, extraction)), extraction)
    values, companions = score(extraction, small)
    missing = {name for name in expected[0] if name.startswith("memorisation")}
    assert values == {name: value for name, value in expected[0].items() if name not in missing}
    assert companions == {n: v for n, v in expected[1].items() if not n.startswith("memorisation")}
    for reference in (whole, small):
        described = reference.describe()
        assert described.pop("reference").startswith("digits, from ")
        assert described == {name: value for name, value in measured.describe().items() if name != "reference"}


def test_a_file_has_what_other_programs_read(extraction, measured, tmp_path):
    path = write(tmp_path / "stats.npz", to_bytes(measured, extraction))
    features = extraction(Digits().train_images().as_tensor()[:300])[0].double().numpy()
    with np.load(path, allow_pickle=False) as file:
        assert {file["mu"].dtype, file["sigma"].dtype} == {np.dtype("float64")}
        np.testing.assert_allclose(file["mu"], features.mean(0), rtol=1e-12)
        np.testing.assert_allclose(file["sigma"], np.cov(features.T), rtol=1e-9, atol=1e-9)


def test_only_what_is_known_is_read_and_companions_only_if_wanted(extraction, measured, tmp_path):
    path = write(tmp_path / "stats.npz", to_bytes(measured, extraction))
    with np.load(path) as file:
        arrays = dict(file)
    np.savez(path, **arrays, other=np.array([Trap()], dtype=object))  # as large and as hostile as it likes
    found = read_statistics(path, extraction, companions=False)
    assert found.shape == (1, 8, 8)
    assert score(extraction, found)[1] == {}
    assert score(extraction, read_statistics(path, extraction))[1]


def test_a_memorisation_that_is_no_number_survives_as_null(extraction, measured, tmp_path):
    measured = replace(measured, companions={"halves": {"memorisation": math.nan, "frechet": 1.0}})
    path = write(tmp_path / "stats.npz", to_bytes(measured, extraction, memorisation=True))
    with np.load(path) as file:
        assert json.loads(file["facts"].item(), parse_constant=pytest.fail)["companions"]["halves"]["frechet"] == 1
    assert math.isnan(read_statistics(path, extraction).companions["halves"]["memorisation"])


def test_a_file_of_another_program_gives_the_frechet_distance_alone(extraction, measured, tmp_path):
    path = tmp_path / "stats.npz"
    np.savez(path, mu=measured.normal.mean.numpy(), sigma=measured.normal.covariance.numpy())
    values, companions = score(extraction, read_statistics(path, extraction))
    expected = score(extraction, measured)[0]
    assert values == {name: expected[name] for name in ("fd100_halves", "is100_halves")}
    assert companions == {}


def test_moments_may_come_from_elsewhere_than_the_rest(extraction, measured):
    digits = Digits().train_images().as_tensor()
    other = measure_reference(extraction, plain(digits[700:1000]), companions=False).normal
    mixed = measure_reference(extraction, plain(digits[:300]), plain(digits[300:400]), normal=other)
    (values, companions), expected = score(extraction, mixed), score(extraction, measured)
    different = [name for name, value in values.items() if value != expected[0][name]]
    assert different == ["fd100_halves"]
    assert [n for n, v in companions.items() if v != expected[1][n]] == ["fd100_halves_gaussian"]


class Trap:
    def __reduce__(self):
        return (open, ("/nonexistent/was-run", "w"))


def good(**changes: object) -> dict[str, object]:
    return {"mu": np.zeros(4), "sigma": np.eye(4), **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file: make it with `warm reference-stats`"),
        (b"hello", "damaged or no .npz"),
        (b"PK\x03\x04 no zip", "damaged or no .npz"),
        ("truncated", "is damaged"),
        ({"mu": np.zeros(4)}, "has no 'sigma', but mu"),
        (good(mu=np.array([Trap()], dtype=object)), "pickled objects"),
        (good(mu=np.full(4, np.nan)), "not finite"),
        (good(sigma=np.eye(3)), r"\[4\] and sigma float64 \[3, 3\]"),
        (good(mu=np.zeros(4, dtype=np.int64)), "must be floats"),
        (good(mu=np.zeros(0), sigma=np.zeros((0, 0))), "F being 1 or more"),
        (good(sigma=np.diag([1, 1, 1, -1e-5])), "sigma is no covariance, for it has the eigenvalue -1e-05"),
        (good(sigma=np.triu(np.ones((4, 4)))), "not symmetric"),
        (good(mu=np.zeros(5), sigma=np.eye(5)), "has 5 features per image, but the extractor gives 4"),
        (good(facts=np.array("hello")), "its facts were not written by `warm reference-stats`"),
        (good(facts=np.array(json.dumps({"format_version": 99}))), "has format 99, this version reads 2"),
        (
            good(facts=np.array(json.dumps({"format_version": 2}))),
            "its facts were not written by `warm reference-stats`",
        ),
        (good(facts=np.array(json.dumps([2]))), "its facts were not written by `warm reference-stats`"),
    ],
)
def test_what_is_no_file_of_statistics_is_named_on_one_line(extraction, tmp_path, content, message):
    path = tmp_path / "stats.npz"
    if isinstance(content, dict):
        buffer = io.BytesIO()
        np.savez(buffer, **content)
        content = buffer.getvalue()
    if content == "truncated":  # in the middle, as the directory at the end would make it no zip at all
        np.savez(path, **good())
        content = path.read_bytes()
        content = content[:100] + content[140:]
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        Evaluation(extraction, read_statistics(path, extraction), (1, 8, 8))
    assert "stats.npz" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_statistics_of_another_extractor_or_with_damaged_features_are_refused(extraction, measured, tmp_path):
    path = write(tmp_path / "stats.npz", to_bytes(measured, extraction))
    with pytest.raises(UserError, match="made with another extractor: class, features, module"):
        read_statistics(path, Extraction(Pixels()))
    with np.load(path) as file:
        arrays = dict(file)
    facts = json.loads(arrays["facts"].item())
    for name in ("protocol", "companions", "shape", "num_images", "unseen"):
        less = json.dumps({key: value for key, value in facts.items() if key != name})
        np.savez(path, **{**arrays, "facts": np.array(less)})
        with pytest.raises(UserError, match="its facts were not written by `warm reference-stats`"):
            read_statistics(path, extraction)
    np.savez(path, **{**arrays, "features": arrays["features"][:, :3]})
    with pytest.raises(UserError, match="features is damaged"):
        read_statistics(path, extraction)
