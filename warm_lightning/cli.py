"""The `warm` program. Imports of torch wait until a command needs it, so that `warm --help` answers at once."""

import importlib
import io
import locale
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from importlib.util import find_spec
from typing import Any, TextIO, cast

from warm_lightning import __version__
from warm_lightning.errors import UserError, check, error_text, is_full_memory
from warm_lightning.shipped import CHECKOUT, config_list, with_config_files

LONGEST = 800  # characters of an error message
TRAINER_COMMANDS = {
    "fit": "train a model",
    "validate": "compute the training loss on held-out images, with averaged weights",
    "test": "sample and score a trained model",
}
OTHER_COMMANDS = {
    "generate": "sample images of given seeds from a checkpoint",
    "restore": "restore blurred and noisy images with a trained model",
    "explore": "look at samples, trajectories and restorations of a model on a page in the browser",
    "score": "score images against other images or reference statistics",
    "compare": "compare two models, with confidence intervals over the same seeds",
    "reference-stats": "write the reference statistics of a data set to a file",
    "dataset": "convert images to a data set in EDM's format",
    "convert-edm": "convert EDM's published weights to a checkpoint",
    "export": "write a checkpoint as a folder to publish: safetensors, YAML, model card",
    "ema": "make a checkpoint with another averaging length after training",
    "describe": "print network size, cost and path of a configuration",
    "drift": "measure how far sampled states are from degraded images, level by level",
    "branches": "measure the errors of D and R, and the combination of both that errs least",
    "spectrum": "measure the power spectrum of a data set, suggest a BNR, and compare generated images",
    "bits": "measure bits per dimension by the probability-flow ODE",
    "oracle": "measure the error of a sampler with a perfect network",
}
EXPERIMENT_COMMANDS = {"experiments": "list and run the tables and figures of the papers"}
COMMANDS = TRAINER_COMMANDS | OTHER_COMMANDS | EXPERIMENT_COMMANDS
ALL_OPTIONS = "--help=all"
HELP = f"""usage: warm COMMAND [options]

Warm Diffusion and the diffusion models that it is compared with, on PyTorch Lightning, version {__version__}.

commands:
{chr(10).join(f"  {name:<15} {text}" for name, text in COMMANDS.items())}

examples:
  warm fit --config digits
  warm fit --config digits --config method/hot --model.lr 1e-3
  warm test --config digits --ckpt_path last
  warm generate --ckpt_path runs/digits --seeds 0-63 --outdir out

`warm fit` lists the configurations that --config can name; it takes your own YAML files, too.
`warm COMMAND --help` lists the options of a command. Set WARM_TRACEBACK=1 to see where an error came from.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code, see `run_program`."""
    return run_program(answer, arguments)


