"""Networks: they map images and conditioning signals to raw output branches, and know no diffusion."""

from warm_lightning.networks.base import Network
from warm_lightning.networks.unet import DDPM, DDPMpp, NCSNpp

__all__ = ["DDPM", "DDPMpp", "NCSNpp", "Network"]
