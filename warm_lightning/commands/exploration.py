"""The pictures of `warm explore`: samples, trajectories, spectra and restorations of a model for chosen settings."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser
from torch import Tensor

from warm_lightning.analysis.description import describe_path, path_figure
from warm_lightning.analysis.figures import PHONE_WIDTH, figure_png
from warm_lightning.analysis.spectrum import ring_frequencies, ring_means
from warm_lightning.analysis.spectrum_plots import samples_figure, trajectory_figure
from warm_lightning.commands.shared import check_finite
from warm_lightning.data import ImageDataModule, ImageSet
from warm_lightning.data.decode import CropResize, as_array, decode
from warm_lightning.data.image_set import dequantised_batches, random_order
from warm_lightning.data.readers import FolderReader
from warm_lightning.errors import UserError, check, error_text, user_errors
from warm_lightning.images import dequantise, quantise
from warm_lightning.metrics.fidelity import Fidelity
from warm_lightning.migrations import current
from warm_lightning.model import DiffusionModel, TrainedModel, check_data
from warm_lightning.parameterizations import denoised_image
from warm_lightning.processes import Process
from warm_lightning.processes.base import LARGE, per_image
from warm_lightning.restoration import Coordinate, Start, find_clock, find_start, observe
from warm_lightning.rng import SeedStreams, key, parse_seeds
from warm_lightning.samplers import Sampler
from warm_lightning.spectral import idct, power_spectrum
from warm_lightning.types import Level, Weights

MOST_IMAGES = 100
"""The largest number of samples at once."""
MOST_STEPS = 64
"""The largest number of steps that is offered for a grid without a limit of its own, unless the model has more."""
COLUMNS = 9
"""The number of levels of a trajectory that are shown, with the first and the last one."""
DATA_IMAGES = 2000
"""The number of images of the data, chosen at random, whose spectrum is shown."""
RULES = (("Heun", {"eta": 0.0}), ("Euler", {"eta": 0.0}), ("Multistep", {"order": 2}), ("Multistep", {"order": 3}))
"""Step rules that are offered beside the model's own."""
HIGHEST: dict[Coordinate, float] = {"beta": 3.0, "alpha": 10.0}
"""The most noise, and the most pixels of blur, that are offered for a picture that is to be restored."""
STATE, DENOISED, RESIDUAL, SUM = "u", "D", "R", "D + R"

Report = Callable[[float, str], None]
"""A function that is told which share of the work is done, from 0 to 1, and what is being done."""


# ---------------------------------------------------------------------- data


@dataclass(frozen=True)
class ExploredData:
    """Images of the data that a model was trained on.

    Attributes:
        images: the training images.
        power: the power of at most `DATA_IMAGES` of them in each ring of frequencies, float64 [rings].
        count: their number.
    """

    images: ImageSet
    power: Tensor
    count: int

    @classmethod
    def of(cls, data: ImageDataModule, model: DiffusionModel) -> "ExploredData":
        """The training images of a data set and their spectrum; nothing is downloaded.

        Raises:
            UserError: the images are missing, or not of the model's size.
        """
        images = data.train_images()
        check_data(model.network, data)
        chosen = images.take(random_order(len(images), seed=0)[:DATA_IMAGES])
        batches = dequantised_batches(ImageSet.without_classes(chosen), "Measuring power")
        return cls(images, ring_means(power_spectrum(batches).mean(0)), len(chosen))


def data_of_run(config: Path) -> ImageDataModule:
    """The data set of a run, from its configuration.

    Args:
        config: the run's `config.yaml`, whose other sections are not read.

    Raises:
        UserError: it is damaged, or names data that cannot be made.
    """
    try:
        section = current(yaml.safe_load(config.read_text(encoding="utf-8"))["data"])
    except (yaml.YAMLError, UnicodeError, KeyError, TypeError) as error:
        raise UserError(f"{config} is not the configuration of a run ({error_text(error)})") from error
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--data", type=ImageDataModule)
    with user_errors():
        data: ImageDataModule = parser.instantiate(parser.parse_object({"data": section})).data
    return data


# ---------------------------------------------------------------------- sampling


@dataclass(frozen=True)
class Settings:
    """Settings of sampling; None for as trained.

    Attributes:
        seeds: such as "0-15".
        steps: number of levels above the last one.
        rule: one of `Choices.rules`.
        eta: η, for rules that have it.
        churn: S_churn; 0 for none.
        bnr: blur-to-noise ratio of the path.
        guidance: weight of guidance; 1 for none.
        label: class of all images; None for each seed's own.
    """

    seeds: str = "0-15"
    steps: int | None = None
    rule: str | None = None
    eta: float | None = None
    churn: float | None = None
    bnr: float | None = None
    guidance: float | None = None
    label: int | None = None


