"""`warm describe`: describes a configuration, without training."""

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from warm_lightning.analysis.description import (
    describe_path,
    describe_snr,
    forward_flops,
    parameter_count,
    plot,
)
from warm_lightning.analysis.figures import check_matplotlib
from warm_lightning.config import module_from_options
from warm_lightning.data import ImageDataModule
from warm_lightning.data.image_set import dequantised_batches
from warm_lightning.module import DiffusionModule
from warm_lightning.paths import PathText
from warm_lightning.records import provenance, text_table, to_json, writable_folder, write_file
from warm_lightning.spectral import second_moment

PARTS = ("process", "parameterization", "preconditioning", "clock_law", "loss", "target", "sampler")


def describe(settings: list[str], *, outdir: PathText | None = None, snr: bool = False) -> None:
    """Describe a configuration: network, training recipe, cost of sampling, and path through the blur-noise plane.

    With --outdir it writes paths.png and describe.json: `network` (its class), `parameters`, `parameters_millions`,
    `flops_per_call` (forward pass for one image, where a multiply-add counts as two), `nfe`, `flops_per_image` (of
    sampling), `hyperparameters` (Table 6, and the arguments of the network), `parts` (the classes of the model's
    process, sampler, loss and so on), and three sets of levels as lists of equal length: `sampling`, `path` (in small
    steps) and `trained` (at quantiles of the training law). Levels have `clock`, `alpha` (pixels of blur), `beta`
    (noise, for images in [-1, 1]), `bnr` = alpha/beta (null without noise), and `scale` (the factor by which the
    process scales image and noise). `path` and `trained` also have `alpha_low` and `alpha_high`, the range of blur on
    which the model is trained at that noise level.

    Args:
        outdir: folder for describe.json and paths.png; nothing is written if not given.
        snr: also read the training images, and describe how the signal-to-noise ratio of each frequency, A² S/B², goes
            through the steps of the sampler: `snr` in describe.json, and a table.
    """
    if outdir is not None:
        check_matplotlib()
    module, data = module_from_options(settings)
    description = summary(module, data)
    text = table(description)
    if snr:
        description["snr"] = learned_snr(module, data)
        text += f"\n\n{snr_table(description['snr'])}"
    if outdir is not None:
        folder = writable_folder(outdir)
        record = {**description, "protocol": {"settings": settings, **provenance("cpu")}}
        write_file(folder / "describe.json", to_json(record).encode())
        plot(description, part_text(description["parts"]["process"]), folder / "paths.png")
        text += f"\n\nwritten to {Path(outdir) / 'describe.json'} and paths.png"
    print(text)


def summary(module: DiffusionModule, data: ImageDataModule) -> dict[str, Any]:
    """The content of describe.json but for `protocol`."""
    config = module.config or {}
    parameters, flops = parameter_count(module.network), forward_flops(module.network)
    model = module.model()
    nfe = model.own_nfe
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
            **config["network"].get("init_args", {}),
        },
        "parts": {name: config[name] for name in PARTS},
        **describe_path(model.process, model.clock_law, model.sampler.grid),
    }


def learned_snr(module: DiffusionModule, data: ImageDataModule) -> dict[str, Any]:
    """The SNR of frequencies for the spectrum of the training images; parts of the model learn from these, too."""
    model, images = module.model(), data.train_images()
    model.learn(partial(dequantised_batches, images))
    power = second_moment(dequantised_batches(images, "Measuring power"))
    return describe_snr(model.process, model.sampler.grid, power)


def snr_table(snr: Mapping[str, Any]) -> str:
    """The SNR of frequencies at some steps, as text."""
    some = range(0, len(snr["share"]), 20)
    rows = [["SNR (dB) of √λ =", *(f"{frequency:.3g}" for frequency in snr["frequency"])]]
    rows += [[f"{snr['share'][k]:.0%} of the steps left", *(f"{db[k]:.1f}" for db in snr["db"])] for k in some]
    return text_table(rows, "<" + ">" * len(snr["frequency"]))


def part_text(part: Mapping[str, Any]) -> str:
    """A part of the configuration as text, such as "Warm (ConstantBNR (bnr 0.5))": its class and its arguments."""
    arguments = part.get("init_args") or {}
    inner = [part_text(v) if isinstance(v, Mapping) else f"{n} {v}" for n, v in arguments.items() if v is not None]
    return part["class_path"].rpartition(".")[2] + (f" ({', '.join(inner)})" if inner else "")


def table(description: Mapping[str, Any]) -> str:
    """The description as text."""
    recipe, sampling, trained = (description[name] for name in ("hyperparameters", "sampling", "trained"))
    names = ["model", "model_channels", "channel_mult", "num_blocks", "attn_resolutions"]
    names += ["dropout", "augment_dim", "label_dim"]
    augment = part_text(recipe["augment"]) if recipe["augment"] else "none"
    parameters = f"{description['parameters']:,} parameters ({description['parameters_millions']:.3f} M)"
    facts = {
        "network": f"{description['network']}, {parameters}",
        "": ", ".join(f"{name} {recipe[name]}" for name in names if name in recipe),
        "branches": ", ".join(recipe["branches"]),
        "training": f"{recipe['duration'] / 1e6:g} Mimg, batch size {recipe['batch_size']}, lr {recipe['lr']:g} after "
        f"{recipe['lr_ramp'] / 1e6:g} Mimg, EMA half-life {recipe['ema_half_life'] / 1e6:g} Mimg, augment {augment}",
        "forward pass": f"{description['flops_per_call'] / 1e9:.4g} GFLOPs per image",
        "sampling": f"NFE {description['nfe']}, {description['flops_per_image'] / 1e12:.4g} TFLOPs per image",
        "process": part_text(description["parts"]["process"]),
    }
    rows = [("level", "clock", "α (pixels)", "β", "α/β", "")]
    for label, levels, k in [
        ("first", sampling, 0),
        ("last but one", sampling, -2),
        ("last", sampling, -1),
        *((f"trained {100 * q:g} %", trained, k) for k, q in enumerate(trained["quantile"])),
    ]:
        values = [levels[name][k] for name in ("clock", "alpha", "beta", "bnr")]
        clock, alpha, beta, bnr = (f"{v:.4g}" if math.isfinite(v) else "-" for v in values)
        low, high = (levels.get(name, levels["alpha"])[k] for name in ("alpha_low", "alpha_high"))
        trained_on = f"(trained on α from {low:.4g} to {high:.4g})" if low < high else ""
        rows.append((label, clock, alpha, beta, bnr, trained_on))
    return f"{text_table(facts.items(), '<<')}\n\n{text_table(rows, '<>>>><')}"
