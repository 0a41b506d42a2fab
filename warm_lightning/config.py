"""Every way to get a model: from YAML files, from a checkpoint or exported folder, and from both together.

    load_checkpoint          a trained model from a checkpoint or exported folder alone
    load_config              an untrained module and its data from YAML files, for Python
    module_from_options      the same from options of a command
    trained_from_options     options of a command and the weights of a checkpoint
    build_model              an untrained model from plain data

The functions that need Lightning import it when they are called, so that commands that sample from a checkpoint do
without it.
"""

import copy
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser

import warm_lightning.networks  # noqa: F401  (short class names in YAML are those of imported classes)
from warm_lightning.checkpoints import (
    EMA_PREFIX,
    LOSS_PREFIX,
    MEANING,
    RAW_PREFIX,
    SECTION,
    TRAINING,
    check_same_kernel,
    check_same_meaning,
    check_same_model,
    read_checkpoint,
    with_own_loss,
    without_prefix,
)
from warm_lightning.errors import check, user_errors
from warm_lightning.migrations import current_option
from warm_lightning.model import DiffusionModel, TrainedModel
from warm_lightning.networks.base import Network
from warm_lightning.shipped import with_config_files
from warm_lightning.types import Weights

if TYPE_CHECKING:
    from warm_lightning.data import ImageDataModule
    from warm_lightning.module import DiffusionModule

# ---------------------------------------------------------------------- from checkpoints


def load_checkpoint(path: str | Path, overrides: Mapping[str, Any] | None = None) -> TrainedModel:
    """A trained model from its checkpoint or exported folder alone, on the CPU, in evaluation mode.

    Its `.model()` is the diffusion model with averaged weights, whose `.sample(...)` makes images. A folder exported
    with raw weights has `.model("raw")` only.

    Args:
        path: a `.ckpt` file that `warm fit` wrote, the folder of its run, or a folder that `warm export` wrote.
            hf://OWNER/NAME@REVISION is such a folder on the Hugging Face Hub, read by huggingface_hub and its cache.
        overrides: see `build_model`.

    Raises:
        UserError: see `read_checkpoint` and `build_model`.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint[SECTION]["config"]
    check(
        config is not None,
        f"{path}: was written by a module without a configuration; make the module yourself",
    )
    for name in overrides or {}:
        check(name.partition(".")[0] not in TRAINING, f"model.{name}: only training depends on it: leave it out")
    model, resolved = build_model(config, overrides)
    if overrides:
        check_same_meaning(config, resolved, MEANING, str(path))
    return attach_weights(model, resolved, checkpoint)


def build_model(
    config: Mapping[str, Any], overrides: Mapping[str, Any] | None = None
) -> tuple[DiffusionModel, dict[str, Any]]:
    """The model of a configuration's `model` section, with fresh weights, and that section with all defaults.

    Args:
        config: plain data, as checkpoints hold it; settings of its training, such as the learning rate, are kept.
        overrides: dotted names within the section and values, such as {"sampler.grid.steps": 36}.

    Raises:
        UserError: for a misspelt name or a wrong value.
    """
    known = inspect.signature(DiffusionModel.__init__).parameters
    of_model = {name: value for name, value in config.items() if name in known}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(DiffusionModel, "model")
    arguments = [current_option(f"--model.{name}={as_text(value)}") for name, value in (overrides or {}).items()]
    with user_errors():
        parsed = parser.parse_args(arguments, namespace=parser.parse_object({"model": of_model}))
        model = parser.instantiate(parsed).model
    resolved = json.loads(parser.dump(parsed, format="json", skip_unset=False))["model"]
    return model, {**config, **resolved}


def attach_weights(model: DiffusionModel, config: dict[str, Any] | None, checkpoint: Mapping[str, Any]) -> TrainedModel:
    """A model with the weights of a checkpoint, in evaluation mode and in the precision that they are stored in.

    Raises:
        UserError: the checkpoint is of another model.
    """
    section, saved = checkpoint[SECTION], checkpoint["state_dict"]
    expected = {
        prefix + name: value
        for prefix in (RAW_PREFIX, EMA_PREFIX)
        for name, value in model.network.state_dict().items()
    }
    of_networks = {name: tensor for name, tensor in saved.items() if not name.startswith(LOSS_PREFIX)}
    check_same_model(of_networks, expected)
    held = section.get("weights")  # of an exported folder, which has one set of weights
    networks: dict[Weights, Network] = {}
    prefixes: dict[Weights, str] = {"ema": EMA_PREFIX, "raw": RAW_PREFIX}
    for weights, prefix in prefixes.items():
        if held in (None, weights):
            network = copy.deepcopy(model.network).to(next(iter(saved.values())).dtype)
            network.load_state_dict(without_prefix(saved, prefix))
            networks[weights] = network.eval()
    model.accept(section["learned"])
    return TrainedModel(networks, model.eval(), config, section["images_seen"], section["source"])


def as_text(value: Any) -> str:
    """A value as it is typed on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


