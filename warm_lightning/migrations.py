"""Old names in checkpoints, exported folders, YAML files and commands, and the ones that replaced them.

A class that moves to another module, or a setting that gets another name, is entered here and nowhere else; whatever
was written with the old name goes on working.
"""

import re
from typing import Any

import yaml
from jsonargparse import get_loader, set_loader

MODULES = {
    "warm_lightning.callbacks.interrupt": "warm_lightning.callbacks.training",
    "warm_lightning.callbacks.log": "warm_lightning.callbacks.training",
    "warm_lightning.callbacks.progress": "warm_lightning.callbacks.training",
    "warm_lightning.data.base": "warm_lightning.data.datamodule",
    "warm_lightning.data.cifar10": "warm_lightning.data.datasets",
    "warm_lightning.data.digits": "warm_lightning.data.datasets",
    "warm_lightning.data.ffhq": "warm_lightning.data.datasets",
    "warm_lightning.data.folder": "warm_lightning.data.datasets",
    "warm_lightning.data.lsun": "warm_lightning.data.datasets",
    "warm_lightning.metrics.digits": "warm_lightning.metrics.classifiers",
    "warm_lightning.metrics.extractors": "warm_lightning.metrics.features",
    "warm_lightning.networks.ddpm": "warm_lightning.networks.unet",
    "warm_lightning.processes.paths": "warm_lightning.processes.warm",
    "warm_lightning.samplers.grids": "warm_lightning.samplers.sampler",
    "warm_lightning.samplers.loop": "warm_lightning.samplers.sampler",
}
"""Modules of classes that configurations name, before and after the move."""

SETTINGS = {"belief": "estimate_transform"}
"""Settings by their old and new names."""

_OPTION = re.compile(rf"(?<=\.)({'|'.join(SETTINGS)})(?=[=.]|$)")


def current(data: Any) -> Any:
    """Plain data with today's class paths and settings in place of old ones."""
    if isinstance(data, dict):
        return {SETTINGS.get(name, name): current(value) for name, value in data.items()}
    if isinstance(data, list):
        return [current(item) for item in data]
    return current_path(data) if isinstance(data, str) else data


def current_path(path: str) -> str:
    """Today's path of a class, from a path of any version; other text as it is."""
    module, _, name = path.rpartition(".")
    return f"{MODULES[module]}.{name}" if module in MODULES else path


def current_option(word: str) -> str:
    """Today's form of a word of a command line: an option such as --model.sampler.belief=ClippedImage, or a value."""
    if not word.startswith("-"):
        return current_path(word)
    name, equals, value = word.partition("=")
    return _OPTION.sub(lambda match: SETTINGS[match[1]], name) + equals + current_path(value)


def with_old_defaults(config: Any) -> Any:
    """The model's configuration of a checkpoint of format 4 or older, with the values that new settings had then."""
    process = config.get("process") if isinstance(config, dict) else None
    if not isinstance(process, dict) or not str(process.get("class_path")).endswith(".ProgressiveDeblurring"):
        return config
    old = {"kernel": {"class_path": "warm_lightning.processes.GaussianKernel"}}
    return config | {"process": process | {"init_args": old | (process.get("init_args") or {})}}


yaml_load = get_loader("yaml")
"""The YAML loader of jsonargparse, before `accept_old_names` replaces it."""


def accept_old_names() -> None:
    """Let all argument parsers read YAML with old names; calling it again changes nothing."""
    set_loader("yaml", lambda text: current(yaml_load(with_unique_names(text))), (yaml.YAMLError,))


def with_unique_names(text: str) -> str:
    """The text of a YAML file, after a check that no name stands twice in a mapping: the first would have no effect.

    Raises:
        YAMLError: one does.
    """
    mappings = [yaml.compose(text, yaml.SafeLoader)] if "\n" in text.strip() else []
    while mappings:
        node = mappings.pop()
        if isinstance(node, yaml.SequenceNode):
            mappings += node.value
        if not isinstance(node, yaml.MappingNode):
            continue
        names = set()
        for name, value in node.value:
            if name.value in names:
                line = name.start_mark.line + 1
                raise yaml.YAMLError(f"{name.value} stands twice in one mapping, again in line {line}: leave one")
            names.add(name.value if isinstance(name, yaml.ScalarNode) else id(name))
            mappings.append(value)
    return text
