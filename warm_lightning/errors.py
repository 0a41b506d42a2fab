"""The one kind of error that a user causes, as opposed to a bug."""


class UserError(Exception):
    """Something in the user's input is wrong; the message says what, and what to do about it.

    The `warm` program prints the message as one line and exits with code 2, without a traceback.
    Raise it for a wrong value, path, file or combination; never for a state that only a bug can reach.
    It is no ValueError, which argument parsers catch in order to try something else.
    """


def check(condition: bool, message: str) -> None:
    """Raise `UserError(message)` unless `condition` holds."""
    if not condition:
        raise UserError(message)
