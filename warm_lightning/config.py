"""Configurations as Python values: what notebooks and tools start from."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from warm_lightning.checkpoints import SECTION, check_same_meaning, check_same_model, check_start, read
from warm_lightning.data import ImageDataModule, ImageSet
from warm_lightning.errors import check, user_errors
from warm_lightning.module import DiffusionModule
from warm_lightning.trainer_cli import WarmCLI


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


SECTIONS = ("--config", "--model", "--data")


def split_settings(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Options of the model and the data, as --name=value, and the other arguments."""
    settings, others = [], []
    words = iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        if not name.startswith(tuple(f"{section}." for section in SECTIONS)) and name not in SECTIONS:
            others.append(word)
        else:
            settings.append(word if equals else f"{word}={next(words, '')}")
    return settings, others


ANYWHERE = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
    "--trainer.precision=32-true",
]


def configured(settings: Sequence[str]) -> tuple[DiffusionModule, ImageDataModule]:
    """The untrained module and the data, not yet prepared, of options such as --config=configs/digits.yaml.

    Raises:
        UserError: there is no --config, or a file, name or value is wrong.
    """
    check(
        any(setting.startswith("--config=") for setting in settings),
        "--config is missing: name the YAML file of the data and model, such as --config configs/digits.yaml",
    )
    with user_errors():
        # A configuration made for eight GPUs would want them for the Trainer, which is not used here.
        cli = WarmCLI([*settings, "--model.init_from=null", *ANYWHERE], run=False)
    return cli.model, cli.datamodule


NETWORK = ("--model.network=DDPMpp", "--model.network.resolution=8")


class Resolved(WarmCLI):
    """Parses only."""

    def instantiate_classes(self) -> None:
        """Nothing is needed but the configuration."""

    def after_instantiate_classes(self) -> None:
        """Nor a dump of this one."""

    def resolve(self, options: Sequence[str]) -> dict[str, Any]:
        """The whole configuration of some options, as plain data."""
        self.config = self.parser.parse_args(list(options))
        self.before_instantiate_classes()
        vars(self).pop("config_dump", None)  # of earlier options
        self._dump_config()
        return dict(self.config_dump)


@cache
def resolver() -> Resolved:
    """One for all, since it takes longer to make than to use."""
    return Resolved(["--data=Digits", *NETWORK, "--scores.extractors=[Pixels]"], run=False)


def resolve(options: Sequence[str]) -> dict[str, Any]:
    """The whole configuration of some options of `warm fit`, by section, as plain data with all defaults.

    Raises:
        UserError: a file, name or value is wrong.
    """
    with user_errors():
        return resolver().resolve(options)


def trained(settings: Sequence[str], ckpt_path: str) -> tuple[DiffusionModule, ImageDataModule]:
    """The same with the weights of a checkpoint or exported folder, in evaluation mode.

    Raises:
        UserError: see `configured`, `checkpoints.read`, `check_same_model` and `check_same_meaning`; the process may be
            another, as when a plane model is to follow another path.
    """
    checkpoint = read(ckpt_path)
    module, data = configured(settings)
    check_same_model(checkpoint["state_dict"], module.state_dict())
    theirs = checkpoint[SECTION]["config"]
    if theirs and module.config:
        sections = ("network", "preconditioning", "parameterization")
        check_same_meaning(theirs, module.config, sections, f"--ckpt_path {ckpt_path}")
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval(), data


def open_split(data: ImageDataModule, split: str) -> ImageSet:
    """The images of a split; raises UserError where the data have none."""
    data.prepare_data()
    images = data.train_images() if split == "train" else data.held_out_images()
    check(images is not None, "the data have no held-out images: set them aside in --data, or ask for --split train")
    assert images is not None
    return images
