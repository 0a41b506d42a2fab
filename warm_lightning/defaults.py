"""Default values that are objects."""

import inspect
from functools import partial
from typing import TypeVar
from unittest.mock import patch

from jsonargparse import lazy_instance

Kind = TypeVar("Kind")


def default(kind: type[Kind]) -> Kind:
    """An instance of a class with its own defaults, as the default of an argument: `jsonargparse.lazy_instance`.

    That function looks up its caller in `inspect.stack()`, which reads the sources of all functions on the stack: a
    third of a second each time in the depth of imports, and a third of the time that `warm` takes to start. It needs
    none of them.
    """
    with patch.object(inspect, "stack", partial(inspect.stack, context=0)):
        return lazy_instance(kind)
