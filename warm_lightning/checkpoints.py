"""The format of checkpoints, reading them from untrusted files, and checks that they fit a model.

A checkpoint is Lightning's, with plain data and tensors only, plus a section of this package that names the
format and holds the configuration from which the model is made. `state_dict` has the weights being trained under
`network.` and their average under `ema_network.`; and under `cost.` those of a loss that learns.
"""

import json
import os
import pickle
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from warm_lightning.errors import UserError, check, error_text
from warm_lightning.interop.exported import is_exported, read_folder
from warm_lightning.interop.hub import download
from warm_lightning.interop.pickles import refuse_training_state
from warm_lightning.migrations import current, with_old_defaults
from warm_lightning.networks.base import Network
from warm_lightning.networks.diffusers import DiffusersNetwork, is_pretrained
from warm_lightning.paths import HUB, expand_checkpoint
from warm_lightning.records import PACKAGE_VERSION, whole_file

RESULTS = "scores.json"
"""The scores of a run by `warm test`."""
SECTION = "warm_lightning"
FORMAT_VERSION = 5
KEYS = frozenset({"config", "images_seen", "nonfinite_gradients", "source", "learned"})
RAW_PREFIX, EMA_PREFIX, LEARNED_PREFIX, LOSS_PREFIX = "network.", "ema_network.", "learned.", "cost."


def _from_1(section: dict[str, Any]) -> dict[str, Any]:
    """Format 2 has the source of weights that were not trained by this package."""
    return section | {"source": None}


def _from_2(section: dict[str, Any]) -> dict[str, Any]:
    """Format 3 has the tensors that a process has learned from the training images."""
    return section | {"learned": {}}


def _from_3(section: dict[str, Any]) -> dict[str, Any]:
    """Format 4 has today's names of classes and settings in the configuration; see `migrations`."""
    return section | {"config": current(section.get("config"))}


def _from_4(section: dict[str, Any]) -> dict[str, Any]:
    """Format 5 has the blur kernel of Lee et al.'s process in the configuration."""
    return section | {"config": with_old_defaults(section.get("config"))}


MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {
    1: _from_1,
    2: _from_2,
    3: _from_3,
    4: _from_4,
}
"""Functions that turn a section of a format version into one of the next version."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU; nothing in the file is executed.

    Args:
        path: a `.ckpt` file; the folder of a run, for its last one; or a folder that `warm export` wrote, whose one set
            of weights is then returned twice, see `check_weights`. hf://OWNER/NAME is such a folder on the Hugging Face
            Hub; see `hub.download`.

    Raises:
        UserError: if the file is missing, truncated, not plain data, not a checkpoint of this package, or in a
            format that this version does not know.
    """
    address = expand_checkpoint(path)
    path = download(address) if address.startswith(HUB) else Path(address)
    checkpoint = _read_exported(path) if is_exported(path) else _read_file(path)
    check(
        isinstance(checkpoint, dict) and isinstance(checkpoint.get(SECTION), dict),
        f"{path}: not a checkpoint of warm_lightning; give one that `warm fit` wrote",
    )
    section = checkpoint[SECTION] = _migrated(path, checkpoint[SECTION])
    missing = KEYS - section.keys()
    check(
        not missing and isinstance(checkpoint.get("state_dict"), dict),
        f"{path}: damaged, it lacks {', '.join(sorted(missing)) or 'weights'}; use another one",
    )
    return checkpoint


