"""Training on several devices: the strategies of Lightning that are supported, and sharding."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
import torch.distributed as dist
from lightning import Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
    StrategyRegistry,
)
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor

from warm_lightning.data.stream import WORKER_DIED
from warm_lightning.errors import UserError, check, error_text

StrategyRegistry.register(
    "fsdp2",
    ModelParallelStrategy,
    description="Fully sharded data parallelism within a node, replicated over nodes",
    save_distributed_checkpoint=False,  # one file, as any other strategy writes and reads
)


def check_strategy(strategy: Strategy, network: nn.Module, loss_learns: bool = False) -> None:
    """Check that a strategy can train the network and its loss, and averages and saves the right weights.

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
    check(
        not isinstance(strategy, ModelParallelStrategy) or getattr(network, "can_shard", True),
        f"trainer.strategy fsdp2 cannot spread the blocks of a {type(network).__name__}: use ddp",
    )
    check(
        not isinstance(strategy, ModelParallelStrategy) or not loss_learns,
        "trainer.strategy fsdp2 would not average the gradients of model.loss, which learns: use ddp",
    )


def check_launcher(strategy: Strategy) -> None:
    """Check that the processes of a strategy are started as programs of their own.

    Processes that Lightning spawns or forks return to one that holds nothing of what they did.

    Raises:
        UserError: they are spawned or forked.
    """
    check(
        not isinstance(strategy.launcher, _MultiProcessingLauncher),
        "trainer.strategy spawns or forks its processes, whose models the commands do not get back: use ddp",
    )


def check_steps(trainer: Trainer) -> None:
    """Check that the settings of a Trainer let every optimizer step be batch_size images of the stream, in order.

    `DiffusionModule.training_step` checks the same of each batch, for what callbacks do.

    Raises:
        UserError: they do not.
    """
    parts, limit = trainer.accumulate_grad_batches, trainer.limit_train_batches
    check(
        cast(Any, trainer).overfit_batches == 0,
        "trainer.overfit_batches would train on other images than the stream's: give data of a few images instead",
    )
    check(
        limit == 1.0 if isinstance(limit, float) else limit % parts == 0,
        f"trainer.limit_train_batches {limit} would end an epoch within a step of {parts} batches, and training has no "
        "epochs of which it could be a share: give a multiple of trainer.accumulate_grad_batches, or model.duration",
    )
    check(
        not trainer.min_steps and not trainer.min_epochs,
        "trainer.min_steps and trainer.min_epochs would train beyond model.duration, which ends a training: leave them "
        "out",
    )
    check(
        trainer._accelerator_connector.use_distributed_sampler is False,
        "trainer.use_distributed_sampler must be false: the data modules share out the images themselves",
    )


@contextmanager
def lost_processes() -> Iterator[None]:
    """Turn the error of a process that has lost another one, or a worker, into a `UserError` of one line."""
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith(WORKER_DIED):
            raise UserError(
                f"a worker has died ({error_text(error)}): is there enough memory? Lower data.num_workers, and go on "
                "with --ckpt_path last"
            ) from error
        broken = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))
        if not broken:
            raise
        raise UserError(
            "the connection to another process is lost; if that has ended, its own message says why "
            f"({error_text(error, 200)})"
        ) from error


def check_precision(precision: str, device: torch.device) -> None:
    """Warn of a precision for which a processor has no instructions, and which is many times slower than float32."""
    if precision == "bf16-mixed" and device.type == "cpu" and not torch.cpu._is_avx512_bf16_supported():
        rank_zero_warn(
            "this processor has no instructions for bfloat16, with which training is 15 to 23 times slower: use "
            "trainer.precision 32-true"
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
