"""Default values that are objects."""

import inspect
from typing import Any, TypeVar
from unittest.mock import patch

from jsonargparse import lazy_instance

Kind = TypeVar("Kind")


def default(kind: type[Kind]) -> Kind:
    """An instance of a class with its own defaults, as the default of an argument: `jsonargparse.lazy_instance`.

    That function looks up its caller in `inspect.stack()`, which finds files and sources of all functions on the stack:
    a third of a second each time in the depth of imports, and half of the time that `warm` takes to start. It needs
    the caller alone, which is this function.
    """
    caller = (inspect.currentframe(),)  # lazy_instance reads stack()[1][0], the frame of its caller
    with patch.object(inspect, "stack", lambda: [(None,), caller]):
        instance: Any = lazy_instance(kind)
    instance._lazy_init()  # now: before the first call of a method, the object would have no attributes
    return instance
