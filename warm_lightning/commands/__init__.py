"""Commands of `warm` that do not use the Trainer: a module with a function of the same name for each."""

import importlib
import inspect
from collections.abc import Callable

from jsonargparse import ArgumentParser

from warm_lightning.config import split_settings
from warm_lightning.errors import user_errors
from warm_lightning.migrations import accept_old_names, current_option
from warm_lightning.paths import expand_in_parsers

SETTINGS = "settings"
"""The name of a parameter that gets the options of `warm fit` for model and data."""


def run_command(command: str, arguments: list[str]) -> int:
    """Run the function of the same name in the module of the same name; its signature gives the arguments.

    Parameters with defaults are options, and yes-or-no ones may stand without a value. Required ones are positional,
    as in `warm dataset SRC DST`, or options where the function takes them by keyword only, as in `warm generate
    --ckpt_path C`. A function with the parameter `settings` takes the options --config, --model.… and --data.… too.
    """
    function = command_function(command)
    signature = inspect.signature(function)
    given: dict[str, list[str]] = {}
    if SETTINGS in signature.parameters:
        given[SETTINGS], arguments = split_settings(arguments)
    arguments = with_values([current_option(word) for word in arguments], signature)
    with user_errors():
        parser = command_parser(command)
        parsed = parser.parse_args(arguments)
        function(**given, **parser.instantiate(parsed))
    return 0


def command_function(command: str) -> Callable[..., None]:
    """The function of a command."""
    name = command.replace("-", "_")
    function: Callable[..., None] = getattr(importlib.import_module(f"warm_lightning.commands.{name}"), name)
    return function


def command_parser(command: str) -> ArgumentParser:
    """The parser of a command's arguments, except for those of `settings`."""
    accept_old_names()
    expand_in_parsers()
    function = command_function(command)
    described = inspect.getdoc(function) or ""
    epilog = "Which model and data: --config FILE (any number of them), --model.… and --data.…, as of `warm fit`."
    parser = ArgumentParser(
        prog=f"warm {command}",
        exit_on_error=False,
        description=described.partition("\nArgs:")[0],
        epilog=epilog if SETTINGS in inspect.signature(function).parameters else None,
    )
    parser.add_function_arguments(function, as_group=False, as_positional=True, skip={SETTINGS}, sub_configs=True)
    return parser


def with_values(arguments: list[str], signature: inspect.Signature) -> list[str]:
    """The arguments, with `--mean=true` for `--mean` where `mean` is a boolean parameter and no value follows."""
    switches = {f"--{p.name}" for p in signature.parameters.values() if p.annotation is bool}
    following = [*arguments, ""][1:]
    bare = [after.lower() not in ("true", "false", "yes", "no") for after in following]
    return [f"{a}=true" if a in switches and alone else a for a, alone in zip(arguments, bare, strict=True)]
