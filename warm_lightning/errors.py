"""The one kind of error that a user causes, as opposed to a bug."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Something in the user's input is wrong; the message says what, and what to do about it.

    The `warm` program prints the message as one line and exits with code 2, without a traceback.
    Raise it for a wrong value, path, file or combination; never for a state that only a bug can reach.
    It does not derive from ValueError, because jsonargparse catches ValueError and tries another type.
    """


def check(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)


def error_text(error: Exception, limit: int | None = None) -> str:
    """The message of an exception on one line, or its class where there is none.

    Args:
        error: any exception; of one that the operating system raised, only the reason.
        limit: number of characters after which the message is cut.
    """
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split())[:limit] or type(error).__name__


def is_full_memory(error: BaseException) -> bool:
    """Whether an exception says that the memory of the machine or of a device is full."""
    kind = type(error).__name__  # PyTorch's own, without importing PyTorch
    return isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "DefaultCPUAllocator" in str(error)


TRACKERS = ("wandb.", "mlflow.")
"""Beginnings of the names of modules whose errors are those of a tracker."""


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what argument parsers, Lightning and trackers raise for a wrong setting into a `UserError` of one line.

    Errors of a tracker are also those of its server: it does not answer, or knows neither this user nor this run.
    """
    try:
        yield
    except argparse.ArgumentError as error:
        raise UserError(_parser_message(error)) from error
    except ValueError as error:
        if isinstance(error.__cause__, UserError):  # the parser's summary of an error that a constructor raised
            raise error.__cause__ from error
        raise
    except Exception as error:
        kind = type(error)  # known by its name, without importing Lightning or a tracker
        if kind.__name__ != "MisconfigurationException" and not kind.__module__.startswith(TRACKERS):
            raise
        raise UserError(str(error)) from error


@contextmanager
def building() -> Iterator[None]:
    """Turn whatever goes wrong while objects of the user's choice are made into a `UserError` of one line.

    The classes may be anybody's, and their errors of any kind: a missing package, a device that is not there.
    """
    try:
        with user_errors():
            yield
    except UserError:
        raise
    except Exception as error:
        kind = "" if isinstance(error, ValueError | ImportError) else f"{type(error).__name__}: "
        raise UserError(f"{kind}{_parser_message(error)} (set WARM_TRACEBACK=1 to see where)") from error


ABOUT_TYPES = ("Given value", "Subtypes:", "Errors:", "Does not validate against any", "- Expected a <class")
"""Beginnings of lines of a parser's message that only the authors of a program need."""


def _parser_message(error: Exception) -> str:
    """The message of a parser without the lines about types; of another exception, all of it."""
    lines = [line.strip() for line in str(error).splitlines()]
    telling = " ".join(line for line in lines if line and not line.startswith(ABOUT_TYPES))
    return telling or error_text(error)
