"""Configurations as Python values: what notebooks and tools start from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from warm_lightning.checkpoints import SECTION, check_same_model, check_start, read
from warm_lightning.data import ImageDataModule
from warm_lightning.errors import check
from warm_lightning.lightning_cli import WarmCLI, user_errors
from warm_lightning.module import DiffusionModule


def load_config(
    paths: str | Path | Sequence[str | Path], overrides: Mapping[str, Any] | None = None
) -> tuple[DiffusionModule, ImageDataModule]:
    """The model and the data of one or more YAML files, later ones overriding earlier ones.

    Args:
        paths: such as "configs/digits.yaml".
        overrides: dotted names and values, such as {"model.lr": 1e-3}; they win over the files.

    Raises:
        UserError: for a missing file, a misspelt name or a wrong value.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    arguments = [f"--config={path}" for path in paths]
    arguments += [f"--{name}={as_text(value)}" for name, value in (overrides or {}).items()]
    with user_errors():
        cli = WarmCLI(arguments, run=False)
    return cli.model, cli.datamodule


def as_text(value: Any) -> str:
    """A value as one would type it on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def build_module(config: Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> DiffusionModule:
    """The module of a configuration's `model` section.

    Args:
        config: plain data, as checkpoints hold it.
        overrides: dotted names within the section and values, such as {"sampler.grid.steps": 36}.

    Raises:
        UserError: for a misspelt name or a wrong value.
    """
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiffusionModule, "model")
    arguments = [f"--model.{name}={as_text(value)}" for name, value in (overrides or {}).items()]
    with user_errors():
        parsed = parser.parse_args(arguments, namespace=parser.parse_object({"model": dict(config)}))
        module = parser.instantiate(parsed).model
    module.config = json.loads(parser.dump(parsed, format="json", skip_none=False))["model"]
    check_start(module.config, module.network)
    return module


def load_checkpoint(path: str | Path, overrides: Mapping[str, Any] | None = None) -> DiffusionModule:
    """A trained module from its checkpoint or exported folder alone, on the CPU, in evaluation mode.

    `.model()` of it is the diffusion model with averaged weights, whose `.sample(...)` makes images. Of a folder with
    the last ones only, it is `.model("raw")`, and `.model()` is refused.

    Args:
        path: a `.ckpt` file that `warm fit` wrote, or a folder that `warm export` did.
        overrides: see `build_module`.

    Raises:
        UserError: see `checkpoints.read` and `build_module`.
    """
    checkpoint = read(path)
    config = checkpoint[SECTION]["config"]
    check(
        config is not None,
        f"{path}: was written by a module without a configuration; make the module yourself",
    )
    module = build_module(config, {"init_from": None, **(overrides or {})})
    check_same_model(checkpoint["state_dict"], module.state_dict())
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval()
