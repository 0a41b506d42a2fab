"""Networks of the files of EDM reference arrays, which hold configuration, weights, inputs and outputs."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from warm_lightning import parameterizations
from warm_lightning.interop.edm import FAMILIES, load_edm_state
from warm_lightning.networks.unet import UNet
from warm_lightning.preconditioning import EDMPreconditioning
from warm_lightning.processes import Hot
from warm_lightning.types import Level


def network_from_arrays(path: str | Path) -> UNet:
    """Load the one-branch network of a file of reference arrays, in evaluation mode.

    Args:
        path: an `.npz` file with a JSON `config` and every tensor as `state/<EDM's name>`.
    """
    return _read_arrays(Path(path))[0]


Denoiser = Callable[..., Tensor]
"""A function (x, sigma, class_labels=None, augment_labels=None) → denoised; see `denoiser_from_arrays`."""


def denoiser_from_arrays(path: str | Path) -> Denoiser:
    """Load the denoiser of a file of reference arrays; see `network_from_arrays` for its layout.

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
        level = Level(alpha=torch.zeros_like(sigma), beta=sigma, clock=sigma)
        c = precondition(level, Hot().gains(level, x), parameterizations.Denoiser())
        raw = network(
            (c.input * x).to(dtype),
            c.noise.to(dtype),
            class_labels=class_labels,
            augment_labels=augment_labels,
        )
        return c.skip[:, 0] * x + c.out[:, 0] * raw[:, 0].to(x.dtype)

    return denoise


def _read_arrays(path: Path) -> tuple[UNet, dict[str, Any]]:
    """Read the network and the config of a file of reference arrays."""
    with np.load(path, allow_pickle=False) as arrays:
        config = json.loads(str(arrays["config"]))
        state = {n.removeprefix("state/"): torch.from_numpy(arrays[n]) for n in arrays.files if n.startswith("state/")}
    network = _build_network(config)
    load_edm_state(network, state)
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