def parse_few_seeds(text: str) -> list[int]:
    """The seeds of one picture; raises as `parse_seeds` does, and if there are more than `MOST_IMAGES`."""
    seeds = parse_seeds(text)
    check(len(seeds) <= MOST_IMAGES, f"{len(seeds)} seeds: give at most {MOST_IMAGES} for one picture")
    return seeds


@dataclass(frozen=True)
class Choices:
    """The settings of sampling that a model has, with their values as trained.

    Attributes:
        steps: number of steps, and the most that are offered; None where the network knows its own steps only.
        rules: the plain data of each step rule by its name, the model's own first.
        eta: η as trained.
        churn: S_churn as trained; None where the network knows its own levels only.
        bnr: the lowest and the highest BNR, and that of sampling; None for a model of one path.
        guidance: weight of guidance; None for a model that cannot be guided.
        label_dim: number of classes.
    """

    steps: tuple[int, int] | None
    rules: dict[str, dict[str, Any]]
    eta: float
    churn: float | None
    bnr: tuple[float, float, float] | None
    guidance: float | None
    label_dim: int

    def has_eta(self, rule: str) -> bool:
        """Whether a rule takes η."""
        return "eta" in self.rules[rule]["init_args"]


@dataclass(frozen=True)
class Column:
    """One level of a trajectory.

    Attributes:
        alpha: blur in pixels.
        beta: noise.
        pixels: the state u, D, R and D + R of the first seed, float64 [C, H, W]; at the last level u alone. States are
            scaled so that image and pure noise both fit the range.
        power: the power of each in every ring of frequencies over all seeds, float64 [rings]; empty for a single seed.
    """

    alpha: float
    beta: float
    pixels: dict[str, Tensor]
    power: dict[str, Tensor]


@dataclass(frozen=True)
class Run:
    """Samples, and how they came about.

    Attributes:
        seeds: one for each sample.
        classes: likewise; None for a model without classes.
        images: uint8 [B, C, H, W].
        columns: some levels of the trajectory, from the first to the last.
        nfe: network calls for each image.
        model: the model with the sampler and process of the settings.
    """

    seeds: list[int]
    classes: list[int] | None
    images: Tensor
    columns: list[Column]
    nfe: int
    model: DiffusionModel

    @property
    def residual_factor(self) -> float:
        """The factor by which R is shown, so that its largest value is white or black: 1 or more, of two digits."""
        largest = max((c.pixels[RESIDUAL].abs().max().item() for c in self.columns if RESIDUAL in c.pixels), default=0)
        return max(1.0, float(f"{1 / largest:.2g}")) if largest else 1.0

    def pictures(self, column: Column) -> dict[str, Tensor]:
        """The parts of the first seed at a level as they are shown, uint8 [C, H, W]; R by `residual_factor`."""
        factors = {RESIDUAL: self.residual_factor}
        return {name: quantise(pixels * factors.get(name, 1.0)) for name, pixels in column.pixels.items()}

    def path(self) -> bytes:
        """The path through the blur-noise plane with the levels of the sampler, as a PNG file."""
        process, grid = self.model.process, self.model.sampler.grid
        description = describe_path(process, self.model.clock_law, grid)
        return figure_png(path_figure(description, type(process).__name__, PHONE_WIDTH, 4.8))

    def spectra(self, data: ExploredData | None) -> tuple[bytes, bytes] | None:
        """Spectra by radius as PNG files: of the samples, and of u, D, R and D + R at the levels shown.

        That of the data is drawn with them where it is known. None for a single seed, which has no variance.
        """
        if len(self.seeds) == 1:
            return None
        radii = [ring["radians_per_pixel"] for ring in ring_frequencies(self.images[0].double())]
        whole = {f"{len(self.seeds)} samples": self.columns[-1].power[STATE]}
        if data:
            whole[f"data, {data.count:,} images"] = data.power
        levels = [(f"β = {column.beta:.2g}", column.power) for column in self.columns]
        reference = list(whole.values())[-1]
        return figure_png(samples_figure(radii, whole)), figure_png(trajectory_figure(radii, levels, reference))


