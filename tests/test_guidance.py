"""Classifier-free guidance, and what the module tells its network."""

from dataclasses import replace

import pytest
import torch
from test_module import a_batch, small_network

from warm_lightning.augment import Augmentation
from warm_lightning.errors import UserError
from warm_lightning.images import dequantise
from warm_lightning.model import one_hot
from warm_lightning.module import DiffusionModule
from warm_lightning.networks import DDPMpp
from warm_lightning.rng import BatchDraws, Draws
from warm_lightning.spectral import dct


def module_of_classes(guidance: float = 1.0) -> DiffusionModule:
    module = DiffusionModule(
        lambda branches: small_network(branches, label_dim=3), label_dropout=0.1, guidance=guidance
    )
    for weight in module.ema_network.parameters():  # fresh networks hardly hear what they are told
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(0))
    return module


def test_guidance_extrapolates_from_no_class_to_the_class() -> None:
    model = module_of_classes().model()
    u = dct(torch.randn(2, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    level, labels = model.process.level(torch.tensor([0.5, 2.0])), one_hot(torch.tensor([0, 2]), 3)
    free, told = model.estimate(u, level), model.estimate(u, level, labels)
    for weight in (0.0, 1.0, 2.5):
        guided = replace(model, guidance=weight).estimate(u, level, labels)
        # Estimates are affine in the outputs, so what holds for outputs holds for them. The network is float32.
        torch.testing.assert_close(guided.clean, free.clean + weight * (told.clean - free.clean), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(guided.noise, free.noise + weight * (told.noise - free.noise), rtol=1e-4, atol=1e-4)


def test_samples_are_guided() -> None:
    plain, guided = module_of_classes(), module_of_classes(guidance=30.0)
    a, b = (m.model().sample(m.sampler, [1, 2], [0, 1]) for m in (plain, guided))
    assert (a - b).abs().max() > 1e-3
    assert (plain.model().nfe(plain.sampler), guided.model().nfe(guided.sampler)) == (35, 70)


@pytest.mark.parametrize(("label_dim", "label_dropout"), [(0, 0.1), (3, 0.0)])
def test_guidance_needs_a_network_that_knows_both(label_dim: int, label_dropout: float) -> None:
    with pytest.raises(UserError, match="label_dropout"):
        DiffusionModule(lambda b: small_network(b, label_dim=label_dim), label_dropout=label_dropout, guidance=2.0)


class Shift(Augmentation):
    """Rolls each image by one pixel, and says so."""

    dim = 2

    def __call__(self, images: torch.Tensor, draws: Draws) -> tuple[torch.Tensor, torch.Tensor]:
        return images.roll(1, dims=-1), images.new_tensor([1.0, 0.0]).expand(len(images), 2)


def told_network(branches: int, augment_dim: int = 2) -> DDPMpp:
    return DDPMpp(branches, resolution=8, image_channels=1, augment_dim=augment_dim, model_channels=8,
                  channel_mult=(1,), num_blocks=1, attn_resolutions=(), dropout=0.0)  # fmt: skip


def test_augmented_images_are_trained_on_and_the_network_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = DiffusionModule(told_network, augment=Shift()), a_batch()
    seen: list[tuple[torch.Tensor, torch.Tensor | None]] = []
    targets, outputs = type(module.parameterization).targets, type(module.model()).outputs

    def note_targets(self, u0, gains):
        seen.append((u0, None))
        return targets(self, u0, gains)

    def note_outputs(self, x, level, class_labels=None, augment_labels=None):
        seen.append((x, augment_labels))
        return outputs(self, x, level, class_labels, augment_labels)

    monkeypatch.setattr(type(module.parameterization), "targets", note_targets)
    monkeypatch.setattr(type(module.model()), "outputs", note_outputs)
    draws = BatchDraws(0, 0, 6, batch.positions)
    module.losses(module.model("raw"), batch, draws, augment=module.augment)
    torch.testing.assert_close(seen[0][0], dct(dequantise(batch.images).roll(1, -1)))
    assert torch.equal(seen[1][1], torch.tensor([[1.0, 0.0]]).expand(6, 2))


def test_an_augmentation_that_the_network_does_not_take_is_refused() -> None:
    with pytest.raises(UserError, match="augment_dim"):
        DiffusionModule(lambda branches: told_network(branches, 9), augment=Shift())


def test_channels_last_gives_the_same_losses_and_gradients() -> None:
    found = []
    for channels_last in (False, True):
        module, batch = DiffusionModule(small_network, channels_last=channels_last, seed=3), a_batch()
        loud = torch.randn(2, 8, 3, 3, generator=torch.Generator().manual_seed(0))
        module.network.dec["8x8_aux_conv"].weight.data.copy_(loud)  # or it would say next to nothing
        losses, _ = module.losses(module.model("raw"), batch, BatchDraws(3, 0, 6, batch.positions))
        losses.sum().backward()
        weight = module.network.enc["8x8_block0"].conv0.weight
        assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
        found.append([losses, *(p.grad for p in module.network.parameters())])
    for a, b in zip(*found, strict=True):
        # Another order of summation: rounding of float32 relative to each tensor's size.
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5 * a.abs().max().item() + 1e-12)