def run_program(answer: Callable[[list[str]], int], arguments: Sequence[str] | None) -> int:
    """Run a program of the command line and return its exit code.

    Args:
        answer: runs one command, flushes its output, and returns 0, or 2 for a user's error, which it has printed as
            one line on stderr.
        arguments: the command and its options; None for those of this process.

    Returns:
        what `answer` returns; 130 after Ctrl-C; 141 if the reader of the output has closed it.
    """
    open_streams()
    use_utf8(restart=arguments is None)
    try:
        return answer(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has read enough, such as `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python fails once more at its end
        return 141


def answer(arguments: list[str]) -> int:
    """Run one command, or print the help or the version; returns 0 or, for a user's error, 2."""
    command = arguments[0] if arguments else "--help"
    if command in ("-h", "--help", "--version"):
        print(__version__ if command == "--version" else HELP.rstrip(), flush=True)
        return 0
    if command not in COMMANDS:
        known = ", ".join(COMMANDS)
        print(one_line(f"warm: no command {command!r}; the commands are {known}"), file=sys.stderr)
        return 2
    try:
        code = run(command, arguments[1:])
        sys.stdout.flush()
        return code
    except Exception as error:
        expected = isinstance(error, UserError | OSError) or is_full_memory(error)
        if not expected or os.environ.get("WARM_TRACEBACK") or isinstance(error, BrokenPipeError):
            raise
        with suppress(OSError):
            print(one_line(f"warm {command}: {reason(error)}"), file=sys.stderr)
        return 2


def open_streams() -> None:
    """Open the standard streams that this program was started without, to nothing.

    Otherwise the next files would get their numbers, and what libraries write to standard error would be in them.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8", closefd=False))


class UnreadStream:
    """A standard stream whose text is lost, without an error, once nobody can read it any more.

    Its reader may have ended, its terminal be closed, or the disk of its file be full: no reason to end a training.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        try:
            return self.stream.write(text)
        except OSError:
            self.drop()
            return len(text)

    def flush(self) -> None:
        try:
            self.stream.flush()
        except OSError:
            self.drop()

    def drop(self) -> None:
        """Have the operating system discard this text and all that follows."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())


@contextmanager
def unread_streams() -> Iterator[None]:
    """Write to standard output and error inside the `with` block as to an `UnreadStream`."""
    with (
        redirect_stdout(cast(TextIO, UnreadStream(sys.stdout))),
        redirect_stderr(cast(TextIO, UnreadStream(sys.stderr))),
    ):
        try:
            yield
        finally:
            sys.stdout.flush()


def use_utf8(restart: bool) -> None:
    """Have files and names of files in UTF-8 whatever the locale, and show what the terminal cannot as an escape.

    Args:
        restart: whether to start this program again in Python's UTF-8 mode, where the locale has another encoding.
            Libraries would open their files in that one, which is ASCII with LC_ALL=C.
    """
    other = locale.getencoding().lower() not in ("utf-8", "utf8") and not sys.flags.utf8_mode
    if restart and other and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, sys.orig_argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def reason(error: Exception) -> str:
    """The message of an error that a user, the operating system or a full memory caused.

    After an error, loggers may fail once more while they end: the first `UserError` counts.
    """
    first: BaseException | None = error
    while first and not isinstance(first, UserError):
        first = first.__context__
    if first:
        return str(first)
    if is_full_memory(error):
        return f"the memory is full ({error_text(error, 200)}): use smaller batches or images, or fewer processes"
    if not isinstance(error, OSError):
        return str(error)
    file = f"{error.filename}: " if error.filename else ""
    return f"{file}{error_text(error)}: look at the free space and the permissions of files, and start it again"


def one_line(message: str) -> str:
    """The message on one line, with control characters escaped; beyond `LONGEST` characters, its middle is left out."""
    text = " ".join(message.split())
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 250]} […] {text[-240:]}"


def run(command: str, arguments: list[str]) -> int:
    """Import the modules that a command needs, and run it; the files of `--config` are looked for before that."""
    if command in EXPERIMENT_COMMANDS:
        return run_experiments(arguments)
    if command == "fit" and (not arguments or {"-h", "--help"} & {*arguments}):
        return explain_fit(bool(arguments))
    arguments = with_config_files(arguments)
    if command in TRAINER_COMMANDS:
        from warm_lightning.trainer_cli import run_trainer

        with unread_streams():
            return run_trainer(command, ["--help" if word == ALL_OPTIONS else word for word in arguments])
    from warm_lightning.commands import run_command

    return run_command(command, arguments)


def explain_fit(asked: bool) -> int:
    """Print the short help of `warm fit` or, where nothing was asked for, the configurations to choose from.

    Raises:
        UserError: nothing was asked for, and a configuration is missing.
    """
    if asked:
        from warm_lightning.trainer_help import short_help

        print(short_help())
        return 0
    print(config_list(), flush=True)
    raise UserError("--config is missing: name one of these, such as --config digits, or a YAML file of your own")


def run_experiments(arguments: list[str]) -> int:
    """Run `python -m experiments`, of the repository or of the installed package.

    Raises:
        UserError: a package that experiments need is not installed, or see `experiments.__main__.answer`.
    """
    missing = [name for name in ("matplotlib", "markdown") if find_spec(name) is None]
    check(not missing, f"{' and '.join(missing)}: not installed: pip install 'warm-lightning[experiments]'")
    if CHECKOUT and str(CHECKOUT) not in sys.path:  # an editable installation finds the package only
        sys.path.insert(0, str(CHECKOUT))
    package = "experiments" if CHECKOUT else "warm_lightning.experiments"
    program = importlib.import_module(f"{package}.__main__")
    return int(program.answer(arguments, "warm experiments"))


if __name__ == "__main__":
    sys.exit(main())
