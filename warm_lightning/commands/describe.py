"""`warm describe`: what a configuration is, without training or data."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from warm_lightning.analysis.description import describe_path, forward_flops, parameter_count, plot
from warm_lightning.analysis.figures import check_matplotlib
from warm_lightning.config import configured
from warm_lightning.data import ImageDataModule
from warm_lightning.module import DiffusionModule
from warm_lightning.records import provenance, to_json, writable_folder, write_file

PARTS = ("process", "parameterization", "preconditioning", "clock_law", "loss", "target", "sampler")


def describe(settings: list[str], *, outdir: str | None = None) -> None:
    """What a configuration is: network, recipe, cost of sampling, and path through the blur-noise plane.

    With --outdir it writes paths.png and describe.json: `network` (its class), `parameters`, `parameters_millions`,
    `flops_per_call` (forward, one image, a multiplication and an addition being two), `nfe`, `flops_per_image` (of
    sampling), `hyperparameters` (Table 6; the network's own by their names), `parts` (the process and what else makes
    the model), and three sets of levels as lists of the same length: `sampling`, `path` (finely) and `trained` (the
    quantiles of the training law). Levels have `clock`, `alpha` (pixels of blur), `beta` (noise, images in [-1, 1]),
    `bnr` = alpha/beta (null without noise), `scale` (by which the process scales image and noise down), and, but for
    sampling, `alpha_low` and `alpha_high`, the range of the blur that the model knows there.

    Args:
        outdir: folder for describe.json and paths.png; none are written if not given.
    """
    if outdir is not None:
        check_matplotlib()
    module, data = configured(settings)
    found = summary(module, data)
    text = table(found)
    if outdir is not None:
        folder = writable_folder(outdir)
        record = {**found, "protocol": {"settings": settings, **provenance("cpu")}}
        write_file(folder / "describe.json", to_json(record).encode())
        plot(found, name_of(found["parts"]["process"]), folder / "paths.png")
        text += f"\n\nwritten to {Path(outdir) / 'describe.json'} and paths.png"
    print(text)


def summary(module: DiffusionModule, data: ImageDataModule) -> dict[str, Any]:
    """All of it."""
    config = module.config or {}
    parameters, flops = parameter_count(module.network), forward_flops(module.network)
    model = module.model()
    nfe = model.nfe(model.sampler)
    recipe = {name: config[name] for name in ("duration", "lr", "lr_ramp", "ema_half_life", "ema_ramp", "augment")}
    return {
        "network": type(module.network).__name__,
        "parameters": parameters,
        "parameters_millions": round(parameters / 1e6, 3),
        "flops_per_call": flops,
        "nfe": nfe,
        "flops_per_image": flops * nfe,
        "hyperparameters": {
            **recipe,
            "batch_size": data.batch_size,
            "branches": list(model.parameterization.names),
            **config["network"]["init_args"],
        },
        "parts": {name: config[name] for name in PARTS},
        **describe_path(model.process, model.clock_law, model.sampler.grid),
    }


def name_of(part: Mapping[str, Any]) -> str:
    """A part of the configuration in words: its class, and those and the numbers of what it is made of."""
    arguments = part.get("init_args") or {}
    inner = [name_of(v) if isinstance(v, Mapping) else f"{n} {v}" for n, v in arguments.items() if v is not None]
    return part["class_path"].rpartition(".")[2] + (f" ({', '.join(inner)})" if inner else "")


def table(found: Mapping[str, Any]) -> str:
    """The description for people."""
    recipe, stops = found["hyperparameters"], found["sampling"]
    own = ("model_channels", "channel_mult", "num_blocks", "attn_resolutions", "dropout", "augment_dim", "label_dim")
    augment = name_of(recipe["augment"]) if recipe["augment"] else "none"
    lines = {
        "network": f"{found['network']}, {found['parameters']:,} parameters ({found['parameters_millions']:.3f} M)",
        "": ", ".join(f"{name} {recipe[name]}" for name in own if name in recipe),
        "branches": ", ".join(recipe["branches"]),
        "training": f"{recipe['duration'] / 1e6:g} Mimg, batch size {recipe['batch_size']}, lr {recipe['lr']:g} after "
        f"{recipe['lr_ramp'] / 1e6:g} Mimg, EMA half-life {recipe['ema_half_life'] / 1e6:g} Mimg, augment {augment}",
        "forward pass": f"{found['flops_per_call'] / 1e9:.4g} GFLOPs an image",
        "sampling": f"NFE {found['nfe']}, {found['flops_per_image'] / 1e12:.4g} TFLOPs an image",
        "process": name_of(found["parts"]["process"]),
    }
    rows = [f"{name:<14}{text}" for name, text in lines.items()]
    rows += ["", f"{'level':<14}{'clock':>12}{'α (pixels)':>12}{'β':>12}{'α/β':>12}"]
    trained = found["trained"]
    for label, levels, k in [
        ("first", stops, 0),
        ("last but one", stops, -2),
        ("last", stops, -1),
        *((f"trained {100 * q:g} %", trained, k) for k, q in enumerate(trained["quantile"])),
    ]:
        values = [levels[name][k] for name in ("clock", "alpha", "beta", "bnr")]
        row = f"{label:<14}" + "".join(f"{v:>12.4g}" if math.isfinite(v) else f"{'-':>12}" for v in values)
        low, high = (levels.get(name, levels["alpha"])[k] for name in ("alpha_low", "alpha_high"))
        rows.append(row + (f"  (trained on α from {low:.4g} to {high:.4g})" if low < high else ""))
    return "\n".join(rows)
