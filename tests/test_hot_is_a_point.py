"""EDM's networks in our model: the same samples, and hot as a point of the warm family."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from edm_arrays import network_from_arrays

from warm_lightning.interop.edm import load_edm_state
from warm_lightning.model import DiffusionModel
from warm_lightning.networks.base import Network
from warm_lightning.parameterizations import DenoiseDeblur, Denoiser
from warm_lightning.preconditioning import EDMPreconditioning
from warm_lightning.processes import ConstantBNR, Hot, Warm
from warm_lightning.samplers import PowerGrid, Sampler
from warm_lightning.types import Level

FILES = ["edm_ddpmpp_uncond", "edm_ddpmpp_cond", "edm_ncsnpp_uncond", "edm_ddpmpp_heads"]


def hot_model(network: Network, sigma_data: float = 0.5) -> DiffusionModel:
    return DiffusionModel(lambda _: network.eval(), Hot(), Denoiser(), EDMPreconditioning(sigma_data))


@pytest.mark.parametrize("name", FILES)
def test_samples_of_edm_in_18_steps(reference_dir: Path, name: str) -> None:
    path = reference_dir / f"{name}.npz"
    arrays = np.load(path)
    model = hot_model(network_from_arrays(path), json.loads(str(arrays["config"]))["sigma_data"])
    samples = model.sample(Sampler(PowerGrid(18)), arrays["seeds"].tolist())
    # Classes are drawn from the same streams, next after the noise. Samples reach ±100: 1e-4 is float32's share.
    torch.testing.assert_close(samples, torch.from_numpy(arrays["samples_18_steps"]), rtol=0, atol=1e-4)
    classes = arrays["drawn_classes"].tolist() if "drawn_classes" in arrays else None
    again = model.sample(Sampler(PowerGrid(18)), arrays["seeds"].tolist()[:1], classes and classes[:1])
    torch.testing.assert_close(again, samples[:1], rtol=0, atol=1e-4)


def with_residual_branch(path: Path) -> Network:
    """The file's network as the denoising branch of two, the other one saying something at random."""
    arrays = np.load(path)
    one, config = network_from_arrays(path), json.loads(str(arrays["config"]))
    two = type(one)(
        2,
        resolution=one.resolution,
        augment_dim=one.augment_dim,
        model_channels=config["model_channels"],
        channel_mult=config["channel_mult"],
        num_blocks=config["num_blocks"],
        attn_resolutions=config["attn_resolutions"],
    )
    state = {k.removeprefix("state/"): torch.from_numpy(arrays[k]) for k in arrays.files if k.startswith("state/")}
    load_edm_state(two, state, branch=0)
    output = two.dec[f"{one.resolution}x{one.resolution}_aux_conv"].weight
    torch.nn.init.normal_(output.data[one.image_channels :], std=0.1, generator=torch.Generator().manual_seed(0))
    return two


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("name", ["edm_ddpmpp_uncond", "edm_ncsnpp_uncond"])
def test_warm_at_bnr_0_is_hot(reference_dir: Path, name: str, dtype: torch.dtype, tolerance: float) -> None:
    path = reference_dir / f"{name}.npz"
    hot = hot_model(network_from_arrays(path).to(dtype))
    warm = DiffusionModel(
        lambda _: with_residual_branch(path).to(dtype).eval(),
        Warm(ConstantBNR(0)),
        DenoiseDeblur(),
        EDMPreconditioning(),
    )
    x, sigma = (torch.from_numpy(np.load(path)[k]).to(dtype) for k in ("x", "sigma"))
    with torch.no_grad():
        outputs = [model.outputs(x, Level(0 * sigma, sigma, sigma)) for model in (hot, warm)]
    assert outputs[1][:, 1].std() > 1e-3  # there is a residual to ignore
    # Relative to the largest value: denoised reaches 1.9, samples 100.
    torch.testing.assert_close(outputs[1][:, 0], outputs[0][:, 0], rtol=0, atol=tolerance)
    samples = [model.sample(Sampler(PowerGrid(18)), [0, 1]) for model in (hot, warm)]
    torch.testing.assert_close(samples[1], samples[0], rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["edm_ddpmpp_uncond", "edm_ncsnpp_uncond"])
def test_trained_with_blur_the_network_is_told(reference_dir: Path, name: str) -> None:
    # The same weights at BNR 0.5 answer differently: the second conditioning signal arrives.
    model = DiffusionModel(
        lambda _: with_residual_branch(reference_dir / f"{name}.npz").eval(),
        Warm(),
        DenoiseDeblur(),
        EDMPreconditioning(),
    )
    x, beta = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 2.0])
    with torch.no_grad():
        difference = model.outputs(x, Level(0.5 * beta, beta, beta)) - model.outputs(x, Level(0 * beta, beta, beta))
    assert difference.abs().max() > 1e-4