def power(pixels: Tensor) -> Tensor:
    """The power of images [B, C, H, W] in each ring of frequencies, [rings]: the unbiased variance."""
    return ring_means(power_spectrum(pixels).mean(0)) * len(pixels) / (len(pixels) - 1)


# ---------------------------------------------------------------------- restoration


@dataclass(frozen=True)
class RestoreChoices:
    """The levels from which a model restores images.

    Attributes:
        coordinate: what a level is chosen by: noise β, or blur α for a model whose noise is constant.
        lowest: the least of it.
        highest: the most that is offered.
        value: the first choice.
    """

    coordinate: Coordinate
    lowest: float
    highest: float
    value: float


@dataclass(frozen=True)
class Restoration:
    """A picture, degraded and restored.

    Attributes:
        pictures: the picture, the degraded one and the restored ones by their names, uint8 [C, H, W].
        psnr: in decibels, of all but the first.
        ssim: likewise.
        start: the level.
    """

    pictures: dict[str, Tensor]
    psnr: dict[str, float]
    ssim: dict[str, float]
    start: Start


PICTURE, DEGRADED, MEAN, SAMPLE = "picture", "degraded", "restored, mean", "restored, sample"


class Upload(FolderReader):
    """A reader of one uploaded file, whose place on this machine is not named in errors."""

    def locate(self, name: str) -> str:
        return f"the picture {name}"


