"""Weights under EDM's names, against arrays computed with EDM's own implementation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from edm_arrays import denoiser_from_arrays, network_from_arrays
from torch import Tensor

from warm_lightning.errors import UserError
from warm_lightning.interop.edm import load_edm_state
from warm_lightning.networks import DDPMpp, NCSNpp
from warm_lightning.parameterizations import Denoiser
from warm_lightning.preconditioning import EDMPreconditioning
from warm_lightning.processes import Hot
from warm_lightning.types import Level

FILES = ["edm_ddpmpp_uncond", "edm_ddpmpp_cond", "edm_ddpmpp_heads", "edm_ncsnpp_uncond"]


def arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if name != "config"}


def edm_state(path: Path) -> dict[str, Tensor]:
    return {n.removeprefix("state/"): t for n, t in arrays(path).items() if n.startswith("state/")}


@pytest.mark.parametrize("name", FILES)
def test_denoised(name, reference_dir):
    """To 1e-5, which is what two implementations of float32 agree to (reference/README.md)."""
    path = reference_dir / f"{name}.npz"
    truth, denoiser = arrays(path), denoiser_from_arrays(path)
    x, sigma, labels = truth["x"], truth["sigma"], truth.get("labels")
    close = {"rtol": 0, "atol": 1e-5}
    torch.testing.assert_close(denoiser(x, sigma, labels), truth["denoised"], **close)
    augmented = denoiser(x, sigma, class_labels=labels, augment_labels=truth["augment_labels"])
    torch.testing.assert_close(augmented, truth["denoised_augmented"], **close)
    assert (truth["denoised_augmented"] - truth["denoised"]).abs().max() > 1e-3  # so the labels are tested


@pytest.mark.parametrize("name", FILES)
def test_network_output(name, reference_dir):
    path = reference_dir / f"{name}.npz"
    truth, network = arrays(path), network_from_arrays(path)
    level = Level(torch.zeros(4), truth["sigma"], truth["sigma"])
    c = EDMPreconditioning()(level, Hot().gains(level, truth["x"]), Denoiser())
    out = network(c.input * truth["x"], c.noise, class_labels=truth.get("labels"))
    torch.testing.assert_close(out, truth["network_output"][:, None], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", FILES)
def test_latents_and_classes_follow_from_seeds(name, reference_dir):
    """The contract of sampling: one generator a seed, first the noise, then the class, bit for bit."""
    path = reference_dir / f"{name}.npz"
    truth, network = arrays(path), network_from_arrays(path)
    for i, seed in enumerate(truth["seeds"].tolist()):
        g = torch.Generator("cpu").manual_seed(seed % 2**32)
        shape = (network.image_channels, network.resolution, network.resolution)
        assert torch.equal(torch.randn(shape, generator=g), truth["latents"][i])
        if network.label_dim:
            drawn = torch.randint(network.label_dim, [], generator=g)
            assert drawn == truth["drawn_classes"][i]


def test_families(reference_dir):
    assert isinstance(network_from_arrays(reference_dir / "edm_ddpmpp_cond.npz"), DDPMpp)
    assert isinstance(network_from_arrays(reference_dir / "edm_ncsnpp_uncond.npz"), NCSNpp)


def test_denoiser_takes_one_level_for_all_and_keeps_the_dtype(reference_dir):
    path = reference_dir / "edm_ddpmpp_uncond.npz"
    truth, denoiser = arrays(path), denoiser_from_arrays(path)
    x = truth["x"]
    one = denoiser(x, 2.0)
    assert torch.equal(one, denoiser(x, torch.tensor(2.0)))
    assert torch.equal(one, denoiser(x, torch.full([4], 2.0)))
    # The network runs in float32 whatever the sampler's dtype, so 1e-5 as above.
    double = denoiser(x.double(), 2.0)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double, one.double(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("branch", [0, 1])
def test_state_into_one_of_two_branches(branch, reference_dir):
    """That branch is the hot network and the other one exactly zero, in float64 to rounding."""
    path = reference_dir / "edm_ddpmpp_cond.npz"
    truth, hot = arrays(path), network_from_arrays(path).double()
    warm = DDPMpp(2, resolution=16, label_dim=10, model_channels=16, channel_mult=(2, 2), num_blocks=1).double().eval()
    load_edm_state(warm, edm_state(path), branch)
    given = (truth["x"].double(), truth["sigma"].double().log() / 4)
    labels = {"class_labels": truth["labels"], "augment_labels": truth["augment_labels"]}
    out = warm(*given, c_blur=torch.zeros(4), **labels)
    torch.testing.assert_close(out[:, branch], hot(*given, **labels)[:, 0], rtol=0, atol=1e-12)
    assert not out[:, 1 - branch].any()


def broken(state: dict[str, Tensor], how: str) -> dict[str, Tensor]:
    name = "model.enc.8x8_down.conv0.resample_filter"
    match how:
        case "missing":
            return {n: t for n, t in state.items() if n != name}
        case "left over":
            return state | {"model.enc.8x8_down.extra": torch.zeros(1)}
        case "shape":
            return state | {"model.map_layer0.weight": torch.zeros(3, 3)}
        case "filter":
            return state | {name: state[name] * 2}
    raise AssertionError(how)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "lacks 1 .*8x8_down.conv0.resample_filter"),
        ("left over", "8x8_down.extra"),
        ("shape", "map_layer0.weight"),
        ("filter", "8x8_down.conv0.resample_filter"),
    ],
)
def test_loading_is_strict_and_leaves_the_network_alone(how, message, reference_dir):
    path = reference_dir / "edm_ddpmpp_cond.npz"
    network = network_from_arrays(path)
    before = {n: t.clone() for n, t in network.state_dict().items()}
    other = {n: t + 1 if t.dim() < 4 else t for n, t in edm_state(path).items()}
    with pytest.raises(UserError, match=message):
        load_edm_state(network, broken(other, how))
    assert all(torch.equal(t, before[n]) for n, t in network.state_dict().items())


def test_no_such_branch(reference_dir):
    path = reference_dir / "edm_ddpmpp_cond.npz"
    with pytest.raises(UserError, match="no branch 1"):
        load_edm_state(network_from_arrays(path), edm_state(path), branch=1)
