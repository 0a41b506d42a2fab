"""Commands of `warm` that are not stages of the Trainer: one module and one function each."""

import importlib
import inspect

from jsonargparse import auto_cli

from warm_lightning.lightning_cli import user_errors


def run_tool(command: str, arguments: list[str]) -> int:
    """Run the function of the same name in the module of the same name; its signature gives the arguments.

    Parameters with defaults are options. Required ones are positional, as in `warm dataset SRC DST`, or options
    where the function takes them by keyword only, as in `warm generate --ckpt_path C`.
    """
    name = command.replace("-", "_")
    function = getattr(importlib.import_module(f"warm_lightning.tools.{name}"), name)
    required = [p for p in inspect.signature(function).parameters.values() if p.default is p.empty]
    positional = all(p.kind is not p.KEYWORD_ONLY for p in required)
    with user_errors():
        auto_cli(function, as_positional=positional, args=arguments, exit_on_error=False, prog=f"warm {command}")
    return 0