def read_picture(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Read a picture of any size, cropped to its largest centred square and resized: uint8 [C, H, W] of a shape.

    Raises:
        UserError: see `open_image`.
    """
    channels, size, _ = shape
    image = decode(Upload(path.parent), path.name, size, path.name, CropResize("center", size))
    return torch.from_numpy(as_array(image.convert("L" if channels == 1 else "RGB")).copy())


# ---------------------------------------------------------------------- the model


class Explored:
    """A trained model whose samples and restorations are looked at under many settings.

    Args:
        trained: the model.
        weights: "ema" or "raw".
        device: where the network is put.
        data: its data, if they can be had.
    """

    def __init__(
        self,
        trained: TrainedModel,
        weights: Weights = "ema",
        device: torch.device | str = "cpu",
        data: ExploredData | None = None,
    ) -> None:
        self.config: dict[str, Any] = trained.config or {}
        self.model = trained.model(weights)
        self.model.network.to(device)
        self.data = data

    # ------------------------------------------------------------------ what can be set

    @cached_property
    def choices(self) -> Choices:
        """The settings of sampling that the model has."""
        model, section = self.model, self.config["sampler"]
        rules = {rule_name(section["rule"]): section["rule"]}
        any_step = model.parameterization.max_stride == math.inf
        if any_step:
            for name, arguments in RULES:
                spec = {"class_path": f"warm_lightning.samplers.{name}", "init_args": arguments}
                if name != "Multistep" or self.noisy:
                    rules.setdefault(rule_name(spec), spec)
        grid = model.sampler.grid
        most = int(grid.outline()[0]) if getattr(grid, "whole", False) else max(MOST_STEPS, grid.steps)
        can_be_guided = model.guide is not None or (model.network.label_dim > 0 and model.label_dropout > 0)
        own_churn = model.sampler.churn.churn if model.sampler.churn else 0.0
        return Choices(
            steps=(grid.steps, most) if any_step else None,
            rules=rules,
            eta=section["rule"]["init_args"].get("eta", 0.0),
            churn=own_churn if any_step else None,
            bnr=bnr_range(model.process, self.first),
            guidance=model.guidance if can_be_guided else None,
            label_dim=model.network.label_dim,
        )

    @property
    def first(self) -> Tensor:
        """The clock reading of the first level, float64 [1]."""
        return self.model.sampler.grid.outline()[:1]

    @property
    def noisy(self) -> bool:
        """Whether there is noise at every level but the last, in every frequency."""
        levels = [self.model.process.level(clock) for clock in self.model.sampler.grid.outline().split(1)]
        try:
            self.model.process.check_noise(levels, torch.zeros(1, *self.model.image_shape, dtype=torch.float64))
        except UserError:
            return False
        return True

    def configured(self, settings: Settings) -> DiffusionModel:
        """The model with the sampler, process and guidance of some settings.

        Raises:
            UserError: a value is wrong.
        """
        section = copy.deepcopy(self.config["sampler"])
        if settings.steps is not None:
            section["grid"]["init_args"]["steps"] = settings.steps
        if settings.rule is not None:
            check(settings.rule in self.choices.rules, f"rule {settings.rule}: choose {', '.join(self.choices.rules)}")
            section["rule"] = copy.deepcopy(self.choices.rules[settings.rule])
        if settings.eta is not None and "eta" in section["rule"]["init_args"]:
            section["rule"]["init_args"]["eta"] = settings.eta
        if settings.churn is not None:
            own = (section["churn"] or {}).get("init_args", {})
            churn = {"class_path": "warm_lightning.samplers.Churn", "init_args": {**own, "churn": settings.churn}}
            section["churn"] = churn if settings.churn else None
        parser = ArgumentParser(exit_on_error=False)
        parser.add_argument("--sampler", type=Sampler)
        with user_errors():
            sampler = parser.instantiate(parser.parse_object({"sampler": section})).sampler
        process = self.model.process
        model = self.model.replaced(
            process=process if settings.bnr is None else process.nearest_path(settings.bnr, 1.0),
            guidance=self.model.guidance if settings.guidance is None else settings.guidance,
        )
        learned = self.model.learned
        model.sampler = model.fitted(sampler)
        model.accept(learned)  # a new grid has not learned yet what that of the checkpoint has
        return model

    # ------------------------------------------------------------------ samples

    def run(self, settings: Settings, report: Report = lambda share, text: None) -> Run:
        """Sample, and watch the trajectory.

        Raises:
            UserError: a setting is wrong, or there are samples that are not finite.
        """
        seeds = parse_few_seeds(settings.seeds)
        report(0.0, "Sampling")
        model = self.configured(settings)
        sampler, process = model.sampler, model.process
        classes = model.start(seeds)[2] if settings.label is None else [settings.label] * len(seeds)
        steps = len(sampler.grid.clocks()) - 1
        shown = torch.linspace(0, steps, COLUMNS).round().unique().long().tolist()
        columns: list[Column] = []
        met = 0

        def watch(u: Tensor, level: Level) -> None:
            nonlocal met
            report(met / (steps + 1), f"Step {met} of {steps}")
            if met in shown:
                columns.append(self._column(u, level, process, None if process.ends(level) else estimator))
            met += 1

        with model.conditioned(classes) as network:
            transform = sampler.estimate_transform
            estimator = transform(network, process) if transform else network
            images = model.sample(sampler, seeds, classes, watch)
        check_finite(images, [f"of seed {seed}" for seed in seeds])
        levels = sampler.grid.levels(process)
        return Run(seeds, classes, quantise(images), columns, model.nfe(sampler.rule, levels), model)

    @staticmethod
    def _column(u: Tensor, level: Level, process: Process, estimator: Any) -> Column:
        """One level of a trajectory from the states u [B, C, H, W], with one more network call.

        D is u - B∘ε̂, the image with its blur and without its noise, and R is D + R less D. For the paper's
        parameterization (Table 5d) these are the two outputs of the network.
        """
        gains = process.gains(level, u)
        parts = {STATE: u}
        if estimator is not None:
            estimate = estimator(u, level)
            both, denoised = denoised_image(u, estimate, gains), u - gains.noise * estimate.noise
            parts |= {DENOISED: denoised, RESIDUAL: both - denoised, SUM: both}
        pixels = {name: idct(part).cpu() for name, part in parts.items()}
        spread = (per_image(process.scale(level), u).square() + gains.noise_scale.square()).sqrt().cpu()
        return Column(
            level.alpha.item(),
            level.beta.item(),
            {name: images[0] / spread[0] if name == STATE else images[0] for name, images in pixels.items()},
            {name: power(images) for name, images in pixels.items()} if len(u) > 1 else {},
        )

    # ------------------------------------------------------------------ restoration

    @cached_property
    def restore_choices(self) -> RestoreChoices:
        """The levels from which the model restores images.

        Raises:
            UserError: there are none.
        """
        process, clocks = self.model.process, self.model.sampler.grid.outline()
        least, most = process.level(clocks[-2:-1]), process.level(clocks[:1])
        coordinate: Coordinate = "beta" if most.beta > least.beta else "alpha"
        lowest, highest = (getattr(level, coordinate).item() for level in (least, most))
        highest = min(HIGHEST[coordinate], highest)
        lowest = max(lowest, highest / 100)
        choices = RestoreChoices(coordinate, lowest, highest, highest / 6)
        self.start(choices.value, coordinate=coordinate)
        return choices

    def start(self, value: float, bnr: float | None = None, coordinate: Coordinate | None = None) -> Start:
        """The start of a restoration from the level with a noise (or blur) of some value.

        Raises:
            UserError: the model has no such level, or cannot restore from it.
        """
        model, coordinate = self.model, coordinate or self.restore_choices.coordinate
        process = model.process if bnr is None else model.process.nearest_path(bnr, 1.0)
        clock = find_clock(process, self.first, coordinate, value)
        check(clock is not None, f"the model has no level with {coordinate} {value:g}: choose another")
        assert clock is not None
        level, like = process.level(clock), torch.zeros(1, *model.image_shape, dtype=torch.float64)
        grid = model.sampler.grid
        return find_start(process, grid, like, level.alpha.item(), level.beta.item(), add_noise=True)

    def picture(self, seed: int) -> tuple[Tensor, int | None, str]:
        """A picture to restore where none is given: an image of the data, or else a sample.

        Returns:
            uint8 [C, H, W], its class if it has one, and its origin in words.
        """
        if self.data:
            index = torch.tensor([seed % len(self.data.images)])
            label = int(self.data.images.labels[index]) if self.model.network.label_dim else None
            return self.data.images.take(index)[0], label, f"training image {index.item()}"
        classes = self.model.start([seed])[2]
        image = quantise(self.model.sample(self.model.sampler, [seed], classes))[0]
        return image, classes[0] if classes else None, f"the model's own sample of seed {seed}"

    def restore(
        self,
        picture: Tensor,
        value: float,
        bnr: float | None = None,
        seed: int = 0,
        label: int | None = None,
        report: Report = lambda share, text: None,
    ) -> Restoration:
        """Degrade a picture and restore it, as `warm restore --degrade` does, as the mean and as a sample.

        Args:
            picture: uint8 [C, H, W].
            value: noise, or blur; see `RestoreChoices`.
            bnr: for a model that knows a range of them.
            seed: of the added noise, and of a stochastic sampler.
            label: the picture's class; None where it is not known.
            report: see `Report`.

        Raises:
            UserError: see `start`; or the class is needed.
        """
        model = self.model
        label_dim = model.network.label_dim
        check(
            label is not None or not label_dim or model.label_dropout > 0,
            "the model was trained with classes: choose that of the picture",
        )
        start = self.start(value, bnr)
        level = start.level
        clean = dequantise(picture[None], torch.float64)
        noise = SeedStreams([key(seed, "degrade")])
        pictures = {PICTURE: clean, DEGRADED: observe(clean, level.alpha.item(), level.beta.item(), noise)}
        classes = None if label is None else [label]
        for name, mean in ((MEAN, True), (SAMPLE, False)):
            if mean and model.parameterization.max_stride < math.inf:
                continue  # it estimates the image one step ahead, which gives no mean
            report(len(pictures) / 4, f"{name}…")
            restored = model.restore(model.sampler, start, pictures[DEGRADED], [seed], classes, mean)
            pictures[name] = check_finite(restored, [f"restored from noise {level.beta.item():g}"])
        bits = {name: quantise(image) for name, image in pictures.items()}
        fidelity = Fidelity(picture.shape[-1])
        scores = {name: fidelity(bits[name], bits[PICTURE]) for name in bits if name != PICTURE}
        psnr, ssim = ({n: scores[n][measure].item() for n in scores} for measure in ("psnr", "ssim"))
        return Restoration({name: image[0] for name, image in bits.items()}, psnr, ssim, start)

    def restore_nfe(self, start: Start) -> int:
        """Network calls for a restored sample."""
        sampler = self.model.sampler
        return self.model.nfe(sampler.rule, start.levels(sampler.grid))


def rule_name(spec: dict[str, Any]) -> str:
    """A step rule in words, such as "Multistep order 2"; its η is a setting of its own."""
    arguments = [f"{name} {value}" for name, value in spec["init_args"].items() if name != "eta"]
    return " ".join([spec["class_path"].rpartition(".")[2], *arguments])


def bnr_range(process: Process, first: Tensor) -> tuple[float, float, float] | None:
    """The lowest and the highest BNR that a model was trained on, and that of sampling; None for a single path.

    Args:
        process: of the model.
        first: a clock reading with noise, float64 [1].
    """
    beta = process.level(first).beta.item()
    if beta == 0:
        return None
    paths = process.nearest_path(0.0, beta), process.nearest_path(LARGE, beta), process
    low, high, own = (path.level(first).alpha.item() / beta for path in paths)
    return (low, high, own) if low < high else None
