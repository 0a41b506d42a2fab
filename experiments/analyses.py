"""Measures beside scores: what a configuration is, what its oracle, its spectrum, its drift and its bits are."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from experiments.cells import Cell
from experiments.measures import Measure, Reading, load
from warm_lightning.config import split_settings
from warm_lightning.records import finite


def model_and_data(cell: Cell) -> list[str]:
    """A cell's options without those of the Trainer's callbacks."""
    return split_settings(cell.sampling)[0]


@dataclass(frozen=True)
class Description(Measure):
    """What a configuration is, without training: `warm describe`.

    Attributes:
        of: its network and recipe, or its path through the blur-noise plane.
    """

    of: Literal["network", "path"] = "network"

    trains = False
    makes = "describe.json"
    recipe = ("duration", "lr_ramp", "ema_half_life")

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        return ["describe", *model_and_data(cell), f"--outdir={folder}"]

    def read(self, cell: Cell, folder: Path) -> Reading:
        found = load(folder / "describe.json")
        recipe = found["hyperparameters"]
        values = {"parameters (M)": found["parameters"] / 1e6}
        values |= {f"{name} (Mimg)": recipe[name] / 1e6 for name in self.recipe}
        values |= {"batch size": recipe["batch_size"], "learning rate (1e-4)": recipe["lr"] * 1e4}
        values |= {"dropout": recipe["dropout"], "GFLOPs a call": found["flops_per_call"] / 1e9}
        first, middle = found["sampling"], found["trained"]
        path = {"largest blur (pixels)": first["alpha"][0], "largest noise": first["beta"][0]}
        path |= {"its BNR at the median level of training": middle["bnr"][1]}
        path = {name: value for name, value in path.items() if finite(value)}
        if self.of == "path":
            return Reading(values | path, list(path), {"nfe": found["nfe"]})
        return Reading(values | path, list(values), {"nfe": found["nfe"]}, words=shape(recipe))

    def pictures(self, cells: Sequence[tuple[Cell, Path]]) -> dict[str, bytes]:
        if self.of == "network":
            return {}
        from experiments.figures import paths

        return {"Paths through the blur-noise plane": paths({c.title: load(f / "describe.json") for c, f in cells})}


def shape(network: Mapping[str, Any]) -> dict[str, str]:
    """What a network is built of, as Table 6 says it."""
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


@dataclass(frozen=True)
class Oracle(Measure):
    """How far sampling with a perfect network ends from the data: `warm oracle`.

    Attributes:
        kind: of data, N(0, diag S) with the data's spectrum, or the data themselves.
        limit: number of training images that the dataset oracle knows.
        ode_steps: see `warm oracle`.
    """

    kind: Literal["gaussian", "dataset"] = "gaussian"
    limit: int = 1000
    ode_steps: int = 256

    trains = False
    makes = "oracle.json"

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        own = [f"--limit={self.limit}", f"--ode_steps={self.ode_steps}"]
        if self.kind == "gaussian":
            which = hashlib.sha256(cell.images.encode()).hexdigest()[:10]
            own = [f"--spectrum={folder.parents[2] / f'spectrum-{cell.data}-{which}.npz'}"]
        return ["oracle", *model_and_data(cell), f"--kind={self.kind}", f"--outdir={folder}", *own]

    def read(self, cell: Cell, folder: Path) -> Reading:
        found = load(folder / "oracle.json")
        shown = ["frechet", "frechet_ode"] if self.kind == "gaussian" else ["nearest_mse", "landed", "rms_ode"]
        values = {name: value for name, value in found.items() if isinstance(value, int | float) and name != "nfe"}
        return Reading(values, [name for name in shown if name in values], {"nfe": found["nfe"]})


@dataclass(frozen=True)
class Spectrum(Measure):
    """The data's power spectrum and the BNR it suggests: `warm spectrum`.

    Attributes:
        tolerance: attenuation where signal and noise are equal.
        bnrs: for the picture of what a model sees and is asked for.
        noise: level β of that picture.
    """

    tolerance: float = 0.03
    bnrs: str = "0,0.5,2"
    noise: float = 0.5

    trains = False
    makes = "spectrum.json"
    files = ("spectrum", "bnr", "targets")

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        own = [f"--tolerance={self.tolerance}", f"--bnrs={self.bnrs}", f"--noise={self.noise}"]
        return ["spectrum", *model_and_data(cell), *own, f"--outdir={folder}"]

    def read(self, cell: Cell, folder: Path) -> Reading:
        found = load(folder / "spectrum.json")
        values = {name: value for name, value in found.items() if isinstance(value, int | float)}
        below = found["protocol"]["fit_below"]
        values["fitted below λ of"] = math.inf if below is None else below
        shown = ["tolerance", "fitted below λ of", "bnr", "bnr_measured", "c_at_s1", "c", "s"]
        return Reading(values, [name for name in shown if finite(values[name])])

    def pictures(self, cells: Sequence[tuple[Cell, Path]]) -> dict[str, bytes]:
        titles = ("Power by frequency", "Attenuation where signal meets noise", "What a model sees and is asked for")
        return {
            f"{title}{', ' + cell.title if cell.labels else ''}": (folder / f"{file}.png").read_bytes()
            for cell, folder in cells
            for title, file in zip(titles, self.files, strict=True)
        }


@dataclass(frozen=True)
class Drift(Measure):
    """How far trajectories leave truly degraded images: `warm drift`.

    Attributes:
        num_images: trajectories; fewer in a smoke run.
    """

    num_images: int = 256

    makes = "drift.json"

    def calls(self, cell: Cell, nfe: int) -> float:
        return 3.0 * self.num_images * nfe  # the samples, and a look at them and at true images at each level

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        count = min(self.num_images, cell.scale.images)
        where = [f"--ckpt_path={checkpoint}", f"--outdir={folder}", f"--num_images={count}"]
        return ["drift", *model_and_data(cell), *where]

    def read(self, cell: Cell, folder: Path) -> Reading:
        found = load(folder / "drift.json")
        values = {f"{row['quantity']}_{row['band']}": row["rms"] for row in found["summary"]}
        main = {name: found[name] for name in ("drift", "power_drift", "residual_drift") if finite(found[name])}
        protocol = found["protocol"]
        about = {name: protocol.get(name) for name in ("num_images", "weights", "images_seen", "nfe", "device")}
        about["sample_seeds"] = protocol["seeds"]
        of_all = {row["quantity"]: row["chance"] for row in found["summary"] if row["band"] == "all"}
        chance = {name: of_all[name.removesuffix("drift").rstrip("_") or "noise"] for name in main}
        label = f"chance alone ({cell.title})"
        return Reading(main | values, list(main), about, {label: chance})

    def pictures(self, cells: Sequence[tuple[Cell, Path]]) -> dict[str, bytes]:
        from experiments.figures import drifts

        apart: dict[str, list[tuple[str, dict[str, Any]]]] = {}  # by all labels but the first, which colours tell
        for cell, folder in cells:
            first, *others = [f"{axis} {label}" for axis, label in cell.labels.items()] or [cell.title]
            apart.setdefault(", ".join(others), []).append((first, load(folder / "drift.json")))
        title, seed = "Drift along trajectories", f"training seed {cells[0][0].seed}"
        return {", ".join(filter(None, (title, others, seed))): drifts(found) for others, found in apart.items()}


@dataclass(frozen=True)
class Bits(Measure):
    """Bits per dimension by the probability-flow ODE: `warm bits`.

    Attributes:
        num_images: how many, at most.
        split: held_out or train.
        steps: of Heun's rule.
    """

    num_images: int = 256
    split: Literal["held_out", "train"] = "train"
    steps: int = 100

    makes = "bits.json"

    def calls(self, cell: Cell, nfe: int) -> float:
        return 3.0 * 2 * self.steps * self.num_images

    def arguments(self, cell: Cell, folder: Path, checkpoint: Path) -> list[str]:
        count = min(self.num_images, cell.scale.images)
        where = [f"--ckpt_path={checkpoint}", f"--outdir={folder}", f"--num_images={count}"]
        return ["bits", *model_and_data(cell), *where, f"--split={self.split}", f"--steps={self.steps}"]

    def read(self, cell: Cell, folder: Path) -> Reading:
        found = load(folder / "bits.json")
        names = ("bpd", "standard_error", "excess_at_most", "prior_gap")
        protocol = found["protocol"]
        about = {name: found[name] for name in ("nfe", "num_images")} | {"sample_seeds": str(protocol["seed"])}
        about |= {name: protocol[name] for name in ("weights", "images_seen", "device")}
        return Reading(
            {name: found[name] for name in names if finite(found[name])},
            ["bpd", "standard_error", "excess_at_most"],
            about,
        )
