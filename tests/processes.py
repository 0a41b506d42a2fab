"""Several processes for a test, without the seconds that each takes to import torch and Lightning."""

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from multiprocessing import get_context, set_start_method
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from warm_lightning.cli import main

TOOL_OPTIONS = ["--devices=2", "--accelerator=cpu"]
TRAINER_OPTIONS = ["--trainer.devices=2", "--trainer.accelerator=cpu", "--trainer.strategy=ddp"]


def forkserver() -> ForkServerContext:
    """The context whose processes are forked from one that has imported what `warm` needs.

    They have the environment of the first call of a test session, but for what they set themselves.
    """
    context = get_context("forkserver")
    own = ["warm_lightning.trainer_cli", "warm_lightning.commands.score"]
    context.set_forkserver_preload([*own, "sklearn.datasets", "torch.utils.tensorboard"])  # which a training imports
    return context


def spawn(function: Callable[..., None], *arguments: Any, count: int = 2) -> None:
    """Run `function(rank, *arguments)` in `count` forked processes to their end."""
    forkserver()
    mp.start_processes(function, arguments, count, start_method="forkserver")


def start_warm(folder: Path, *arguments: str) -> ForkServerProcess:
    """Start `warm` in a forked process that can be killed; both of its streams go to `folder`/output.txt."""
    process = forkserver().Process(target=_warm, args=(folder, arguments))
    process.start()
    return process


def warm_on_two(folder: Path, *arguments: str) -> list[str]:
    """Run `warm` on two CPU processes as torchrun starts it; gives what each wrote to standard output.

    The strategy is ddp unless `arguments` name another.
    """
    folder.mkdir(exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    options = TRAINER_OPTIONS if arguments[0] in ("fit", "validate", "test") else TOOL_OPTIONS
    missing = [o for o in options if not any(a.startswith(o.partition("=")[0]) for a in arguments)]
    spawn(_warm_of_two, folder, port, [*arguments, *missing])
    return [(folder / f"{rank}.txt").read_text() for rank in range(2)]


def as_a_program() -> None:
    """Undo what a process that is forked from the server of multiprocessing has other than one that is started.

    Its workers would be forked from a server, too, which outlives a process that is killed. And it would ignore Ctrl-C
    where the tests do, as in the background of a script.
    """
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    set_start_method(None, force=True)


def _warm(folder: Path, arguments: Sequence[str]) -> None:
    as_a_program()
    os.chdir(folder)
    with Path("output.txt").open("w") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        sys.exit(main(arguments))


def _warm_of_two(rank: int, folder: Path, port: int, arguments: list[str]) -> None:
    as_a_program()
    place = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ |= {name: str(value) for name, value in {**place, **meeting}.items()}
    with (folder / f"{rank}.txt").open("w") as output, contextlib.redirect_stdout(output):
        assert main(arguments) == 0
