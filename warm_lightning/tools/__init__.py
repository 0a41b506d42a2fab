"""Commands of `warm` that are not stages of the Trainer: one module and one function each."""

import importlib

from jsonargparse import auto_cli

from warm_lightning.lightning_cli import user_errors


def run_tool(command: str, arguments: list[str]) -> int:
    """Run the function of the same name in the module of the same name; its signature gives the options."""
    name = command.replace("-", "_")
    function = getattr(importlib.import_module(f"warm_lightning.tools.{name}"), name)
    with user_errors():
        auto_cli(function, as_positional=False, args=arguments, exit_on_error=False, prog=f"warm {command}")
    return 0
