"""The training step of a configuration, as `warm fit` takes it but without Trainer and data, for measurements."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from warm_lightning import load_config
from warm_lightning.images import dequantise
from warm_lightning.networks import Network
from warm_lightning.rng import BatchDraws
from warm_lightning.types import Batch

PRODUCTS = ("conv", "mm", "linear", "attention")
"""Parts of the names of the operators whose FLOPs are counted."""


class TrainingStep:
    """A training step on images of noise, which each call takes once.

    Args:
        paths: YAML files, see `load_config`.
        overrides: see `load_config`.
        device: where to train.
        autocast: of the network's products in mixed precision; None for none.
    """

    def __init__(
        self, paths: list[Path], overrides: Mapping[str, Any], device: str, autocast: torch.dtype | None = None
    ) -> None:
        self.autocast = torch.autocast(device, autocast, enabled=autocast is not None)
        self.module, data = load_config(list(paths), overrides)
        self.module.to(device).train()
        self.optimizer = self.module.configure_optimizers()
        self.batch_size = data.batch_size
        network = self.module.network
        shape = (self.batch_size, network.image_channels, network.resolution, network.resolution)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
        positions = torch.arange(self.batch_size)
        self.batch = Batch(*(part.to(device) for part in (images, torch.zeros_like(positions), positions)))
        self.silent = Silent(network).to(device)

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.backward(self.module.network)
        self.update()

    def backward(self, network: Network) -> None:
        """Compute lines 4 to 13 of Algorithm 1 with a network, and gradients."""
        model = self.module.model("raw").replaced(network=network)
        with self.autocast:
            losses, _ = model.loss(self.batch, self.draws())
        losses.sum(1).mean().backward()

    def draws(self) -> BatchDraws:
        """The random draws of the first step."""
        return BatchDraws(self.module.seed, 0, self.batch_size, self.batch.positions)

    def forward_process(self) -> None:
        """Compute all but the network: augmentation, draws, DCT, blur, scaling, squares."""
        self.backward(self.silent)

    def augment(self) -> None:
        """Augment the images, if the configuration augments."""
        augment = self.module.model("raw").augment
        if augment is not None:
            augment(dequantise(self.batch.images), self.draws())

    def update(self) -> None:
        """Update weights with Adam, and their average, from the gradients of an earlier step."""
        self.module.on_before_optimizer_step(self.optimizer)
        self.optimizer.step()
        self.module.ema.update(self.module.ema_network, self.module.network, 10**6, self.batch_size)

    def flops(self) -> int:
        """The FLOPs of convolutions and matrix products, forward and backward, as PyTorch counts them.

        Attention is counted as its two products: some versions of PyTorch do not know the cost of fused kernels.
        """
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops()

    def product_share(self) -> float:
        """The share of the operators' time on the device that is spent in those whose FLOPs are counted."""
        on_gpu = self.module.device.type == "cuda"
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
        with profile(activities=activities) as recorded:
            for _ in range(3):
                self()
        # Events of the GPU are kernels, whose time is part of that of their operators, which are events of the CPU.
        operators = [e for e in recorded.key_averages() if e.device_type == DeviceType.CPU]
        times = {e.key: e.self_device_time_total if on_gpu else e.self_cpu_time_total for e in operators}
        products = (time for name, time in times.items() if any(part in name for part in PRODUCTS))
        return sum(products) / sum(times.values())


class Silent(Network):
    """A network that returns zeros in the shapes of another network, at no cost."""

    def __init__(self, like: Network) -> None:
        super().__init__(like.branches, like.resolution, like.image_channels, like.label_dim, like.augment_dim)
        self.output = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, *conditioning: Tensor | None) -> Tensor:
        return self.output.expand(len(x), self.branches, *x.shape[1:])
