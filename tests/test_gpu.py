"""Tests on a GPU: run by `make gpu-check`, left out of `make test` by -m "not gpu".

WARM_TEST_DEVICE=cpu runs the same code on a CPU, where most of it holds trivially: so it cannot rot unseen.
"""

import os
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from small import DIGITS, reference_batch
from test_every_system import OVERLAYS, SMALL, scaled
from torch import Tensor

from warm_lightning import load_config
from warm_lightning.data import ImageSet
from warm_lightning.data.image_set import dequantised_batches
from warm_lightning.data.stream import TrainingStream
from warm_lightning.images import quantise
from warm_lightning.metrics import Evaluation, Extraction, Pixels, measure_reference
from warm_lightning.module import DiffusionModule
from warm_lightning.networks import DDPMpp
from warm_lightning.rng import BatchDraws, SeedStreams
from warm_lightning.samplers import Heun, PowerGrid, Sampler
from warm_lightning.spectral import dct, frequencies, idct, log_blur_mask
from warm_lightning.types import Batch, Level

DEVICE = os.environ.get("WARM_TEST_DEVICE", "cuda")
BATCH = 8
HALF = [torch.bfloat16, torch.float16]
EPS = {torch.bfloat16: 2**-8, torch.float16: 2**-11}

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def _exact_float32_and_determinism(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A device there must be; no TF32; and what a Trainer with deterministic=True sets is undone."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.fail("there is no CUDA device: leave these tests out by -m 'not gpu', or set WARM_TEST_DEVICE=cpu")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    yield
    torch.use_deterministic_algorithms(False)


def module_on(device: str, dtype: torch.dtype = torch.float32) -> DiffusionModule:
    """A model with fixed random weights; unlike in a fresh one, no layer of its network is nearly 0."""
    network = partial(
        DDPMpp,
        resolution=16,
        model_channels=32,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(8,),
        dropout=0.0,
    )
    module = DiffusionModule(network)
    generator = torch.Generator().manual_seed(0)
    for parameter in module.network.parameters():
        if parameter.dim() == 4:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
    module.ema_network.load_state_dict(module.network.state_dict())
    return module.to(device, dtype)


def batch_on(device: str) -> Batch:
    """The same one each time."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (BATCH, 3, 16, 16), dtype=torch.uint8, generator=generator)
    parts = images, torch.zeros(BATCH, dtype=torch.int64), torch.arange(BATCH)
    return Batch(*(part.to(device) for part in parts))


def distance(a: Tensor, b: Tensor) -> float:
    """‖a - b‖ / ‖b‖."""
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    return ((a - b).norm() / b.norm()).item()


def losses_and_gradient(module: DiffusionModule, mixed: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Losses [b, branches] and all gradients as one vector, of draws that are the same on every device."""
    device = module.device.type
    with torch.autocast(device, dtype=mixed, enabled=mixed is not None):
        losses, _ = module.model("raw").loss(batch_on(device), SeedStreams(range(BATCH), device), training=False)
    losses.sum(1).mean().backward()
    return losses, torch.cat([p.grad.flatten() for p in module.network.parameters() if p.grad is not None])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_dct_and_blur_agree_with_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    # TF32 in the products would give 1e-4.
    x, alpha = torch.randn(4, 3, 32, 32, dtype=dtype), torch.tensor([0.0, 1e-3, 1.0, 30.0], dtype=dtype)
    there = x.to(DEVICE)
    for here, gpu in [
        (dct(x), dct(there)),
        (idct(x), idct(there)),
        (frequencies(x), frequencies(there)),
        (log_blur_mask(alpha, x), log_blur_mask(alpha.to(DEVICE), there)),
    ]:
        assert gpu.device.type == DEVICE
        assert distance(gpu, here) < tolerance


@pytest.mark.parametrize("half", HALF)
def test_mixed_precision_leaves_the_blur_alone(half: torch.dtype) -> None:
    x = torch.randn(4, 3, 32, 32, device=DEVICE)
    with torch.autocast(DEVICE, dtype=half):
        inside = dct(x), idct(x)
    assert torch.equal(inside[0], dct(x))
    assert torch.equal(inside[1], idct(x))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_loss_and_gradient_agree_with_the_cpu(dtype: torch.dtype, tolerance: float) -> None:
    # Float32 rounding gives the gradient 1e-6; TF32, which rounds like fp16, would give it 2e-3 (see below).
    here, there = (losses_and_gradient(module_on(device, dtype)) for device in ("cpu", DEVICE))
    for a, b in zip(there, here, strict=True):
        assert a.dtype == dtype
        assert distance(a, b) < tolerance


@pytest.mark.parametrize("half", HALF)
def test_loss_and_gradient_in_mixed_precision(half: torch.dtype) -> None:
    full, mixed = (losses_and_gradient(module_on(DEVICE), precision) for precision in (None, half))
    # Measured on a CPU: 0.2 eps for the loss, 4 eps for the gradient. Anything of the truth (blur, target,
    # weight) in half precision would be divided by c_out, which is small for the images with little noise.
    for a, b, tolerance in zip(mixed, full, (2 * EPS[half], 20 * EPS[half]), strict=True):
        assert a.dtype == torch.float32
        assert a.isfinite().all()
        assert distance(a, b) < tolerance
    assert distance(mixed[0], full[0]) > 0  # the network did run in half precision


@pytest.mark.parametrize("half", [None, *HALF])
def test_compiled_network_agrees_with_eager(half: torch.dtype | None) -> None:
    eager, module = losses_and_gradient(module_on(DEVICE), half), module_on(DEVICE)
    module.network.compile()
    # Fused kernels keep float32 where eager rounds to half precision: as far apart as above.
    tolerances = (1e-4, 1e-4) if half is None else (2 * EPS[half], 20 * EPS[half])
    for a, b, tolerance in zip(losses_and_gradient(module, half), eager, tolerances, strict=True):
        assert distance(a, b) < tolerance


def test_training_draws_are_keyed_on_the_device() -> None:
    rows = torch.arange(BATCH, device=DEVICE)

    def draw(seed: int, images_seen: int, rows: Tensor) -> Tensor:
        draws = BatchDraws(seed, images_seen, BATCH, rows)
        return torch.cat([draws.normal(5), draws.uniform(5)], dim=1)

    torch.manual_seed(0)
    whole = draw(3, 64, rows)
    assert whole.device.type == DEVICE
    torch.manual_seed(1)  # no global state has a part in it
    assert torch.equal(draw(3, 64, rows), whole)
    assert torch.equal(draw(3, 64, rows[2:5]), whole[2:5])
    assert not torch.equal(draw(3, 128, rows), whole)
    assert not torch.equal(draw(4, 64, rows), whole)


def test_sampling_draws_have_the_same_bits_as_on_the_cpu() -> None:
    here, there = (SeedStreams([0, 7, 2**32 + 7], device) for device in ("cpu", DEVICE))
    for draw in (lambda s: s.normal(3, 4, 4), lambda s: s.integers(10), lambda s: s.uniform(2)):
        assert torch.equal(draw(there).cpu(), draw(here))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_float64_samples_are_the_cpus(eta: float) -> None:
    sampler = Sampler(PowerGrid(6), Heun(eta))
    here, there = (
        module_on(device, torch.float64).eval().model().sample(sampler, range(4)) for device in ("cpu", DEVICE)
    )
    # Eleven network calls of rounding, 1e-16 each, which the last step amplifies thirteenfold.
    torch.testing.assert_close(there, here, rtol=0, atol=1e-10)
    assert torch.equal(quantise(there), quantise(here))
    assert len(quantise(here).unique()) > 50  # of which the images do not say nothing


@pytest.mark.parametrize("half", HALF)
def test_samples_in_mixed_precision(half: torch.dtype) -> None:
    model, sampler = module_on(DEVICE).eval().model(), Sampler(PowerGrid(6))
    states: list[Tensor] = []

    def watch(u: Tensor, level: Level) -> None:
        states.append(u)

    with torch.autocast(DEVICE, dtype=half):
        images = model.sample(sampler, range(4), watch=watch)
    assert all(u.dtype == torch.float64 for u in states)
    # Measured on a CPU: 4 eps. A state in half precision would be rounded at its size, 80, where it starts.
    assert distance(images, model.sample(sampler, range(4))) < 20 * EPS[half]


def trainer(**settings: Any) -> Trainer:
    return Trainer(
        accelerator="gpu" if DEVICE == "cuda" else DEVICE,
        devices=1,
        max_epochs=-1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def digits(images: int) -> tuple[DiffusionModule, Any]:
    """A small model to be trained on so many images, 32 at a time."""
    changes = {
        "network.model_channels": 8,
        "network.channel_mult": [1, 2],
        "network.dropout": 0.1,
        "lr_ramp": 320,
    }
    overrides = {f"model.{name}": value for name, value in changes.items()}
    return load_config(DIGITS, overrides | {"model.duration": images, "data.batch_size": 32})


def test_training_and_resuming_give_the_same_bits(tmp_path: Path) -> None:
    states = []
    for parts in ([8], [8], [3, 8]):
        checkpoint = None
        for steps in parts:
            module, data = digits(32 * steps)
            run = trainer(deterministic=True, limit_val_batches=0)
            run.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            checkpoint = tmp_path / f"{steps}.ckpt"
            run.save_checkpoint(checkpoint)
        states.append({name: tensor.cpu() for name, tensor in module.state_dict().items()})
    for again in states[1:]:
        assert all(torch.equal(again[name], tensor) for name, tensor in states[0].items())


@cache
def loss_after(steps: int, precision: str) -> float:
    """Loss of the averaged weights on always the same images and noise."""
    module, data = digits(32 * steps)
    run = trainer(precision=precision, limit_val_batches=4)  # after the last step
    run.fit(module, datamodule=data)
    assert module.images_seen == 32 * steps
    assert all(p.isfinite().all() for p in module.parameters())
    return run.callback_metrics["val/loss"].item()


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_training_in_mixed_precision_learns_as_in_float32(precision: str) -> None:
    # Same images and noise: what differs is rounding, and that fp16 skips steps until its loss scale fits.
    before, after = loss_after(1, "32-true"), loss_after(60, "32-true")
    assert after < 0.8 * before
    assert before - loss_after(60, precision) > 0.7 * (before - after)


def test_scores_are_those_of_the_cpu() -> None:
    images = torch.randint(0, 256, (400, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    values = []
    for device in ("cpu", DEVICE):
        extraction = Extraction(Pixels(), 64, device)
        scores = Evaluation(
            extraction,
            measure_reference(extraction, *map(ImageSet.without_classes, (images[:300], images[300:350]))),
            (3, 8, 8),
        )
        scores.update(images[350:].to(device))
        count, found = scores.compute()
        values.append({**found, **scores.companions(count)})
    # A draw of the Gaussian may round to another grey level.
    assert values[1] == pytest.approx(values[0], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("overlay", OVERLAYS.values(), ids=lambda path: path.stem)
def test_every_system_trains_and_samples(overlay: Path) -> None:
    """Tables, priors, draws and reference images that stayed on the CPU would end this."""
    torch.use_deterministic_algorithms(True)
    module, data = load_config([DIGITS, overlay], SMALL | scaled(overlay))
    module.to(DEVICE)
    for part in module.model().learners:
        part.learned = part.learn(dequantised_batches(data.train_images(), ""))
    if module.model().target:
        module.model("raw").reference_batch = reference_batch(data, module.seed, module.model().target.references)
    positions = torch.arange(BATCH)
    batch = Batch(*TrainingStream(data.train_images(), 0)[range(BATCH)][:2], positions)
    batch = Batch(*(part.to(DEVICE) for part in batch))
    losses, _ = module.model("raw").loss(batch, BatchDraws(0, 0, BATCH, batch.positions))
    losses.sum().backward()
    assert all(p.grad.isfinite().all() for p in module.network.parameters() if p.grad is not None)
    module.model().sampler.grid.steps = min(module.model().sampler.grid.steps, 50)
    assert module.model("raw").sample(module.model().sampler, range(3)).isfinite().all()
