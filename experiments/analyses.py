"""Measures beside scores: description, oracle error, spectrum, drift and bits per dimension of a cell."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from warm_lightning.config import split_settings
from warm_lightning.records import finite

from .cells import Cell
from .figures import drift_figure, path_figure, snr_figure
from .measures import Measure, Reading, load


def model_and_data(cell: Cell) -> list[str]:
    """The options of a cell that describe model and data, without those of Trainer and scores."""
    return split_settings(cell.sampling)[0]


@dataclass(frozen=True)
class Description(Measure):
    """The description of a configuration, without training: `warm describe`.

    Attributes:
        of: the part that is shown: network and recipe, the path through the blur-noise plane, or the signal-to-noise
            ratio of each frequency, for which the training images are read.
    """

    of: Literal["network", "path", "snr"] = "network"

    needs_model = False
    result_file = "describe.json"
    recipe = ("duration", "lr_ramp", "ema_half_life")

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        snr = ["--snr=true"] if self.of == "snr" else []
        return ["describe", *model_and_data(cell), f"--outdir={folder}", *snr]

    def read(self, cell: Cell, folder: Path) -> Reading:
        content = load(folder / "describe.json")
        recipe = content["hyperparameters"]
        values = {"parameters (M)": content["parameters"] / 1e6}
        values |= {f"{name} (Mimg)": recipe[name] / 1e6 for name in self.recipe}
        values |= {"batch size": recipe["batch_size"], "learning rate (1e-4)": recipe["lr"] * 1e4}
        values |= {"dropout": recipe["dropout"], "GFLOPs a call": content["flops_per_call"] / 1e9}
        sampled, trained = content["sampling"], content["trained"]
        path = {"largest blur (pixels)": sampled["alpha"][0], "largest noise": sampled["beta"][0]}
        path |= {"its BNR at the median level of training": trained["bnr"][1]}
        path = {name: value for name, value in path.items() if finite(value)}
        if self.of != "network":
            return Reading(values | path, list(path), {"nfe": content["nfe"]})
        return Reading(values | path, list(values), {"nfe": content["nfe"]}, words=network_shape(recipe))

    def pictures(self, cells: Sequence[tuple[Cell, Path]]) -> dict[str, Figure | bytes]:
        if self.of == "network":
            return {}
        described = {cell.title: load(folder / "describe.json") for cell, folder in cells}
        if self.of == "snr":
            return {"Signal-to-noise ratio of each frequency": snr_figure(described)}
        return {"Paths through the blur-noise plane": path_figure(described)}


def network_shape(network: Mapping[str, Any]) -> dict[str, str]:
    """The shape of a network in the rows of Table 6."""
    multipliers, attention = network["channel_mult"], sorted(network["attn_resolutions"])
    channels = {network["resolution"] >> depth: network["model_channels"] * m for depth, m in enumerate(multipliers)}
    width = network.get("channels_per_head")
    heads = [channels[r] // width for r in reversed(attention) if r in channels] if width else [1] if attention else []
    return {
        "channels": str(network["model_channels"]),
        "multipliers": "-".join(map(str, multipliers)),
        "blocks": str(network["num_blocks"]),
        "attention at": "/".join(map(str, attention)),
        "heads": "-".join(map(str, heads)),
    }


ORACLE_MEANINGS = {
    "frechet": "squared Fréchet distance to the data, lower is better",
    "frechet_ode": "squared Fréchet distance to the exact ODE's samples, lower is better",
    "landed": "share of samples that are an image of the data",
    "rms_ode": "root mean square distance to the exact ODE's samples, lower is better",
}


@dataclass(frozen=True)
class Oracle(Measure):
    """The distance from the data at which sampling with a perfect network ends: `warm oracle`.

    Attributes:
        kind: whether the network knows the data as N(0, diag S) with their spectrum S, or the images themselves.
        limit: number of training images that the dataset oracle knows.
        ode_steps: see `warm oracle`.
    """

    kind: Literal["gaussian", "dataset"] = "gaussian"
    limit: int = 1000
    ode_steps: int = 256

    needs_model = False
    result_file = "oracle.json"

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        options = [f"--limit={self.limit}", f"--ode_steps={self.ode_steps}"]
        if self.kind == "gaussian":
            options = [f"--spectrum={folder.parents[2] / f'spectrum-{cell.data}-{cell.images_identity()}.npz'}"]
        return ["oracle", *model_and_data(cell), f"--kind={self.kind}", f"--outdir={folder}", *options]

    def read(self, cell: Cell, folder: Path) -> Reading:
        content = load(folder / "oracle.json")
        shown = ["frechet", "frechet_ode"] if self.kind == "gaussian" else ["landed", "rms_ode"]
        values = {name: value for name, value in content.items() if isinstance(value, int | float) and name != "nfe"}
        shown = [name for name in shown if name in values]
        return Reading(values, shown, {"nfe": content["nfe"]}, meanings=ORACLE_MEANINGS)


@dataclass(frozen=True)
class Spectrum(Measure):
    """The power spectrum of the data and the BNR that it suggests: `warm spectrum`.

    Attributes:
        tolerance: the attenuation that is accepted where signal and noise are equal; the suggested BNR has this one.
        bnrs: for the picture of what a model sees and is asked for.
        noise: level β of that picture.
    """

    tolerance: float = 0.03
    bnrs: str = "0,0.5,2"
    noise: float = 0.5

    needs_model = False
    result_file = "spectrum.json"
    files = ("spectrum", "bnr", "targets")

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        options = [f"--tolerance={self.tolerance}", f"--bnrs={self.bnrs}", f"--noise={self.noise}"]
        return ["spectrum", *model_and_data(cell), *options, f"--outdir={folder}"]

    def read(self, cell: Cell, folder: Path) -> Reading:
        content = load(folder / "spectrum.json")
        values = {name: value for name, value in content.items() if isinstance(value, int | float)}
        below = content["protocol"]["fit_below"]
        values["fitted below λ of"] = math.inf if below is None else below
        shown = ["tolerance", "fitted below λ of", "bnr", "bnr_measured", "c_at_s1", "c", "s"]
        return Reading(values, [name for name in shown if name in values and finite(values[name])])

    def pictures(self, cells: Sequence[tuple[Cell, Path]]) -> dict[str, Figure | bytes]:
        titles = ("Power by frequency", "Attenuation where signal meets noise", "What a model sees and is asked for")
        return {
            f"{title}{', ' + cell.title if cell.labels else ''}": (folder / f"{file}.png").read_bytes()
            for cell, folder in cells
            for title, file in zip(titles, self.files, strict=True)
        }


DRIFT_MEANINGS = {
    "drift": "rms over levels of ln(noise seen / noise of true images), lower is better",
    "power_drift": "rms over levels of ln(power / expected power), lower is better",
    "residual_drift": "rms over levels of ln(detail added / for true images), lower is better",
}


@dataclass(frozen=True)
class Drift(Measure):
    """The distance between sampling trajectories and truly degraded images: `warm drift`.

    Attributes:
        num_images: number of trajectories; fewer in a smoke run.
    """

    num_images: int = 256

    result_file = "drift.json"

    def network_calls(self, cell: Cell, nfe: int) -> float:
        return 3.0 * min(self.num_images, cell.scale.images) * nfe

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        count = min(self.num_images, cell.scale.images)
        paths = [f"--ckpt_path={checkpoint}", f"--outdir={folder}", f"--num_images={count}"]
        return ["drift", *model_and_data(cell), *paths]

    def read(self, cell: Cell, folder: Path) -> Reading:
        content = load(folder / "drift.json")
        values = {f"{row['quantity']}_{row['band']}": row["rms"] for row in content["summary"]}
        main = {name: content[name] for name in DRIFT_MEANINGS if finite(content[name])}
        names = ("num_images", "weights", "images_seen", "nfe", "device")
        protocol = {name: content["protocol"].get(name) for name in names}
        protocol["sample_seeds"] = content["protocol"]["seeds"]
        all_bands = {row["quantity"]: row["chance"] for row in content["summary"] if row["band"] == "all"}
        chance = {name: all_bands[name.removesuffix("drift").rstrip("_") or "noise"] for name in main}
        references = {f"chance alone ({cell.title})": chance}
        return Reading(main | values, list(main), protocol, references, meanings=DRIFT_MEANINGS)

    def pictures(self, cells: Sequence[tuple[Cell, Path]]) -> dict[str, Figure | bytes]:
        by_others: dict[str, list[tuple[str, dict[str, Any]]]] = {}  # a figure has a colour for each first label
        for cell, folder in cells:
            first, *others = [f"{axis} {label}" for axis, label in cell.labels.items()] or [cell.title]
            by_others.setdefault(", ".join(others), []).append((first, load(folder / "drift.json")))
        title, seed = "Drift along trajectories", f"training seed {cells[0][0].seed}"
        return {
            ", ".join(filter(None, (title, others, seed))): drift_figure(contents)
            for others, contents in by_others.items()
        }


@dataclass(frozen=True)
class Bits(Measure):
    """Bits per dimension by the probability-flow ODE: `warm bits`.

    Attributes:
        num_images: the largest number of images.
        split: which images: held_out or train.
        steps: number of steps of Heun's rule.
        last_noise: noise level β of the last level, by which models of different samplers are compared; None for the
            sampler's own.
        only: labels by axis, such as sampler: "35", of the cells that are measured; all if empty.
    """

    num_images: int = 256
    split: Literal["held_out", "train"] = "train"
    steps: int = 100
    last_noise: float | None = None
    only: dict[str, str] = field(default_factory=dict)

    result_file = "bits.json"

    def applies(self, cell: Cell) -> bool:
        return self.only.items() <= cell.labels.items()

    def network_calls(self, cell: Cell, nfe: int) -> float:
        return 3.0 * 2 * self.steps * min(self.num_images, cell.scale.images)

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        count = min(self.num_images, cell.scale.images)
        paths = [f"--ckpt_path={checkpoint}", f"--outdir={folder}", f"--num_images={count}"]
        noise = [] if self.last_noise is None else [f"--last_noise={self.last_noise}"]
        return ["bits", *model_and_data(cell), *paths, f"--split={self.split}", f"--steps={self.steps}", *noise]

    def read(self, cell: Cell, folder: Path) -> Reading:
        content = load(folder / "bits.json")
        names = ("bpd", "standard_error", "excess_at_most", "prior_gap")
        protocol = {name: content[name] for name in ("nfe", "num_images")}
        protocol |= {"sample_seeds": str(content["protocol"]["seed"])}
        protocol |= {name: content["protocol"][name] for name in ("weights", "images_seen", "device")}
        values = {name: content[name] for name in names if finite(content[name])}
        meanings = {"bpd": "bits per dimension, lower is better"}
        per_image = {"bpd": content["per_image"]}
        shown = ["bpd", "standard_error", "excess_at_most"]
        return Reading(values, shown, protocol, meanings=meanings, per_image=per_image)
