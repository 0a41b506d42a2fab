"""Weights under EDM's names (Karras et al. 2022): loading into the networks here, and as reference denoisers."""

import json
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warm_lightning.errors import UserError, check
from warm_lightning.networks import DDPMpp, NCSNpp
from warm_lightning.networks.unet import UNet
from warm_lightning.preconditioning import EDMPreconditioning
from warm_lightning.types import Level

PREFIX = "model."
"""The prefix of all names in EDM, where the raw network is the submodule `model` of the preconditioned one."""

FAMILIES: Mapping[str, type[UNet]] = {"ddpmpp": DDPMpp, "ncsnpp": NCSNpp}


def load_edm_state(network: UNet, state: Mapping[str, Tensor], branch: int = 0) -> None:
    """Copy the tensors of a one-branch EDM network into `network`, by name.

    In a network with several branches the output convolution is copied to one branch. The output convolutions of the
    other branches are set to zero, so that their raw output is exactly 0.

    Args:
        network: a network of this architecture with any number of branches; it is changed in place.
        state: every parameter and buffer under EDM's name (with prefix `model.`), and nothing else.
        branch: the branch that gets the denoiser.

    Raises:
        UserError: a tensor is missing, superfluous, or of another shape, or a resampling filter is not that of the
            network.
    """
    check(0 <= branch < network.branches, f"the network has no branch {branch}, only {network.branches}")
    tensors = network.state_dict()
    names = {PREFIX + name: name for name in tensors}
    missing, unknown = sorted(names.keys() - state.keys()), sorted(state.keys() - names.keys())
    check(not missing, f"EDM state lacks {len(missing)} tensors of the network, first {missing[:1]}")
    check(not unknown, f"EDM state has {len(unknown)} tensors that the network lacks, first {unknown[:1]}")
    output = f"dec.{network.resolution}x{network.resolution}_aux_conv."
    targets = {
        edm_name: _view_of_branch(tensors[name], network, branch) if name.startswith(output) else tensors[name]
        for edm_name, name in names.items()
    }
    for name, target in targets.items():  # check all tensors before the first change
        source = state[name]
        check(
            target.shape == source.shape,
            f"EDM state has {name} of shape {tuple(source.shape)}, the network {tuple(target.shape)}",
        )
        check(
            not name.endswith("resample_filter") or torch.equal(target, source.to(target)),
            f"EDM state has a filter {name} that {type(network).__name__} does not use",
        )
    for name, tensor in tensors.items():
        if name.startswith(output):
            tensor.zero_()
    for name, target in targets.items():
        target.copy_(state[name])


def _view_of_branch(output: Tensor, network: UNet, branch: int) -> Tensor:
    """The part of the output convolution's weight or bias for a branch, as a view."""
    return output.unflatten(0, (network.branches, network.image_channels))[branch]


def network_from_arrays(path: str | Path) -> UNet:
    """Load the one-branch network of a file of reference arrays, in evaluation mode.

    Args:
        path: an `.npz` file with a JSON `config` and every tensor as `state/<EDM's name>`.

    Raises:
        UserError: the file cannot be read, or its tensors do not fit its config.
    """
    return _read_arrays(Path(path))[0]


Denoiser = Callable[..., Tensor]
"""A function (x, sigma, class_labels=None, augment_labels=None) → denoised; see `denoiser_from_arrays`."""


def denoiser_from_arrays(path: str | Path) -> Denoiser:
    """Load the denoiser of a file of reference arrays; see `network_from_arrays` for its layout and errors.

    Returns:
        A function (x, sigma, class_labels=None, augment_labels=None) → D(x; sigma), where x is [B, C, H, W];
        sigma > 0 is [B] or one number for all images; class_labels are one-hot, [B, label_dim]; augment_labels are
        [B, augment_dim]. The result has the dtype of x; the network runs in float32.
    """
    network, config = _read_arrays(Path(path))
    precondition = EDMPreconditioning(config["sigma_data"])
    dtype = torch.float32

    def denoise(
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        sigma = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(x.shape[0])
        c = precondition(Level(alpha=torch.zeros_like(sigma), beta=sigma, clock=sigma))
        raw = network(
            (c.input * x).to(dtype),
            c.noise.to(dtype),
            class_labels=class_labels,
            augment_labels=augment_labels,
        )
        return c.skip * x + c.out * raw[:, 0].to(x.dtype)

    return denoise


def _read_arrays(path: Path) -> tuple[UNet, dict[str, Any]]:
    """Read the network and the config of a file of reference arrays."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            config = json.loads(str(arrays["config"]))
            state = {
                name.removeprefix("state/"): torch.from_numpy(arrays[name])
                for name in arrays.files
                if name.startswith("state/")
            }
        network = _build_network(config)
        load_edm_state(network, state)
    except (
        UserError,
        OSError,
        EOFError,
        ValueError,
        TypeError,
        KeyError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"{path} is not a file of EDM reference arrays: {error}") from error
    return network.eval().requires_grad_(False), config


def _build_network(config: Mapping[str, Any]) -> UNet:
    return FAMILIES[config["network"]](
        branches=1,
        resolution=config["img_resolution"],
        label_dim=config["label_dim"],
        augment_dim=config["augment_dim"],
        model_channels=config["model_channels"],
        channel_mult=tuple(config["channel_mult"]),
        num_blocks=config["num_blocks"],
        attn_resolutions=tuple(config["attn_resolutions"]),
        channels_per_head=config.get("channels_per_head"),
    )
