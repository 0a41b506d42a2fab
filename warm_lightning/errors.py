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


@contextmanager
def user_errors() -> Iterator[None]:
    """Turn what argument parsers and Lightning raise for a wrong name or value into a `UserError` of one line."""
    try:
        yield
    except argparse.ArgumentError as error:
        raise UserError(_parser_message(error)) from error
    except ValueError as error:
        if isinstance(error.__cause__, UserError):  # the parser's summary of an error that a constructor raised
            raise error.__cause__ from error
        raise
    except Exception as error:
        if type(error).__name__ != "MisconfigurationException":  # Lightning's, without importing Lightning
            raise
        raise UserError(str(error)) from error


def _parser_message(error: argparse.ArgumentError) -> str:
    """The parser's message without the parts that only the authors of a program need."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Given value", "Subtypes:")))
