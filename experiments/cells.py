"""The cells of an experiment: combinations of values, with the options of `warm` that train and sample each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jsonargparse.typing import register_type

from warm_lightning.config import as_text

from .identity import (
    SAMPLING,
    images_file,
    images_identity,
    measurement_identity,
    resolved,
    short_hash,
    training_identity,
)

CONDITIONAL = "_cond"
"""The end of the names of data sets that are used with their classes."""

PRECISION = "--trainer.precision="

if TYPE_CHECKING:
    Plain = Any
else:

    class Plain:
        """The annotation of a value of a file that stays as YAML gives it.

        In place of `Any` parsers make an object of a `class_path` that they can import, and 1.8 of the text "1.80".
        """

    register_type(Plain, lambda value: value, lambda value: value, type_check=lambda value, kind: False)

Settings = dict[str, Plain]
"""Dotted names of options of `warm fit` and their values, such as model.lr: 1.0e-3."""
Budget = Literal["smoke", "small", "paper"]
"""smoke shows that everything runs, small takes minutes or hours, paper has the paper's own settings."""


@dataclass(frozen=True)
class Point:
    """Settings of a value of an axis, or of a whole cell, with the overlays and restrictions that go with them.

    Attributes:
        overlays: configurations for training and sampling, as values of --config, such as method/hot.
        set: settings for training and sampling.
        sample_overlays: configurations for sampling only.
        sample: settings for sampling only.
        sample_with: settings for sampling where another axis has some value, by AXIS=LABEL, such as sampler=35; they
            win over the settings of that value.
        for_data: settings that are needed on some data set, by its name, or by a size of images, such as 8x8; those by
            the name come last.
        sampled: names of other axes whose values, together with this value, only change the sampler, so that one
            training serves all of them.
        quick: settings unless the budget is the paper's, such as fewer steps of long chains.
        only: the paper's data sets that have this value; all of them if empty.
    """

    overlays: list[str] = field(default_factory=list)
    set: Settings = field(default_factory=dict)
    sample_overlays: list[str] = field(default_factory=list)
    sample: Settings = field(default_factory=dict)
    sample_with: dict[str, Settings] = field(default_factory=dict)
    for_data: dict[str, Settings] = field(default_factory=dict)
    sampled: list[str] = field(default_factory=list)
    quick: Settings = field(default_factory=dict)
    only: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scale:
    """The settings of a budget on a data set.

    Attributes:
        config: configuration of model and data, as a value of --config, such as digits.
        score: pattern of the main score's name as `warm test` prints it, with * for the number of images, such as
            fd*_digits.
        set: settings for training and sampling.
        images: samples in each round of scoring.
        rounds: of scoring.
        seeds: the least number of training seeds of experiments that train several models of each kind.
        differs: how this differs from the paper, beside numbers that the report compares by itself.
    """

    config: str
    score: str
    set: Settings = field(default_factory=dict)
    images: int = 50_000
    rounds: int = 1
    seeds: int = 1
    differs: str = ""


@dataclass(frozen=True)
class DataSet:
    """A data set on which experiments run, as a file of experiments/data describes it.

    Attributes:
        title: its name in words.
        budgets: settings of each budget.
        size: of its images, such as 8x8, if experiments have settings for images of this size.
        base: name of another data set that has the same budgets but for `set`, instead of `budgets`.
        set: settings in which it differs from `base`.
    """

    title: str
    size: str = ""
    budgets: dict[Budget, Scale] = field(default_factory=dict)
    base: str = ""
    set: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Cell:
    """One combination of an experiment's values, on one data set, with one training seed.

    Attributes:
        labels: of its values, by axis.
        data: name of the data set.
        data_set: its description.
        scale: settings of the budget on this data set.
        budget: name of the budget.
        paper_data: names of the paper's data sets whose place `data` takes; `data` itself where it is the paper's.
        seed: training seed.
        point: all that its values and the experiment set.
        extra: further options for all calls of `warm`, as --name=value.
    """

    labels: dict[str, str]
    data: str
    data_set: DataSet
    scale: Scale
    budget: Budget
    paper_data: tuple[str, ...]
    seed: int
    point: Point
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the cell's folder."""
        return slug(self.data, *(f"{axis}-{label}" for axis, label in self.labels.items()), f"seed{self.seed}")

    @property
    def title(self) -> str:
        """The labels in words, without the seed."""
        words = (label if axis == "system" else f"{axis} {label}" for axis, label in self.labels.items())
        return ", ".join(words) or self.data_set.title

    @property
    def for_data(self) -> Settings:
        """The settings that are needed on this data set, with or without its classes."""
        names = self.data_set.size, self.data.removesuffix(CONDITIONAL)
        return {name: value for key in names for name, value in self.point.for_data.get(key, {}).items()}

    @property
    def training(self) -> list[str]:
        """The options of `warm fit` that train the model."""
        quick = {} if self.budget == "paper" else self.point.quick
        settings = self.scale.set | self.point.set | self.for_data | quick | {"model.seed": self.seed}
        if self.budget == "smoke":
            settings |= self.scale.set  # a smoke test must be quick, whatever the experiment sets
        return [*config_options(self.scale.config, self.point.overlays), *setting_options(settings), *self.extra]

    @property
    def sampling(self) -> list[str]:
        """The options of `warm` for everything that is done with the trained model, in float32 in any case."""
        files = config_options(self.scale.config, [*self.point.overlays, *self.point.sample_overlays])
        settings = [option for option in self.training if not option.startswith(("--config=", PRECISION))]
        return [*files, *settings, *setting_options(self.point.sample)]

    @property
    def overrides(self) -> list[str]:
        """The options of `warm generate` for settings of the model that may differ from the checkpoint's.

        Sampling settings are among them in any case, since the checkpoint may be shared with another experiment.
        """
        trained, sampled = (resolved(options)["model"] for options in (self.training, self.sampling))
        changed = {name: value for name, value in sampled.items() if name in SAMPLING or trained[name] != value}
        return [f"--override+={name}={as_text(value)}" for name, value in changed.items()]

    @property
    def training_name(self) -> str:
        """The name of the training's folder, equal for all cells of all experiments whose weights are the same."""
        identity = self.training_identity()
        process = identity["model"]["process"]["class_path"].rpartition(".")[2]
        return slug(self.data, process, f"seed{self.seed}", short_hash(identity))

    def training_identity(self) -> dict[str, Any]:
        """All that the trained weights depend on, see `identity.training_identity`."""
        return training_identity(self.training)

    def measurement_identity(self, arguments: Sequence[str], needs_model: bool) -> dict[str, Any]:
        """All that the result of a call of `warm` on the cell depends on, see `identity.measurement_identity`."""
        return measurement_identity(self.sampling, arguments, self.training_name if needs_model else None)

    def images_identity(self) -> str:
        """The images of the cell, see `identity.images_identity`."""
        return images_identity(self.sampling)

    def images_file(self) -> Path | None:
        """The file with the images, see `identity.images_file`."""
        return images_file(self.training)


def slug(*words: object) -> str:
    """Words as the name of a folder."""
    return "-".join(re.sub(r"[^\w.]+", "-", str(word)).strip("-") for word in words if str(word))


def config_options(base: str, overlays: Sequence[str]) -> list[str]:
    """Options for configurations: a base, unless it is empty, and overlays."""
    return [f"--config={name}" for name in (*([base] if base else []), *overlays)]


def setting_options(settings: Mapping[str, Any]) -> list[str]:
    """Settings as options, such as --model.lr=0.001."""
    return [f"--{name}={as_text(value)}" for name, value in settings.items()]
