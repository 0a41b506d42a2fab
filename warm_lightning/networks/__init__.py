"""Networks, which map images and conditioning signals to raw output branches, independent of diffusion."""

from warm_lightning.networks.base import Network
from warm_lightning.networks.diffusers import DiffusersNetwork
from warm_lightning.networks.unet import DDPM, DDPMpp, NCSNpp

__all__ = ["DDPM", "DDPMpp", "DiffusersNetwork", "NCSNpp", "Network"]
