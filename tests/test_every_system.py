"""Every overlay of configs/method in miniature: it learns from digits, and its sampler gives images."""

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small import DIGITS, REPOSITORY, reference_batch

from experiments.experiment import Experiment, read
from experiments.identity import training_identity
from warm_lightning import load_config
from warm_lightning.data import ImageDataModule
from warm_lightning.data.image_set import dequantised_batches
from warm_lightning.data.stream import InOrder, TrainingStream
from warm_lightning.module import DiffusionModule
from warm_lightning.rng import BatchDraws, SeedStreams

COMPARE = read(REPOSITORY / "experiments" / "papers" / "compare.yaml", Experiment)
OVERLAYS = {path.stem: path for path in sorted((REPOSITORY / "configs" / "method").glob("*.yaml"))}
SAME_TRAINING = {"edm_es": "hot", "ddim": "ddpm", "guidance_interval": "autoguidance"} | dict.fromkeys(
    ("param_d", "param_e", "param_f", "multistep"), "warm"
)
"""Overlays that differ in sampling only, or not at all."""
BLANK = "param_a_no_skip"
"""The overlay whose samples lose all detail: at low noise x0 cannot be output without c_skip."""
BATCH, STEPS = 32, 80
SMALL = {
    "model.network.init_args.model_channels": 16,
    "model.network.init_args.channel_mult": [1, 2],
    "model.lr": 2e-3,
    "model.lr_ramp": 640,
}


def scaled(overlay: Path) -> dict[str, Any]:
    """The settings that an overlay's system needs for 8×8 images."""
    points = COMPARE.axes["system"].points.values()
    found = [p.set | p.for_data.get("8x8", {}) for p in points if p.overlays == [f"method/{overlay.stem}"]]
    return found[0] if found else {}


def held_loss(module: DiffusionModule, images: InOrder) -> float:
    """The loss of the weights in training on the same images, levels and noise every time."""
    module.network.eval()
    with torch.no_grad():
        losses, _ = module.model("raw").loss(images[range(512)], SeedStreams(range(512)), training=False)
    module.network.train()
    return losses.sum(1).mean().item()


@cache
def configured(name: str) -> tuple[DiffusionModule, ImageDataModule]:
    """The small model of an overlay, whose parts have learned from the digits, and the digits."""
    module, data = load_config([DIGITS, OVERLAYS[name]], SMALL | scaled(OVERLAYS[name]))
    module.model().learn(partial(dequantised_batches, data.train_images()))
    return module, data


@cache
def trained(name: str) -> tuple[dict[str, torch.Tensor], float]:
    """Weights of an overlay's network after a short training, and by how much the loss has fallen."""
    module, data = configured(name)
    images = data.train_images()
    if module.model().target:
        module.model("raw").reference_batch = reference_batch(data, module.seed, module.model().target.references)
    optimizer = module.configure_optimizers()
    stream, stored = TrainingStream(images, module.seed), InOrder(images)
    before = held_loss(module, stored)
    for step in range(STEPS):
        draws = BatchDraws(module.seed, step * BATCH, BATCH, torch.arange(BATCH))
        positions = range(step * BATCH, (step + 1) * BATCH)
        losses, _ = module.model("raw").loss(stream[positions], draws)
        optimizer.zero_grad()
        losses.sum(1).mean().backward()
        optimizer.step()
    return module.network.state_dict(), held_loss(module, stored) / before


@pytest.mark.parametrize("name", OVERLAYS)
def test_it_learns_and_samples(name: str) -> None:
    """Untrained, a network says 0 (its last layer is zero); it must learn to say better than that of images that
    are degraded by draws it has not seen, by a margin that chance does not give."""
    weights, fallen = trained(SAME_TRAINING.get(name, name))
    assert fallen < 0.85
    module, _ = configured(name)
    module.network.load_state_dict(weights)
    module.model().sampler.grid.steps = min(module.model().sampler.grid.steps, 50)
    samples = module.model("raw").sample(module.model().sampler, range(16))
    assert samples.shape == (16, 1, 8, 8)
    assert samples.isfinite().all()
    # Some undo so much blur that after so little training they are far too bright.
    assert (samples.std() < 0.1) == (name == BLANK)


def test_trainings_that_are_shared_are_the_same() -> None:
    for name, other in SAME_TRAINING.items():
        identities = [training_identity([f"--config={DIGITS}", f"--config={OVERLAYS[n]}"]) for n in (name, other)]
        assert identities[0]["model"] == identities[1]["model"]
    # Its checkpoint has the guide, which that of the same training without it has not.
    guided, warm = (
        training_identity([f"--config={DIGITS}", f"--config={OVERLAYS[n]}"]) for n in ("autoguidance", "warm")
    )
    assert guided["model"] != warm["model"]