# ---------------------------------------------------------------------- from YAML files

SECTIONS = ("--config", "--model", "--data")
"""Options of `warm fit` that choose model and data."""
ANYWHERE = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.num_nodes=1",
    "--trainer.strategy=auto",
    "--trainer.precision=32-true",
]
"""Options of a Trainer that is made but not used: without them, a configuration for eight GPUs would fail here."""


def load_config(
    paths: str | Path | Sequence[str | Path], overrides: Mapping[str, Any] | None = None
) -> "tuple[DiffusionModule, ImageDataModule]":
    """The untrained LightningModule and the data of one or more YAML files, later ones overriding earlier ones.

    Args:
        paths: values of `--config`, such as "digits" or "mine/digits.yaml".
        overrides: dotted names and values, such as {"model.lr": 1e-3}; they win over the files.

    Raises:
        UserError: for a missing file, a misspelt name or a wrong value.
    """
    paths = [paths] if isinstance(paths, str | Path) else paths
    options = [f"--config={path}" for path in paths]
    return module_from_options([*options, *(f"--{name}={as_text(value)}" for name, value in (overrides or {}).items())])


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


def module_from_options(options: Sequence[str]) -> "tuple[DiffusionModule, ImageDataModule]":
    """The untrained module and the data, not yet prepared, of options such as --config=configs/digits.yaml.

    Raises:
        UserError: there is no --config, or a file, name or value is wrong.
    """
    from warm_lightning.trainer_cli import WarmCLI

    check(
        any(option.startswith("--config=") for option in options),
        "--config is missing: name the configuration of the data and model, such as --config digits",
    )
    with user_errors():
        cli = WarmCLI([*with_config_files(options), *ANYWHERE], run=False)
    return cli.model, cli.datamodule


def resolved_config(options: Sequence[str]) -> dict[str, Any]:
    """The whole configuration of some options of `warm fit`, by section, as plain data with all defaults.

    Raises:
        UserError: a file, name or value is wrong.
    """
    from warm_lightning.trainer_cli import resolver

    with user_errors():
        return resolver().resolve(with_config_files(options))


# ---------------------------------------------------------------------- from both


def trained_from_options(options: Sequence[str], ckpt_path: str) -> "tuple[TrainedModel, ImageDataModule]":
    """The model and the data of some options, with the weights of a checkpoint or exported folder.

    The process of the options may differ from the checkpoint's, for example to sample a model that was trained with
    `RandomBNR` along another path.

    Raises:
        UserError: see `module_from_options`, `read_checkpoint`, `check_same_model` and `check_same_meaning`.
    """
    checkpoint = read_checkpoint(ckpt_path)
    module, data = module_from_options([*options, "--model.init_from=null"])
    stored = checkpoint[SECTION]["config"]
    checkpoint["state_dict"] = with_own_loss(checkpoint["state_dict"], module.state_dict())
    check_same_model(checkpoint["state_dict"], module.state_dict())
    if stored and module.config:
        check_same_meaning(stored, module.config, MEANING, f"--ckpt_path {ckpt_path}")
        check_same_kernel(stored, module.config, f"--ckpt_path {ckpt_path}")
    return attach_weights(module.model("raw"), module.config, checkpoint), data
