"""Stable target field (Xu et al. 2023): its targets, and the reference images that it uses."""

import math
from types import SimpleNamespace

import pytest
import torch
from small import DIGITS, REPOSITORY, reference_batch
from torch import Tensor
from truths import clocks, digits, noise

from warm_lightning import load_config
from warm_lightning.augment import NonLeaky
from warm_lightning.data import ImageDataModule, ImageSet
from warm_lightning.errors import UserError
from warm_lightning.images import dequantise
from warm_lightning.module import DiffusionModule
from warm_lightning.oracles import DatasetOracle
from warm_lightning.processes import BlurringDiffusion, Hot, PFGMpp, Process, Warm
from warm_lightning.rng import BatchDraws
from warm_lightning.spectral import dct, idct
from warm_lightning.targets import StableTarget
from warm_lightning.types import Batch, Estimate

COUNT = 60


class Few(ImageDataModule):
    """Sixty digits."""

    def load(self, split: str) -> ImageSet | None:
        if split == "held_out":
            return None
        images = ((digits(COUNT) + 1) * 127.5).round().to(torch.uint8)
        return ImageSet(images, torch.arange(COUNT) % 10, tuple("0123456789"))


def batch_of(data: ImageDataModule, seed: int, first: int, size: int) -> Batch:
    from warm_lightning.data.stream import TrainingStream

    return TrainingStream(data.train_images(), seed, data.xflip)[range(first, first + size)]


def degraded(process: Process, x0: Tensor, readings: Tensor, seed: int = 1):
    gains = process.gains(process.level(readings), x0)
    truth = Estimate(dct(x0), dct(noise(*x0.shape, seed=seed)))
    return truth, process.degrade(truth, gains), gains


def transcribed(x: Tensor, own: int, sigma: float, reference: Tensor) -> Tensor:
    """Σ w_i x_i, w_i = exp(-‖x - x_i‖²/2σ²) over their sum (their Eq. 8); `own` is one of the reference batch."""
    assert own < len(reference)
    logs = [-(x - y).square().sum().item() / (2 * sigma**2) for y in reference]
    weights = [math.exp(value - max(logs)) for value in logs]
    return sum(w * y for w, y in zip(weights, reference, strict=True)) / sum(weights)


def test_the_target_is_the_papers_self_normalised_mean() -> None:
    images = digits(20)
    sigmas = clocks(0.5, 2.0, 10.0)
    truth, u, gains = degraded(Hot(), images[:3], sigmas)
    allowed = torch.ones(3, 8, dtype=torch.bool)
    got = StableTarget(8)(truth, u, dct(images[10:18]), allowed, Hot(), gains)
    for i in range(3):
        reference = torch.cat([images[i : i + 1], images[10:18]])
        expected = transcribed(idct(u)[i], 0, sigmas[i].item(), reference)
        torch.testing.assert_close(idct(got.clean)[i], expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(gains.signal * got.clean + gains.noise * got.noise, u, rtol=0, atol=1e-12)


@pytest.mark.parametrize("process", [Hot(), PFGMpp(128), Warm(), BlurringDiffusion()])
def test_with_all_others_it_is_the_dataset_oracle(process: Process) -> None:
    """Directly, and through the references that training draws."""
    data = Few(batch_size=8)
    batch = batch_of(data, 0, 16, 8)
    x0 = dequantise(batch.images, torch.float64)
    readings = torch.linspace(0.3, 0.9, 8, dtype=torch.float64)
    truth, u, gains = degraded(process, x0, readings)
    u0 = dct(dequantise(data.train_images().as_tensor(), torch.float64))
    expected = DatasetOracle(u0, process)(u, process.level(readings))
    direct = StableTarget(COUNT)(truth, u, u0, ~same(truth.clean, u0), process, gains)
    draws = BatchDraws(0, 16, 8, torch.arange(8))
    others, allowed = reference_batch(data, 0, 10**6)(batch, draws, None, None, u)
    drawn = StableTarget(10**6)(truth, u, others, allowed, process, gains)
    assert others.shape[0] == COUNT
    assert allowed.sum(1).tolist() == [COUNT - 1] * 8  # its own image is there once
    for got in (direct, drawn):
        torch.testing.assert_close(got.clean, expected.clean, rtol=0, atol=1e-10)
        torch.testing.assert_close(got.noise, expected.noise, rtol=0, atol=1e-9)


def same(ours: Tensor, theirs: Tensor) -> Tensor:
    return torch.cdist(ours.flatten(1), theirs.flatten(1)) < 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_with_the_image_alone_it_is_edms_target_to_the_bit(dtype: torch.dtype) -> None:
    data = Few(batch_size=8)
    batch = batch_of(data, 0, 0, 8)
    x0 = dequantise(batch.images, dtype)
    readings = torch.logspace(-3, 2, 8, dtype=dtype)
    gains = Hot().gains(Hot().level(readings), x0)
    truth = Estimate(dct(x0), dct(noise(*x0.shape).to(dtype)))
    u = Hot().degrade(truth, gains)
    others, allowed = reference_batch(data, 0, 0)(batch, BatchDraws(0, 0, 8, torch.arange(8)), None, None, u)
    assert (others.shape, allowed.shape) == ((0, 1, 8, 8), (8, 0))
    assert torch.equal(StableTarget(0)(truth, u, others, allowed, Hot(), gains).clean, truth.clean)


def others_of(batch: Batch, data: ImageDataModule, count: int = 10**6, **told) -> tuple[Tensor, Tensor, Tensor]:
    """References, which are allowed, and the index of each in the data."""
    like = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    draws = BatchDraws(0, 0, len(batch.images), torch.arange(len(batch.images)))
    labels = {"class_labels": None, "augment_labels": None, **told}
    others, allowed = reference_batch(data, 0, count)(
        batch, draws, labels["class_labels"], labels["augment_labels"], like
    )
    everything = dct(dequantise(data.train_images().as_tensor(), torch.float64))
    return others, allowed, torch.cdist(others.flatten(1), everything.flatten(1)).argmin(1)


def test_only_images_of_the_class_that_the_network_is_told() -> None:
    data = Few(batch_size=8)
    batch = batch_of(data, 0, 0, 8)
    classes = torch.nn.functional.one_hot(batch.labels, 10) * (torch.arange(8) < 6)[:, None]
    _, allowed, index = others_of(batch, data, class_labels=classes)
    for row in range(6):
        its = (index % 10 == batch.labels[row]) & allowed[row]
        assert torch.equal(allowed[row], its)
        assert its.sum() == COUNT / 10 - 1
    assert allowed[6:].sum(1).tolist() == [COUNT - 1] * 2  # whose class is hidden from it


def test_no_others_for_images_that_were_augmented() -> None:
    data = Few(batch_size=8)
    batch = batch_of(data, 0, 0, 8)
    labels = torch.zeros(8, 9)
    labels[2, 4], labels[5, 0] = -0.3, 1
    _, allowed, _ = others_of(batch, data, augment_labels=labels)
    assert allowed.sum(1).tolist() == [59, 59, 0, 59, 59, 0, 59, 59]


def test_mirrored_images_are_others_too() -> None:
    data = Few(batch_size=8, xflip=True)
    batch = batch_of(data, 0, 0, 8)
    others, allowed, _ = others_of(batch, data)
    assert len(others) == 2 * COUNT
    assert allowed.sum(1).tolist() == [2 * COUNT - 1] * 8
    flipped = dct(dequantise(batch.images, torch.float64).flip(-1))
    found = same(flipped, others)
    assert found.any(1).all()
    assert (found & allowed).any(1).all()


def test_so_many_as_asked_and_others_for_every_step() -> None:
    data = Few(batch_size=8)
    batch, like = batch_of(data, 0, 0, 8), torch.zeros(1, 1, 8, 8)
    first, again, later = (
        reference_batch(data, 0, 5)(batch, BatchDraws(0, step, 8, torch.arange(8)), None, None, like)[0]
        for step in (0, 0, 8)
    )
    assert len(first) == 5
    assert torch.equal(first, again)
    assert not torch.equal(first, later)


# ---------------------------------------------------------------------- in the training step


def stf(**overrides: object) -> tuple[DiffusionModule, ImageDataModule]:
    network = {"model.network.model_channels": 8, "model.network.channel_mult": [1, 1], "data.batch_size": 32}
    module, data = load_config([DIGITS, REPOSITORY / "configs" / "method" / "stf.yaml"], {**network, **overrides})
    for parameter in module.network.parameters():  # the last layer starts at 0
        torch.nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(0))
    assert module.model().target is not None
    module.model("raw").reference_batch = reference_batch(data, module.seed, module.model().target.references)
    return module, data


