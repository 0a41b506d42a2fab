"""Paths that users give, and locks of folders and files. This imports nothing that takes time."""

import argparse
import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warm_lightning.errors import UserError, check, error_text

# ---------------------------------------------------------------------- paths

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints."""
LAST = "last.ckpt"
"""The checkpoint in it that a run goes on from."""
REMOTE = re.compile(r"[A-Za-z][\w+.-]+:[/:]")
"""The beginning of an address such as s3://bucket or file:/home; a single letter would be a drive."""
UNSET = re.compile(r"\$(\w+|\{[^}]*\})")
"""A variable that `os.path.expandvars` has left as it was."""

if TYPE_CHECKING:
    PathText = str
    CheckpointText = str
else:

    class PathText(str):
        """The annotation of a path that stays text: argument parsers replace it by what `expand` makes of it."""

    class CheckpointText(str):
        """The annotation of the path of a checkpoint, which may be an address on the Hub; see `expand_checkpoint`."""


def expand(path: str | Path) -> Path:
    """Replace `~` and environment variables in a path; every path that a user gives passes through here.

    A relative path stays relative, and links stay: data sets and results are known by the names that users chose.

    Raises:
        UserError: the path is empty, remote, or names a user or variable that does not exist.
    """
    text = os.fspath(path)
    check(text != "", "a path is empty: name a file or folder")
    remote = REMOTE.match(text)
    check(remote is None, f"{text}: remote addresses are not supported: give a path on this machine")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{text}: the name is not text in UTF-8, and could not be recorded: rename it") from error
    try:
        expanded = Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: {error_text(error)} Give the whole path") from error
    if "$" not in text or os.path.lexists(expanded):  # a name may hold the sign
        return expanded
    expanded = Path(os.path.expandvars(expanded))
    unset = UNSET.search(str(expanded))
    check(unset is None, f"{text}: the environment variable {unset and unset[0]} is not set: set it, or give the path")
    return expanded


HUB = "hf://"
"""The beginning of the address of a model on the Hugging Face Hub."""


def expand_checkpoint(path: str | Path) -> str:
    """The path of a checkpoint as `expand` makes it; the folder of a run stands for its last checkpoint.

    Other paths, such as that of an exported folder, stay, and so does an address on the Hugging Face Hub.
    """
    text = os.fspath(path)
    if text.startswith(HUB):
        return text
    local = expand(path)
    last = local / CHECKPOINTS / LAST
    return str(last if last.is_file() else local)


def path_argument(text: str) -> Path:
    """The path of an argument of `argparse`, for `add_argument(type=…)`."""
    try:
        return expand(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def expand_in_parsers() -> None:
    """Let all argument parsers expand the values of parameters that are annotated as `PathText` or `Path`."""
    from jsonargparse.typing import register_type

    def checked(value: Any) -> str:
        if not isinstance(value, str | Path):  # another member of a union may take it
            raise TypeError(f"a path is text, not {value!r}")
        return str(value)

    def expanded(value: Any) -> Path:
        return expand(checked(value))

    register_type(PathText, checked, lambda value: str(expanded(value)), type_check=lambda value, kind: False)
    register_type(
        CheckpointText,
        checked,
        lambda value: expand_checkpoint(checked(value)),
        type_check=lambda value, kind: False,
    )
    register_type(Path, checked, expanded, type_check=isinstance)


LIGHTNING_PATHS = frozenset(
    {"default_root_dir", "save_dir", "root_dir", "dirpath", "dir", "sub_dir", "exclude_batches_path"}
)
"""Parameters of Lightning's Trainer, loggers, callbacks and profilers that are paths."""


def expand_settings(settings: Any) -> None:
    """Expand, in place, the paths in nested settings of Lightning's classes, as a parser gives them."""
    from jsonargparse import Namespace

    if isinstance(settings, list):
        for item in settings:
            expand_settings(item)
    values = vars(settings) if isinstance(settings, Namespace) else settings if isinstance(settings, dict) else {}
    for name, value in values.items():
        if name == "ckpt_path" and isinstance(value, str | Path):
            values[name] = value if value == "last" else expand_checkpoint(value)  # "last" is no folder of that name
        elif name in LIGHTNING_PATHS and isinstance(value, str | Path):
            values[name] = str(expand(value))
        else:
            expand_settings(value)


# ---------------------------------------------------------------------- locks

LOCK = ".lock"
INHERITED = "WARM_LOCK"
"""The environment variable with the descriptor of a lock that a process has from the one that started it."""
UNSUPPORTED = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_held: set[int] = set()
"""Descriptors of locks, which forks of this process close: a worker that outlives it must not hold its locks."""


def _close_held() -> None:
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_held)


@contextmanager
def folder_lock(folder: Path, before_waiting: Callable[[], None] | None = None) -> Iterator[int]:
    """Hold the lock of a folder, in which one process works at a time; gives its file descriptor.

    A process that ends or is killed loses its lock. A process that was given the descriptor, and its number in the
    variable `INHERITED`, holds the same lock until it ends, even if the one that started it is killed before.

    Args:
        folder: exists.
        before_waiting: called if another process holds the lock, which is then waited for; None for an error instead.

    Raises:
        UserError: another process holds the lock and is not waited for, or the lock cannot be made.
    """
    path = folder / LOCK
    descriptor = None
    try:
        descriptor = _inherited(path) or os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        _held.add(descriptor)
        if not _lock(descriptor, wait=False):
            if before_waiting is None:
                raise UserError(f"{folder}: another process works in this folder: wait for its end, or choose another")
            before_waiting()
            _lock(descriptor, wait=True)
        yield descriptor
    except OSError as error:
        if descriptor is not None:
            raise
        raise UserError(f"{folder}: cannot be locked ({error_text(error)}); choose a writable folder") from error
    finally:
        if descriptor is not None:
            _release(descriptor)


@contextmanager
def locked(path: Path, folder: bool = False) -> Iterator[None]:
    """Hold the lock of a file or folder that is being written, which is made if need be, waiting for other processes.

    Raises:
        OSError: it cannot be made.
    """
    while True:
        if folder:
            path.mkdir(exist_ok=True)
        descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR | os.O_CREAT, 0o666)
        _held.add(descriptor)
        try:
            _lock(descriptor, wait=True)
            if _is_at(descriptor, path):  # and not renamed or removed by whoever had the lock
                yield
                return
        finally:
            _release(descriptor)


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def _inherited(path: Path) -> int | None:
    """The descriptor of a lock file that this process was given, if any."""
    given = os.environ.get(INHERITED, "")
    return int(given) if given.isdecimal() and _is_at(int(given), path) else None


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file; returns false if another process or thread has locked it and `wait` is false."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in UNSUPPORTED:  # some network file systems have no locks
            raise
    return True


def _release(descriptor: int) -> None:
    """Close the descriptor of a lock, unless a fork has closed it already."""
    if descriptor in _held:
        _held.remove(descriptor)
        os.close(descriptor)
