"""Weights under EDM's names (Karras et al. 2022), loaded into the networks of this package."""

from collections.abc import Mapping

import torch
from torch import Tensor

from warm_lightning.errors import check
from warm_lightning.networks import DDPMpp, NCSNpp
from warm_lightning.networks.unet import UNet

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
