"""Several processes for a test, without the seconds that each takes to import torch."""

import contextlib
import os
import socket
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from warm_lightning.cli import main


def spawn(function: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Run `function(rank, *arguments)` in so many fresh processes, forked from one that has imported what they need.

    They have the environment of the first call of a test session, but for what they set themselves.
    """
    get_context("forkserver").set_forkserver_preload(["warm_lightning.trainer_cli", "warm_lightning.commands.score"])
    mp.start_processes(function, arguments, count, start_method="forkserver")


def warm_on_two(folder: Path, *arguments: str) -> list[str]:
    """Run `warm` on two CPU processes as torchrun starts it; gives what each wrote to standard output."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]
    if arguments[0] == "generate":
        options = ["--devices=2", "--accelerator=cpu"]
    spawn(_warm, folder, port, [*arguments, *options])
    return [(folder / f"{rank}.txt").read_text() for rank in range(2)]


def _warm(rank: int, folder: Path, port: int, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {name: str(value) for name, value in {**place, **meeting}.items()}
    with (folder / f"{rank}.txt").open("w") as output, contextlib.redirect_stdout(output):
        assert main(arguments) == 0
