"""Tests of the code for GPUs on a fake device without data, where mixing it with the CPU fails as on a GPU.

Not covered:

* backward passes, and so the divergence in `likelihood`: autograd needs a CUDA context for a CUDA device;
* CUDA's random numbers: `BatchDraws` gets a generator of the CPU, which draws nothing here;
* numbers: whatever is read from the device is made up, so that of two branches only one runs (`FakeDevice`);
* Inception and TorchScript extractors, whose weights are files, and torch.compile;
* Lightning's part: moving a module and its batches, mixed precision, several devices;
* power spectra of data, `oracle_error` and the fidelity of restored images, which are computed on the CPU alone.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import _lru_cache_wrapper, cache, partial
from typing import Any, TypeVar

import pytest
import torch
import yaml
from fake_device import FakeDevice
from small import DIGITS, REPOSITORY
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from warm_lightning.analysis import drift, likelihood
from warm_lightning.config import build_model
from warm_lightning.data.image_set import ImageSet
from warm_lightning.ema import EMA
from warm_lightning.errors import UserError
from warm_lightning.learning import Learner
from warm_lightning.metrics import DigitsFeatures, Evaluation, Extraction, Pixels, measure_reference
from warm_lightning.metrics.classifiers import ClassifierFeatures
from warm_lightning.metrics.distances import Normal
from warm_lightning.metrics.features import FeatureExtractor, ImportedFeatures
from warm_lightning.metrics.paired import paired_frechet
from warm_lightning.model import DiffusionModel
from warm_lightning.networks import DDPM, DDPMpp, NCSNpp, Network
from warm_lightning.oracles import DatasetOracle, GaussianOracle
from warm_lightning.processes import (
    BlurPath,
    BlurRate,
    ColdDiffusion,
    FlowMatching,
    Process,
    ProgressiveDeblurring,
    Schedule,
    VariancePreserving,
    Warm,
)
from warm_lightning.restoration import Start, find_start, observe, restore
from warm_lightning.rng import BatchDraws, SeedStreams
from warm_lightning.samplers import AdaptiveHeat, Churn, Euler, EvenGrid, Grid, PowerGrid, Sampler, StepRule
from warm_lightning.samplers.sampler import EstimateTransform
from warm_lightning.spectral import second_moment
from warm_lightning.targets import ReferenceBatch
from warm_lightning.types import Batch, Estimate

DEVICE = FakeDevice()
BATCH, CLASSES, SHAPE = 3, 10, (1, 8, 8)
OVERLAYS = {path.stem: path for path in sorted((REPOSITORY / "configs" / "method").glob("*.yaml"))}
SETTINGS = {
    "label_dropout": 0.1,
    "guidance": 2.0,
    "augment": {"class_path": "NonLeaky", "init_args": {"p": 0.5}},
    "target": {"class_path": "StableTarget", "init_args": {"references": 5}},
}
SIZES = {
    "resolution": 8,
    "image_channels": 1,
    "label_dim": CLASSES,
    "model_channels": 8,
    "channel_mult": [1],
    "num_blocks": 1,
    "attn_resolutions": [8],
}
DATA = ImageSet(
    torch.randint(0, 256, (12, *SHAPE), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
    torch.arange(12) % CLASSES,
    tuple("0123456789"),
)
Kind = TypeVar("Kind")


def concrete(kind: type[Kind]) -> list[type[Kind]]:
    """The package's classes below another one that can be made, by walking its subclasses."""
    found = dict.fromkeys(each for child in kind.__subclasses__() for each in (child, *concrete(child)))
    own = [each for each in found if each.__module__.startswith("warm_lightning.") and not inspect.isabstract(each)]
    return [each for each in own if not hasattr(each, "_lazy_init")]  # as the classes of default values have


@pytest.fixture(scope="module", autouse=True)
def _no_cached_tensors() -> Iterator[None]:
    """The package's caches are empty before these tests, and hold no tensors of the device after them."""

    def clear() -> None:
        modules = [module for name, module in sys.modules.items() if name.startswith("warm_lightning.")]
        for found in (each for module in modules for each in vars(module).values()):
            if isinstance(found, _lru_cache_wrapper):
                found.cache_clear()

    clear()
    yield
    clear()


