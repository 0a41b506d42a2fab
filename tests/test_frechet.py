"""The Fréchet distance and its moments, against closed forms, scipy, torchmetrics, mpmath and other devices."""

from pathlib import Path

import mpmath
import numpy as np
import pytest
import torch
import torch.distributed as dist
from processes import spawn
from scipy.linalg import sqrtm
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from warm_lightning.callbacks.rounds import reference_identity
from warm_lightning.data import ImageSet
from warm_lightning.distributed import gather, total
from warm_lightning.errors import UserError
from warm_lightning.images import dequantise
from warm_lightning.metrics import Evaluation, Extraction, Pixels, reference
from warm_lightning.metrics.distances import Normal, ThinNormal, frechet_distance, frechet_memory, moment_sums
from warm_lightning.metrics.reference import Summariser


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(features: Tensor, parts: int = 1) -> Normal:
    sums = [moment_sums(part) for part in features.chunk(parts)]
    return Normal.from_sums({name: sum(part[name] for part in sums) for name in sums[0]})


def by_scipy(a: Normal, b: Normal) -> float:
    root = sqrtm(a.covariance.numpy() @ b.covariance.numpy())
    means = (a.mean - b.mean).square().sum() + (a.covariance + b.covariance).trace()
    return means.item() - 2 * np.trace(root).real


def by_torchmetrics(x: Tensor, y: Tensor) -> float:
    identity = nn.Identity()
    identity.num_features = x.shape[1]
    metric = FrechetInceptionDistance(feature=identity)
    metric.set_dtype(torch.float64)
    metric.update(x, real=True)
    metric.update(y, real=False)
    return metric.compute().item()


def test_of_commuting_normals_has_a_closed_form():
    basis = torch.linalg.qr(draw(8, 8)).Q
    a, b = torch.linspace(0, 3, 8).double(), torch.linspace(2, 1, 8).double()
    mean = draw(8, seed=1)
    first, second = (Normal(m, basis * v @ basis.T) for m, v in ((mean, a), (mean + 0.5, b)))
    expected = 8 * 0.25 + (a.sqrt() - b.sqrt()).square().sum()
    assert frechet_distance(first, second) == pytest.approx(expected.item(), rel=1e-12)
    assert frechet_distance(first, first) < 1e-12


@pytest.mark.filterwarnings("ignore:Matrix is singular")
@pytest.mark.parametrize("rank", ["full", "deficient"])
def test_is_scipys_and_torchmetrics(rank):
    if rank == "full":
        x, y = draw(300, 20) @ draw(20, 20, seed=1) + 5, draw(200, 20, seed=2) @ draw(20, 20, seed=3) + 4
    else:  # fewer images than features, and features that never fire; the sets distant: there they are accurate
        x, y = draw(60, 150) + 3, 1.3 * draw(40, 150, seed=1) + 4
        y[:, 100:] = x[:, 100:] = 0
    ours = frechet_distance(normal(x, 7), normal(y, 3))
    # 1e-6: what their square roots of eigenvalues that should be 0 leave without full rank.
    tolerance = 1e-9 if rank == "full" else 1e-6
    assert ours == pytest.approx(by_scipy(normal(x), normal(y)), rel=tolerance)
    assert ours == pytest.approx(by_torchmetrics(x, y), rel=tolerance)


@pytest.mark.parametrize("near", [True, False])
def test_holds_without_full_rank(near):
    # tr(Σa Σb)^½ is the nuclear norm of A Bᵀ, with A and B the centred features over √(N−1): another route,
    # without any covariance. For near sets, eigenvalues of Σa Σb and scipy's sqrtm are off by per cents.
    x = draw(60, 150) + 3
    y = x + 1e-3 * draw(60, 150, seed=1) if near else 1.3 * draw(40, 150, seed=1) + 3.1
    y[:, 100:] = x[:, 100:] = 0
    a, b = ((f - f.mean(0)) / (len(f) - 1) ** 0.5 for f in (x, y))
    expected = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    expected -= 2 * torch.linalg.svdvals(a @ b.T).sum()
    assert frechet_distance(normal(x), normal(y)) == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("count", [2, 60, 149, 150, 400])
