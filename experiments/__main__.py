"""`python -m experiments`: runs the tables and figures of the papers, each of which is a file.

    python -m experiments list
    python -m experiments run experiments/papers/table3_bnr.yaml --data digits --budget small --jobs 2

`warm experiments list` and `warm experiments run table3_bnr` are the same, from a wheel too, where this package is
`warm_lightning.experiments`; its modules import each other relatively, since it has these two names.

A run that was stopped goes on when it is started again.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import get_args

from warm_lightning.cli import reason, run_program
from warm_lightning.errors import UserError
from warm_lightning.paths import path_argument

from . import reproduction
from .cells import Budget
from .experiment import Experiment, read
from .identity import PAPERS
from .run import run

PROGRAM = "python -m experiments"


def parser(program: str = PROGRAM) -> argparse.ArgumentParser:
    """The parser of commands and options."""
    description = "Run the tables and figures of the papers, each of which is a file."
    top = argparse.ArgumentParser(prog=program, description=description)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="all experiments")
    commands.add_parser("reproduction", help="write docs/reproduction.md: every published number, command and cost")
    run_parser = commands.add_parser("run", help="run an experiment, or go on with it")
    run_parser.add_argument(
        "file", type=path_argument, help="YAML file of the experiment: its path, or its name, such as table3_bnr"
    )
    run_parser.add_argument(
        "--data", help="data set instead of the paper's: a name of experiments/data, such as digits"
    )
    run_parser.add_argument(
        "--budget",
        choices=get_args(Budget),
        default="small",
        help="how long to train and how many samples to score (default: small)",
    )
    run_parser.add_argument(
        "--jobs", type=int, help="number of runs at a time, which share cores and GPUs; if not given 1, or all on SLURM"
    )
    run_parser.add_argument(
        "--out", type=path_argument, default=Path("runs/experiments"), help="folder of all experiments"
    )
    run_parser.add_argument(
        "--num_images", type=int, help="samples in a round of scoring; those of the budget if not given"
    )
    run_parser.add_argument("--rounds", type=int, help="number of rounds of scoring; that of the budget if not given")
    run_parser.add_argument(
        "--seeds", type=int, help="number of training seeds of each cell; that of the file if not given"
    )
    run_parser.add_argument(
        "--until",
        type=float,
        metavar="WIDTH",
        help="train on, a seed of all cells at a time, until all paired 95 %% intervals are as narrow as ± WIDTH, such "
        "as 0.05 for 5 %%, or --seeds is reached",
    )
    run_parser.add_argument("--only", action="append", metavar="AXIS=LABEL", help="only such cells, such as BNR=0.5")
    run_parser.add_argument("--cells", type=int, help="only the first so many cells")
    run_parser.add_argument("--plan", action="store_true", help="only say what would run, and what it would cost")
    run_parser.add_argument("--anyway", action="store_true", help="start even what takes this machine weeks")
    run_parser.add_argument("--tflops", type=float, help="TFLOP/s that one device sustains, for the cost")
    run_parser.add_argument(
        "--slurm", metavar="JSON", help='run on SLURM by submitit: its options, such as {"gpus_per_node": 8}'
    )
    run_parser.add_argument(
        "--in_process", action="store_true", help="all in this process, one by one: soon done without training"
    )
    run_parser.epilog = "Options of warm for every run come after --, such as -- --data.path=cifar10.zip"
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 1 if a run failed, 2 for a user's error, others as `run_program` says."""
    return run_program(reported, arguments)


def reported(arguments: list[str]) -> int:
    """Run a command as `answer` does, with a user's error as one line on stderr; then it returns 2."""
    try:
        code = answer(arguments)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        raise
    except (UserError, OSError) as error:
        print(f"experiments: {reason(error)}", file=sys.stderr)
        return 2


def answer(arguments: list[str], program: str = PROGRAM) -> int:
    """Run a command; returns the exit code, 1 if a run failed.

    Args:
        arguments: the command and its options.
        program: how the user started it.

    Raises:
        UserError: a file or option is wrong.
    """
    end = arguments.index("--") if "--" in arguments else len(arguments)
    options = parser(program).parse_args(arguments[:end])
    options.extra = arguments[end + 1 :]
    if options.command == "list":
        for path in sorted(PAPERS.glob("*.yaml")):
            experiment = read(path, Experiment)
            print(f"{path.stem:<32} {experiment.source}: {experiment.title}")
        return 0
    if options.command == "reproduction":
        print(f"written to {reproduction.write()}")
        return 0
    code, text = run(options, f"{program} {shlex.join(arguments)}")
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