def losses(module: DiffusionModule, batch: Batch, rows: Tensor, training: bool = True) -> Tensor:
    part = Batch(*(entry[rows] for entry in batch))
    draws = BatchDraws(module.seed, 0, 32, rows)
    with torch.no_grad():
        return module.model("raw").loss(part, draws, training=training)[0]


@pytest.mark.parametrize("augment", [None, NonLeaky(p=0.5)])
def test_the_target_does_not_depend_on_the_number_of_devices(augment: NonLeaky | None) -> None:
    network = {"model.network.augment_dim": 9 if augment else 0, "model.target.init_args.references": 50}
    module, data = stf(**network)
    module.model("raw").augment = augment
    batch = batch_of(data, module.seed, 0, 32)
    whole = losses(module, batch, torch.arange(32))
    for rows in (torch.arange(16), torch.arange(16, 32), torch.tensor([7])):
        # float32, and products of matrices of other sizes
        torch.testing.assert_close(losses(module, batch, rows), whole[rows], rtol=1e-4, atol=1e-4)


def test_training_without_references_is_edms_and_with_them_it_is_not() -> None:
    module, data = stf()
    batch, everyone = batch_of(data, module.seed, 0, 32), torch.arange(32)
    stable, validation = losses(module, batch, everyone), losses(module, batch, everyone, training=False)
    module.model("raw").target = StableTarget(0)
    module.model("raw").reference_batch = reference_batch(data, module.seed, 0)
    alone = losses(module, batch, everyone)
    module.model("raw").target = None
    edm = losses(module, batch, everyone)
    assert torch.equal(alone, edm)
    assert torch.equal(validation, edm)  # without the target: its losses are those of any other EDM
    assert (stable - edm).abs().max() > 1e-2


def test_the_module_gets_its_references_when_training_starts() -> None:
    module, data = stf(**{"model.target.init_args.references": 7, "model.seed": 3})
    module.model("raw").reference_batch = None
    module._trainer = SimpleNamespace(datamodule=data)  # type: ignore[assignment]
    module.on_fit_start()
    references = module.model("raw").reference_batch
    assert references is not None
    assert (references.count, references.stream.seed) == (7, 3)


def test_impossible_references_are_refused() -> None:
    with pytest.raises(UserError, match="references is -1"):
        StableTarget(-1)