@pytest.mark.parametrize("other", [40, 300])
def test_thin_form_is_the_full_form(count, other):
    """Distances of 2 to 400 images with 150 features, by the thin and the full form, to sets of 40 and 300 images."""
    x, y = draw(count, 150) @ draw(150, 150, seed=1) + 3, 1.3 * draw(other, 150, seed=2) + 3.1
    thin, full = ThinNormal.from_features(x), normal(x, 2 if count > 3 else 1)
    torch.testing.assert_close(thin.mean, full.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(thin.covariance, full.covariance, rtol=0, atol=1e-11 * full.covariance.abs().max())
    for name in ("trace", "covariance_norm"):
        assert getattr(thin, name)().item() == pytest.approx(getattr(full, name)().item(), rel=1e-11)
    # 1e-8 of d² is what the full form is good to without full rank; the traces are up to 20,000 times d².
    for second in (normal(y), ThinNormal.from_features(y)):
        expected = frechet_distance(full, normal(y))
        assert frechet_distance(thin, second) == pytest.approx(expected, rel=1e-8)
        assert frechet_distance(second, thin) == pytest.approx(expected, rel=1e-8)
    assert frechet_distance(thin, thin) < 1e-10 * full.covariance.trace()


@pytest.mark.parametrize(("limit", "thin"), [(400, [True, True, False]), (19, [False, False, False])])
def test_features_are_summed_only_where_there_are_as_many_images(limit, thin, monkeypatch):
    """Or more than are kept; images may come in any parts, and more after a score."""
    sums = []
    monkeypatch.setattr(reference, "moment_sums", lambda features: sums.append(len(features)) or moment_sums(features))
    features = draw(60, 30)
    summariser = Summariser([], Pixels(), features[:1], None, limit=limit)
    for expected, end in zip(thin, (20, 29, 60), strict=True):
        for part in features[summariser.seen : end].split(7):
            summariser.update(part, None)
        summary = summariser.compute()
        assert isinstance(summary.normal, ThinNormal) == expected
        assert (sums == []) == expected
        torch.testing.assert_close(summary.normal.covariance, normal(features[:end]).covariance, rtol=0, atol=1e-13)
        assert summary.count == end
    assert sum(sums) == 60


def test_scores_at_64_pixels_make_no_matrix_of_all_features(monkeypatch):
    """A matrix of 12,288 × 12,288 features takes 1.2 GB; none may be made for scores, nor to tell references apart."""
    monkeypatch.setattr(reference, "moment_sums", lambda features: pytest.fail("sums of products"))
    monkeypatch.setattr(ThinNormal, "covariance", property(lambda self: pytest.fail("the whole covariance")))
    images = torch.randint(256, (100, 3, 64, 64), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    data, samples = images[:60], images[60:]
    extraction = Extraction(Pixels())
    found = reference.measure_reference(extraction, ImageSet.without_classes(data))
    evaluation = Evaluation(extraction, found, (3, 64, 64))
    evaluation.update(samples)
    _, values = evaluation.compute()
    x, y = (dequantise(part, torch.float64).flatten(1) for part in (data, samples))
    a, b = ((f - f.mean(0)) / (len(f) - 1) ** 0.5 for f in (x, y))
    truth = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum()
    truth -= 2 * torch.linalg.svdvals(a @ b.T).sum()
    assert values["fd40_pixel"] == pytest.approx(truth.item(), rel=1e-6)  # features are float32
    assert found.companions["halves"]["frechet"] > 0
    assert reference_identity(evaluation)[-2] == f"{a.square().sum().item():.5e}"


def test_what_does_not_fit_in_memory_is_refused_before_anything_is_computed(monkeypatch):
    extraction = Extraction(Pixels())
    images = ImageSet.without_classes(torch.zeros(1, 3, 64, 64, dtype=torch.uint8).expand(13_000, -1, -1, -1))
    monkeypatch.setattr(extraction, "extract", lambda *arguments: pytest.fail("features are computed"))
    monkeypatch.setattr(reference, "available_memory", lambda device: 8 * 10**9)
    with pytest.raises(
        UserError, match=r"Pixels: scores of 13,000 samples .* about \d+\.\d GB for 12,288 .* 8\.0 GB are free"
    ):
        reference.measure_reference(extraction, images)
    # A matrix of all features is 1.2 GB, and a full form needs several; 500 images against 500 need none.
    assert frechet_memory(12_288, [13_000, 13_000]) > 8 * 12_288**2 * 8
    assert frechet_memory(12_288, [500, 500]) < 8 * 12_288**2 / 4


def test_of_near_sets_without_full_rank_is_that_of_sixty_digits():
    # By definition, through the eigenvalues of Σa Σb, with so many digits that those which should be 0 do no harm.
    x = draw(5, 8)
    y = x + 1e-3 * draw(5, 8, seed=1)
    with mpmath.workdps(60):
        means, covariances = [], []
        for f in (mpmath.matrix(x.tolist()), mpmath.matrix(y.tolist())):
            mean = mpmath.matrix([sum(f[:, j]) / 5 for j in range(8)])
            centred = mpmath.matrix(5, 8)
            for i in range(5):
                for j in range(8):
                    centred[i, j] = f[i, j] - mean[j]
            means.append(mean)
            covariances.append(centred.T * centred / 4)
        values = mpmath.eig(covariances[0] * covariances[1], left=False, right=False)
        cross = sum(mpmath.re(mpmath.sqrt(mpmath.mpc(value))) for value in values)
        trace = sum(c[i, i] for c in covariances for i in range(8))
        expected = float(mpmath.norm(means[0] - means[1]) ** 2 + trace - 2 * cross)
    assert 1e-6 < expected < 1e-3
    assert frechet_distance(normal(x), normal(y)) == pytest.approx(expected, rel=1e-6)


def in_process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    features = draw(501, 30).abs() + 3
    summariser = Summariser([], Pixels(), features, None, limit=400, over_processes=True)
    for part in features[rank::2].split(64):
        summariser.update(part, None)
    assert total(torch.tensor(rank + 1)) == 3
    assert [part.tolist() for part in gather(torch.arange(3 * rank).view(-1, 3))] == [[], [[0, 1, 2]]]
    summary = summariser.compute()
    torch.save((summary.normal.mean, summary.normal.covariance, summary.count, summary.features), folder / f"{rank}.pt")
    summariser.reset()
    summariser.update(features[rank:29:2], None)  # 15 and 14 of 30 features: thin, and in the order of one process
    thin = summariser.compute().normal
    assert isinstance(thin, ThinNormal)
    assert torch.equal(thin.root, ThinNormal.from_features(features[:29]).root)
    dist.destroy_process_group()


def test_two_processes_have_the_moments_of_one(tmp_path):
    spawn(in_process, tmp_path)
    features = draw(501, 30).abs() + 3
    expected = normal(features)
    for rank in range(2):
        mean, covariance, count, first = torch.load(tmp_path / f"{rank}.pt")
        assert count == 501
        assert torch.equal(first, features[:400])
        # Only the order of 501 float64 additions differs.
        torch.testing.assert_close(mean, expected.mean, rtol=1e-12, atol=0)
        torch.testing.assert_close(covariance, expected.covariance, rtol=0, atol=1e-12 * expected.covariance.max())