def _read_file(path: Path) -> Any:
    check(path.is_file(), f"{path}: no such checkpoint; give the path of a .ckpt file that `warm fit` wrote")
    refuse_training_state(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: holds more than plain data, and is not loaded: {error_text(error, 200)}") from error
    except Exception as error:  # a damaged file fails in as many ways as there are bytes
        raise UserError(f"{path}: damaged or not a checkpoint ({error_text(error, 200)}); use another one") from error


def _read_exported(path: Path) -> dict[str, Any]:
    tensors, section = read_folder(path)
    learned = without_prefix(tensors, LEARNED_PREFIX)
    weights = {name: tensor for name, tensor in tensors.items() if not name.startswith(LEARNED_PREFIX)}
    state_dict = {prefix + name: tensor for prefix in (RAW_PREFIX, EMA_PREFIX) for name, tensor in weights.items()}
    return _checkpoint(state_dict, section | {"learned": learned})


def _migrated(path: Path, section: dict[str, Any]) -> dict[str, Any]:
    """The section of a checkpoint in today's format."""
    number: Any = section.get("format_version")
    check(
        isinstance(number, int) and number in {FORMAT_VERSION, *MIGRATIONS},
        f"{path}: has checkpoint format {number}, this version ({PACKAGE_VERSION}) reads 1 to {FORMAT_VERSION}; use "
        f"the version that wrote it ({section.get('package_version', 'unknown')})",
    )
    while number != FORMAT_VERSION:
        section = MIGRATIONS[number](section)
        number += 1
    return section | {"format_version": FORMAT_VERSION}


def check_new(path: Path) -> None:
    """Check that a checkpoint can be written to a path.

    Raises:
        UserError: the path exists, or its name is that of an exported model.
    """
    check(not path.exists() and not path.is_symlink(), f"{path}: already exists; give another name, or remove it")
    check(not is_exported(path), f"{path}: {path.suffix} is how exported models are named; give a name in .ckpt")


def write_checkpoint(path: Path, state_dict: Mapping[str, Tensor], section: Mapping[str, Any]) -> None:
    """Write a checkpoint without optimizer state, which can be sampled, scored and started from, but not resumed.

    Args:
        path: the new file, which appears under its name only when it is whole.
        state_dict: of a DiffusionModule.
        section: `config`, `images_seen`, `source` and possibly `learned` of the section of this package.

    Raises:
        UserError: see `check_new`; or the file cannot be written.
    """
    check_new(path)
    defaults = {
        "format_version": FORMAT_VERSION,
        "package_version": PACKAGE_VERSION,
        "nonfinite_gradients": 0,
        "learned": {},
    }
    save_checkpoint(path, _checkpoint(state_dict, defaults | dict(section)))


def save_checkpoint(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write the content of a checkpoint to a file, which appears under its name only when it is whole.

    Raises:
        UserError: the file cannot be written.
    """
    with whole_file(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(dict(checkpoint), file)
        except RuntimeError as error:  # torch's writer raises it on top of the file's own error
            cause = error.__context__
            raise cause if isinstance(cause, OSError) else OSError(str(error)) from error
        file.flush()
        os.fsync(file.fileno())  # some file systems report a full disk only now


def _checkpoint(state_dict: Mapping[str, Tensor], section: Mapping[str, Any]) -> dict[str, Any]:
    """The least that Lightning accepts as a checkpoint for `warm test`."""
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": version("lightning"),
        "state_dict": dict(state_dict),
        SECTION: dict(section),
    }


def without_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries of a state dict whose names begin with a prefix, without the prefix."""
    return {name.removeprefix(prefix): tensor for name, tensor in state_dict.items() if name.startswith(prefix)}


def check_weights(path: str | Path, checkpoint: Mapping[str, Any], weights: str, choice: bool = True) -> None:
    """Check that an exported folder holds the weights that are needed.

    Args:
        path: of the folder, or of a checkpoint, which holds both.
        checkpoint: its contents.
        weights: the weights that are needed.
        choice: whether the user could ask for the other ones, for the message.

    Raises:
        UserError: it holds the other ones only.
    """
    exported_weights = checkpoint[SECTION].get("weights", weights)
    advice = f"ask for weights {exported_weights}" if choice else f"this needs the {weights} weights: export those"
    check(exported_weights == weights, f"{path}: was exported with its {exported_weights} weights only; {advice}")


def check_same_model(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> None:
    """Check that two state dicts have the same names and shapes.

    Raises:
        UserError: they differ; it names the first difference.
    """
    for name in [*ours, *saved]:
        shapes = [list(d[name].shape) if name in d else "absent" for d in (saved, ours)]
        check(
            shapes[0] == shapes[1],
            f"the checkpoint is of another model: {name} is {shapes[0]} there and {shapes[1]} in the configuration",
        )


def with_own_loss(saved: Mapping[str, Tensor], ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's weights with those of our own loss, for all but training, which alone needs that loss."""
    of_networks = {name: tensor for name, tensor in saved.items() if not name.startswith(LOSS_PREFIX)}
    return of_networks | {name: tensor for name, tensor in ours.items() if name.startswith(LOSS_PREFIX)}


def start_from(path: str | Path, network: Network) -> dict[str, Tensor]:
    """Copy the averaged weights of a checkpoint into a fresh network, and return what its model has learned.

    Weights of a one-branch network become the first branch of one with several; the other branches then output 0.

    Args:
        path: see `read_checkpoint`; or a folder of diffusers, see `DiffusersNetwork.load_pretrained`.
        network: changed in place.

    Raises:
        UserError: see `read_checkpoint`; the file holds no averaged weights; or the two networks differ otherwise, in
            which case the first tensor that differs is named. Settings that do not show in tensors are left to
            `check_start`.
    """
    if is_pretrained(path):
        if not isinstance(network, DiffusersNetwork):
            raise UserError(f"init_from {path}: its weights are for model.network DiffusersNetwork")
        print(network.load_pretrained(path))
        return {}
    checkpoint = read_checkpoint(path)
    check_weights(path, checkpoint, "ema", choice=False)
    saved, ours = without_prefix(checkpoint["state_dict"], EMA_PREFIX), network.state_dict()
    channels = network.image_channels
    for name in ours.keys() & saved.keys():
        first = saved[name]
        all_branches = (network.branches * channels, *first.shape[1:])
        if len(first) == channels and first.shape != ours[name].shape and ours[name].shape == all_branches:
            # All else being equal, this can only be the output convolution.
            saved[name] = torch.cat([first] + [torch.zeros_like(first)] * (network.branches - 1))
    try:
        check_same_model(saved, ours)
    except UserError as error:
        raise UserError(f"init_from {path}: {error}") from error
    network.load_state_dict(saved)
    return checkpoint[SECTION]["learned"]


GUIDANCE = ("guidance", "guidance_interval", "guide")
"""Settings of the model that say how samples are guided."""
MAY_CHANGE = ("duration", "sampler", *GUIDANCE, "channels_last", "compile")
"""Settings of the model that may change when a run is resumed, and also when it has ended."""
MAY_CHANGE_WHILE_TRAINING = ("init_from", "lr", "lr_ramp", "lr_decay", "betas", "eps", "ema_half_life", "ema_ramp")
"""Settings that may also change as long as there are images to train on."""


def check_same_training(there: Mapping[str, Any] | None, config: Mapping[str, Any], ended: bool, source: str) -> None:
    """Check that a training goes on as it began: its record names the settings of now for all its images.

    Settings that only one of the two has are left out, since versions have added some.

    Raises:
        UserError: a setting differs that must not; it names the first one.

    Args:
        there: configuration of the model in the checkpoint, if it is known.
        config: configuration of the model.
        ended: whether there is nothing left to train.
        source: the checkpoint, for the message.
    """
    free = MAY_CHANGE if ended else MAY_CHANGE + MAY_CHANGE_WHILE_TRAINING
    stored = dict(dotted_settings(there or {}, ""))
    for name, value in dotted_settings(config, ""):
        _, section, *_ = name.split(".")
        different = name in stored and stored[name] != value
        if name not in stored:  # one of them is null, and the other has settings below
            parts = name.split(".")
            was_null = any(".".join(parts[:k]) in stored for k in range(2, len(parts)))
            different = was_null or (value is None and any(other.startswith(f"{name}.") for other in stored))
        check(
            not different or section in free or not UNCHECKED_ARGUMENTS.isdisjoint(name.split(".")),
            f"{source}: model{name} is {stored.get(name)} there and {value} here, and a training cannot change it: "
            "give the setting that it has, or begin another training in another folder, from these weights with "
            "--model.init_from",
        )


def check_same_kernel(there: Mapping[str, Any] | None, config: Mapping[str, Any] | None, source: str) -> None:
    """Check that a model of Lee et al.'s process blurs as that of a checkpoint, which may be older than the choice.

    Raises:
        UserError: they have different blur kernels.

    Args:
        there: configuration of the checkpoint's model, if it is known.
        config: configuration of the model, if it is known.
        source: origin of the weights, for the message.
    """
    stored, current_settings = (
        dict(dotted_settings(((c or {}).get("process") or {}).get("init_args"), "model.process"))
        for c in (there, config)
    )
    name = "model.process.kernel.class_path"
    if name in stored and name in current_settings:
        kernels = [settings[name].rpartition(".")[2] for settings in (stored, current_settings)]
        check(
            kernels[0] == kernels[1],
            f"{source}: model.process.kernel is {kernels[0]} there and {kernels[1]} here: add "
            f"--model.process.kernel={kernels[0]}",
        )


MEANING = ("network", "preconditioning", "parameterization")
"""Sections of a model's configuration that say what its weights mean."""
TRAINING = ("clock_law", "loss", "target", "noise_choice", "label_dropout", "augment", "seed")
"""Sections of a model's configuration that only training depends on."""
SAMPLING_ARGUMENTS = {"combination", "combine_noise"}
"""Arguments of parameterizations that only sampling depends on."""
UNCHECKED_ARGUMENTS = {"dropout", "activation_checkpointing", "attn_resolutions"} | SAMPLING_ARGUMENTS
"""Arguments that need no check: they do not change what weights mean, or show in the tensors' names."""


def check_start(config: Mapping[str, Any], network: Network) -> None:
    """Check that the weights of `init_from` mean the same in a model, beyond the shapes of tensors.

    This concerns settings of the network, its preconditioning and, where `start_from` copied all weights unchanged, the
    parameterization.

    Raises:
        UserError: they mean something else; it names the first difference.

    Args:
        config: of the model; nothing is checked where it has no init_from.
        network: of the model.
    """
    path = config["init_from"]
    if not path or is_pretrained(path):  # whose settings `load_pretrained` has compared
        return
    checkpoint = read_checkpoint(path)
    there = checkpoint[SECTION]["config"]
    check(there is not None, f"init_from {path}: has no configuration, which says what its weights mean; use another")
    saved, ours = without_prefix(checkpoint["state_dict"], EMA_PREFIX), network.state_dict()
    copied = all(saved[name].shape == tensor.shape for name, tensor in ours.items())
    sections = MEANING if copied else MEANING[:-1]
    check_same_meaning(there, config, sections, f"init_from {path}")


def check_same_meaning(
    there: Mapping[str, Any], config: Mapping[str, Any], sections: Iterable[str], source: str
) -> None:
    """Check that weights mean the same in another model.

    Raises:
        UserError: they mean something else; it names the first difference.

    Args:
        there: configuration of the model that the weights are of.
        config: configuration of the other model.
        sections: sections of both that matter.
        source: origin of the weights, for the message.
    """
    for section in sections:
        stored, current_settings = (dict(dotted_settings(c[section], f"model.{section}")) for c in (there, config))
        for name in {**current_settings, **stored}:
            values = [d.get(name, "absent") for d in (stored, current_settings)]
            check(
                values[0] == values[1] or not UNCHECKED_ARGUMENTS.isdisjoint(name.split(".")),
                f"{source}: {name} is {values[0]} there and {values[1]} here, so its weights mean something else: make "
                "them the same",
            )


def read_document(path: Path) -> dict[str, Any] | None:
    """The content of a YAML or JSON file of a run; None if there is no such file.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else current(yaml.safe_load(text))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read ({error_text(error, 200)}): mend or remove it") from error
    check(isinstance(content, dict), f"{path}: cannot be read: mend or remove it")
    return content


def dotted_settings(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The dotted names and plain values of nested settings."""
    if isinstance(value, Mapping):
        for key, below in value.items():
            yield from dotted_settings(below, f"{name}.{key}")
    else:
        yield name, value