@pytest.fixture(autouse=True)
def _device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device for each test. No generator can be made there, and to choose cuDNN's algorithms takes a real one."""
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda device="cpu": generator())
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    with torch.no_grad(), DEVICE:
        yield


def kind_name(part: object) -> str:
    return type(part).__name__


def there(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.zeros(shape, dtype=dtype, device="cuda")


def is_there(*tensors: Tensor) -> bool:
    return all(isinstance(tensor, FakeTensor) and tensor.device.type == "cuda" for tensor in tensors)


@cache
def on_device(branches: int) -> Network:
    return DDPMpp(branches, **SIZES).to("cuda")


Part = TypeVar("Part", bound=Learner)


@cache
def model_of(overlay: str) -> DiffusionModel:
    """A small model of an overlay, with everything that training can have, on the device."""
    recipe, method = (yaml.safe_load(path.read_text())["model"] for path in (DIGITS, OVERLAYS[overlay]))
    network = {"class_path": "DDPMpp", "init_args": SIZES}
    model, _ = build_model({**recipe, **method, **SETTINGS, "network": network})
    learned(model.preconditioning)
    model = model.replaced(process=learned(model.process), network=on_device(model.network.branches))
    if model.guide:
        model.guide.follow(model.network, 0, 1, 1)
    return model


def learned(part: Part) -> Part:
    """A part of a model that has learned from images on the CPU."""
    for learner in part.learners:
        learner.learned = learner.learn([DATA.as_tensor() / 127.5 - 1])
    return part


def every_process() -> list[Process]:
    """One object of each class, path, schedule and rate."""
    kinds = [kind(components=2) if kind is ColdDiffusion else kind() for kind in concrete(Process)]
    kinds += [Warm(path()) for path in concrete(BlurPath)]
    kinds += [VariancePreserving(schedule()) for schedule in concrete(Schedule)]
    return [*kinds, *(ProgressiveDeblurring(rate=rate()) for rate in concrete(BlurRate))]


def grid_of(process: Process) -> Grid:
    finite = process.max_clock < float("inf")
    return EvenGrid(2, process.max_clock, whole=False) if finite else PowerGrid(2)


def batch() -> Batch:
    return Batch(there(BATCH, *SHAPE, dtype=torch.uint8), *(there(BATCH, dtype=torch.int64) for _ in range(2)))


def batch_draws() -> BatchDraws:
    return BatchDraws(0, 0, 2 * BATCH, torch.arange(BATCH, device="cuda"))


def streams() -> SeedStreams:
    return SeedStreams(range(BATCH), "cuda")


# ---- the device itself


def test_what_fails_on_a_gpu_fails() -> None:
    here, far = torch.ones(3, 4), torch.ones(3, 4, device="cuda")
    mixed = "on the same device|two different devices"
    for mix in (
        lambda: here + far,
        lambda: torch.where(here > 0, far, 0.0),
        lambda: torch.cat([here, far]),
        lambda: here[far.long()],
        lambda: nn.Linear(4, 2)(far),
        lambda: nn.Linear(4, 2).to("cuda")(here),
        lambda: here.index_select(0, far[0].long()),
        lambda: far.add_(here),
    ):
        with pytest.raises(RuntimeError, match=mixed):
            mix()


def test_what_works_on_a_gpu_works() -> None:
    here, far = torch.ones(3, 4), torch.ones(3, 4, device="cuda")
    assert is_there(far + here.sum(), here.to(far) + far, far[torch.tensor([0, 2])], far[far[:, 0] > 0])
    assert (here + far.cpu()).tolist() == [[1.5] * 4] * 3
    before = DEVICE.reads
    assert far.sum().item() == 9
    assert bool((far > 0).all())
    assert DEVICE.reads == before + 2


# ---- models


@pytest.mark.parametrize("kind", [DDPMpp, NCSNpp, DDPM])
def test_network(kind: type[Network]) -> None:
    """In training and out of it, with labels and without."""
    network = kind(2, **SIZES | {"channel_mult": (1, 2)}).to("cuda")
    x, c, classes, augmentation = (there(BATCH, *n, dtype=torch.float32) for n in (SHAPE, (), (CLASSES,), (9,)))
    assert is_there(network(x, c, c, classes, augmentation), network.eval()(x, c))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_loss_and_estimate(overlay: str) -> None:
    """Also of processes without noise, which in truth have no targets of other images."""
    model, u = model_of(overlay), there(BATCH, *SHAPE)
    first = model.process.level(model.sampler.grid.clocks()[:1])
    model.reference_batch = ReferenceBatch(DATA, xflip=True, seed=0, count=5)
    losses, clock = model.loss(batch(), batch_draws())
    assert is_there(losses, clock)
    assert losses.shape == (BATCH, len(model.parameterization.names))
    estimate = model.estimate(u, first)
    assert is_there(estimate.clean, estimate.noise)


def test_a_step_of_training_does_not_wait_for_the_device() -> None:
    model, before = model_of("warm").replaced(target=None), DEVICE.reads
    model.loss(batch(), batch_draws())
    assert DEVICE.reads == before


def test_validation() -> None:
    assert is_there(*model_of("warm").loss(batch(), streams(), training=False))


@pytest.mark.parametrize("classes", [None, range(BATCH)])
def test_sampling(classes: range | None) -> None:
    """With guidance, of classes that are drawn or given."""
    model, seen = model_of("warm"), []
    sampler = Sampler(PowerGrid(2))
    samples = model.sample(sampler, range(BATCH), classes, watch=lambda u, level: seen.append(u))
    assert samples.shape == (BATCH, *SHAPE)
    assert is_there(*seen)


def test_average() -> None:
    EMA(10.0).update(average := on_device(1), on_device(1), 20, 4)
    assert is_there(*average.parameters())


# ---- processes, oracles, rules


def made(kind: type[Kind]) -> list[Kind]:
    """Objects of a class: by its defaults, and with each argument at 1 and 3 where it may be."""
    found = [kind()]
    for name, value in ((name, value) for name in inspect.signature(kind).parameters for value in (1, 3)):
        with suppress(UserError):
            found.append(kind(**{name: value}))
    return found


@pytest.mark.parametrize("process", every_process(), ids=kind_name)
def test_process(process: Process) -> None:
    """Its prior and noise, its levels and gains in sampling and in training, and its oracles."""
    process, u, z = learned(process), there(BATCH, *SHAPE), there(BATCH, *SHAPE)
    sampled = process.level(grid_of(process).clocks()[:1])
    assert is_there(process.prior(z, sampled, streams()))
    trained = process.draw_level(there(BATCH), batch_draws())
    assert is_there(trained.alpha, trained.beta, process.scale(trained))
    assert is_there(process.noise(z, batch_draws()))
    for level in (sampled, trained):
        gains = process.gains(level, u)
        assert is_there(gains.signal, gains.noise, process.degrade(Estimate(u, z), gains))
    gaussian = GaussianOracle(there(*SHAPE), process)
    for estimate in (DatasetOracle(there(5, *SHAPE), process)(u, sampled), gaussian(u, trained)):
        assert is_there(estimate.clean, estimate.noise)
    assert is_there(gaussian.exact_flow(u, sampled, trained))


@pytest.mark.parametrize("rule", [rule for kind in concrete(StepRule) for rule in made(kind)], ids=kind_name)
def test_rule(rule: StepRule) -> None:
    """From the first step, without a history, to the last."""
    heat = isinstance(rule, AdaptiveHeat)  # which is for flows alone
    process, grid = (FlowMatching(), EvenGrid(4, 1.0, whole=False)) if heat else (Warm(), PowerGrid(4))
    estimator = GaussianOracle(there(*SHAPE), process)
    assert is_there(Sampler(grid, rule)(estimator, process, there(BATCH, *SHAPE), streams()))


@pytest.mark.parametrize("process", [Warm(), ProgressiveDeblurring()], ids=kind_name)
def test_churn(process: Process) -> None:
    sampler = Sampler(grid_of(process), churn=Churn(beta_max=1e9))
    assert is_there(sampler(GaussianOracle(there(*SHAPE), process), process, there(BATCH, *SHAPE), streams()))


@pytest.mark.parametrize("transform", [made(kind)[0] for kind in concrete(EstimateTransform)], ids=kind_name)
def test_estimate_transform(transform: EstimateTransform) -> None:
    u, process = there(BATCH, *SHAPE), Warm()
    estimate = transform(GaussianOracle(there(*SHAPE), process), process)(u, grid_of(process).levels(process)[0])
    assert is_there(estimate.clean, estimate.noise)


# ---- restoration


@pytest.mark.parametrize("process", every_process(), ids=kind_name)
def test_restoration(process: Process) -> None:
    """With and without added noise, by a step and by the mean."""
    y = there(BATCH, *SHAPE)
    oracle, sampler = GaussianOracle(there(*SHAPE), process), Sampler(grid_of(process), Euler(1.0))
    for fill, mean in ((False, True), (True, False)):
        start = Start(process, process.level(sampler.grid.clocks()[-2:-1]), 0.0, fill)
        assert is_there(observe(y, 0.5, 0.1, streams()), restore(oracle, sampler, start, y, streams(), mean))


def test_restoration_by_a_model() -> None:
    model, y = model_of("warm"), torch.zeros(BATCH, *SHAPE)
    start = find_start(model.process, model.sampler.grid, y, 0.2, 0.4)
    assert model.restore(model.sampler, start, y, range(BATCH), range(BATCH), mean=True).shape == y.shape


# ---- scores


class Scaled(nn.Flatten):
    """Pixels times a weight, which is where the extractor is."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * self.weight


EXTRACTORS = [(Pixels(), None), (DigitsFeatures(), DATA), (ImportedFeatures(f"{__name__}:Scaled", "scaled"), None)]


@pytest.mark.parametrize(("extractor", "held_out"), EXTRACTORS, ids=kind_name)
def test_scores(extractor: FeatureExtractor, held_out: ImageSet | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All scores that the features allow, against a reference with all companions."""
    monkeypatch.setattr(
        ClassifierFeatures, "load_classifier", lambda self: self._build(torch.float32).to_empty(device="cpu")
    )
    monkeypatch.setattr("warm_lightning.metrics.distances.SUBSETS", 2)
    monkeypatch.setattr("warm_lightning.metrics.reference.available_memory", lambda device: None)  # asks the driver
    extraction = Extraction(extractor, 5, "cuda")
    assert is_there(extraction(DATA.as_tensor())[0])
    reference = measure_reference(extraction, DATA, held_out)
    assert is_there(reference.normal.mean, reference.features)
    evaluation = Evaluation(extraction, reference, SHAPE)
    evaluation.update(DATA.as_tensor())
    count, values = evaluation.compute()
    assert set(evaluation.names(count)) <= values.keys()


def test_paired_difference() -> None:
    features = there(12, 6)
    paired_frechet(features, features, Normal(there(6), there(6, 6)), blocks=3)


# ---- analysis


def test_drift() -> None:
    model, sampler, u0 = model_of("warm"), Sampler(PowerGrid(2)), there(BATCH, *SHAPE)
    bands = drift.Bands(2, u0)
    measurement = drift.DriftMeasurement(model.process, bands, u0[:1])
    levels = measurement.levels(sampler)
    with model.conditioned(range(BATCH)) as estimator:
        states = measurement.of_trajectories(partial(model.sample, sampler, range(BATCH), None), estimator)
        truth = measurement.of_degraded(estimator, levels, u0, streams())
    expected = measurement.expected_power(levels, second_moment([torch.zeros(BATCH, *SHAPE)]))
    assert drift.compare(states, truth, expected, levels, bands)


def test_likelihood(monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the divergence, whose backward pass needs a real device; the random vectors for it are made."""

    def without_backward(function: Any, u: Tensor, probes: likelihood.Probes) -> tuple[Tensor, Tensor]:
        value = function(u)
        return value, sum((value * vector).sum((1, 2, 3)) for vector in probes(u))

    monkeypatch.setattr(likelihood, "with_divergence", without_backward)
    process, like = Warm(), there(1, *SHAPE)
    oracle, levels = GaussianOracle(like[0], process), likelihood.rising_levels(process, PowerGrid(3), 1)
    process.check_noise(levels, like)
    pixels = there(BATCH, *SHAPE, dtype=torch.uint8)
    for probes in (0, 2):
        assert is_there(likelihood.bits_of_images(oracle, process, pixels, levels, streams(), probes))
    likelihood.excess_at_most(process.gains(levels[0], like))
    likelihood.prior_gap(like[0], process, levels[-1])
