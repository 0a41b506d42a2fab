"""Training on several devices: the strategies of Lightning that are supported, and sharding."""

from collections.abc import Iterator
from contextlib import contextmanager

from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from warm_lightning.errors import check

StrategyRegistry.register(
    "fsdp2",
    ModelParallelStrategy,
    description="Fully sharded data parallelism within a node, replicated over nodes",
    save_distributed_checkpoint=False,  # one file, as any other strategy writes and reads
)


def check_strategy(strategy: Strategy, network: nn.Module) -> None:
    """Check that a strategy can train the network, and averages and saves the right weights.

    Raises:
        UserError: it does not.
    """
    check(
        isinstance(strategy, DDPStrategy | ModelParallelStrategy | SingleDeviceStrategy),
        f"trainer.strategy {type(strategy).__name__} would shard the averaged weights apart from those being trained: "
        "use ddp, or fsdp2 for networks too large for a device",
    )
    check(
        not isinstance(strategy, ModelParallelStrategy) or all(p.is_contiguous() for p in network.parameters()),
        "trainer.strategy fsdp2 cannot spread a network in channels-last order: set model.channels_last to false",
    )


def check_unsharded(strategy: Strategy, weights: str) -> None:
    """Check that every device holds the weights to sample with; with fsdp2 only the averaged weights are whole.

    Raises:
        UserError: it does.
    """
    check(
        weights == "ema" or not isinstance(strategy, ModelParallelStrategy),
        "trainer.strategy fsdp2 spreads the weights being trained over all devices: sample with weights ema",
    )


def shard(network: nn.Module, mesh: DeviceMesh) -> None:
    """Shard a network's parameters over devices: each block by itself, then the rest.

    Args:
        network: changed in place; its blocks are the entries of its module lists and dictionaries.
        mesh: nodes × devices of a node. Parameters are sharded over the second and replicated over the first.
    """
    if isinstance(network, FSDPModule):  # already sharded, in an earlier stage of the same Trainer
        return
    for container in network.modules():
        if isinstance(container, nn.ModuleDict | nn.ModuleList):
            for block in container.children():
                fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)


@contextmanager
def gathered(network: nn.Module) -> Iterator[None]:
    """Gather the whole parameters of a sharded network on every device, for reading; all devices must call this."""
    parts = [part for part in network.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()


def local(tensor: Tensor) -> Tensor:
    """This device's part of a sharded tensor, or a plain tensor itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
