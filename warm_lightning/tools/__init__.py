"""Commands of `warm` that are not stages of the Trainer: one module and one function each."""

import importlib
import inspect

from jsonargparse import auto_cli

from warm_lightning.lightning_cli import user_errors


def run_tool(command: str, arguments: list[str]) -> int:
    """Run the function of the same name in the module of the same name; its signature gives the arguments.

    Parameters with defaults are options, and yes-or-no ones may stand without a value. Required ones are positional,
    as in `warm dataset SRC DST`, or options where the function takes them by keyword only, as in `warm generate
    --ckpt_path C`.
    """
    name = command.replace("-", "_")
    function = getattr(importlib.import_module(f"warm_lightning.tools.{name}"), name)
    arguments = with_values(arguments, inspect.signature(function))
    with user_errors():
        auto_cli(function, as_positional=True, args=arguments, exit_on_error=False, prog=f"warm {command}")
    return 0


def with_values(arguments: list[str], signature: inspect.Signature) -> list[str]:
    """The arguments with `--mean` as `--mean=true` where `mean` is a boolean parameter and no value follows."""
    switches = {f"--{p.name}" for p in signature.parameters.values() if p.annotation is bool}
    following = [*arguments[1:], ""]
    bare = [after.lower() not in ("true", "false", "yes", "no") for after in following]
    return [f"{a}=true" if a in switches and alone else a for a, alone in zip(arguments, bare, strict=True)]
