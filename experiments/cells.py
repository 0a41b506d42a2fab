"""The cells of an experiment: what to train, and what to do with it."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from experiments.identity import SAMPLING, around, fingerprint, images_file, measuring, resolved, training
from warm_lightning.config import as_text

CONDITIONAL = "_cond"

QUIET = "--trainer.enable_progress_bar=false"

PRECISION = "--trainer.precision="

OUTPUTS = ("--trainer.default_root_dir=", "--ckpt_path=", "--outdir=", "--grid=")
"""Options that say where things are, and nothing of what they are."""
SPECTRUM = re.compile("^(--spectrum=).*/")
"""The name of this file says what it is of."""


Settings = dict[str, Any]
"""Dotted names of `warm fit` and values, such as model.lr: 1.0e-3."""
Budget = Literal["smoke", "small", "paper"]
"""smoke: does it run; small: minutes or hours, and says something; paper: the paper's own settings."""


@dataclass(frozen=True)
class Point:
    """A value of an axis that is more than one number.

    Attributes:
        overlays: files of configs/, such as method/hot, for training and sampling.
        set: settings for training and sampling.
        sample_overlays: files of configs/ for sampling only.
        sample: settings for sampling only.
        for_data: settings that this value needs on some data set, by its name.
        sampled: names of other axes, whose values are then for sampling only: one training serves them all.
        quick: settings unless the budget is the paper's, such as fewer steps of long chains.
        only: the paper's data sets that have this value; none for all of them.
    """

    overlays: list[str] = field(default_factory=list)
    set: Settings = field(default_factory=dict)
    sample_overlays: list[str] = field(default_factory=list)
    sample: Settings = field(default_factory=dict)
    for_data: dict[str, Settings] = field(default_factory=dict)
    sampled: list[str] = field(default_factory=list)
    quick: Settings = field(default_factory=dict)
    only: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Scale:
    """What a budget means for a data set.

    Attributes:
        config: YAML file of model and data.
        score: the main score's kind as `warm test` names it, with * for the number of images, such as fd*_digits.
        set: settings for training and sampling.
        images: samples in each round of scoring.
        rounds: of scoring.
        differs: what is not as in the paper, beside numbers that the report compares itself.
    """

    config: str
    score: str
    set: Settings = field(default_factory=dict)
    images: int = 50_000
    rounds: int = 1
    differs: str = ""


@dataclass(frozen=True)
class DataSet:
    """A data set on which experiments run, a file of experiments/data.

    Attributes:
        title: in words.
        budgets: what each means.
        base: name of another data set that this one is but for its settings, instead of budgets.
        set: these settings.
    """

    title: str
    budgets: dict[Budget, Scale] = field(default_factory=dict)
    base: str = ""
    set: Settings = field(default_factory=dict)


def slug(*words: object) -> str:
    """Words as the name of a folder."""
    return "-".join(re.sub(r"[^\w.]+", "-", str(word)).strip("-") for word in words if str(word))


@dataclass(frozen=True)
class Cell:
    """One combination of values, on one data set, with one training seed.

    Attributes:
        labels: of its values, by axis.
        data: name of the data set.
        data_set: what is known of it.
        scale: what the budget means there.
        budget: by its name.
        papers: the paper's data sets that it stands for; its own where nothing was replaced.
        seed: training seed.
        point: all that its values and the experiment set.
        extra: further options for all calls of `warm`, as --name=value.
    """

    labels: dict[str, str]
    data: str
    data_set: DataSet
    scale: Scale
    budget: Budget
    papers: tuple[str, ...]
    seed: int
    point: Point
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its folder."""
        return slug(self.data, *(f"{axis}-{label}" for axis, label in self.labels.items()), f"seed{self.seed}")

    @property
    def title(self) -> str:
        """In words, without its seed."""
        words = (label if axis == "system" else f"{axis} {label}" for axis, label in self.labels.items())
        return ", ".join(words) or self.data_set.title

    @property
    def training(self) -> list[str]:
        """Options that say which model is trained how."""
        here = self.point.for_data.get(self.data.removesuffix(CONDITIONAL), {})
        quick = {} if self.budget == "paper" else self.point.quick
        settings = self.scale.set | self.point.set | here | quick | {"model.seed": self.seed}
        if self.budget == "smoke":
            settings |= self.scale.set  # whatever an experiment needs, it must be quick
        return [*configs(self.scale.config, self.point.overlays), *options(settings), *self.extra]

    def trained(self) -> str:
        """All that the trained weights depend on, as JSON."""
        return json.dumps(training(self.training), sort_keys=True)

    @property
    def training_name(self) -> str:
        """Of the training's folder: the same for all cells, of all experiments, whose weights are the same."""
        digest = hashlib.sha256(self.trained().encode()).hexdigest()[:10]
        process = training(self.training)["model"]["process"]["class_path"].rpartition(".")[2]
        return slug(self.data, process, f"seed{self.seed}", digest)

    @property
    def sampling(self) -> list[str]:
        """Options of `warm` for whatever is done with the trained model, in float32 however it was trained."""
        files = configs(self.scale.config, [*self.point.overlays, *self.point.sample_overlays])
        others = [option for option in self.training if not option.startswith(("--config=", PRECISION))]
        return [*files, *others, *options(self.point.sample)]

    @property
    def images(self) -> str:
        """Which images it is of, as JSON."""
        file = self.images_file()
        here = around(resolved(self.sampling))["data"]
        return json.dumps([here, fingerprint(file) if file else None], sort_keys=True)

    def images_file(self) -> Path | None:
        """The file with its images, where they are in one."""
        return images_file(self.training)

    def meaning(self, arguments: tuple[str, ...], needs_model: bool) -> str:
        """All that a call of `warm` on it depends on, as JSON: its configuration, and what else the call says."""
        known = {*self.sampling, QUIET}
        own = [SPECTRUM.sub(r"\1", a) for a in arguments if a not in known and not a.startswith(OUTPUTS)]
        model = self.training_name if needs_model else None
        depends = measuring(self.sampling, scored=arguments[:1] == ("test",))
        return json.dumps({"call": own, "training": model, **depends}, sort_keys=True)

    @property
    def overrides(self) -> list[str]:
        """The same for commands that need no configuration but the checkpoint's: settings of the model.

        The checkpoint may be of a training that was to be sampled in another way.
        """
        before, after = (resolved(options)["model"] for options in (self.training, self.sampling))
        found = {name: value for name, value in after.items() if name in SAMPLING or before[name] != value}
        return [f"--override+={name}={as_text(value)}" for name, value in found.items()]


def configs(base: str, overlays: Sequence[str]) -> list[str]:
    """Files as options."""
    return [f"--config={path}" for path in (*([base] if base else []), *(f"configs/{o}.yaml" for o in overlays))]


def options(settings: dict[str, Any]) -> list[str]:
    """Settings as options."""
    return [f"--{name}={as_text(value)}" for name, value in settings.items()]
