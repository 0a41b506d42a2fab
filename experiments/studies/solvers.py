"""Which solver gets furthest with how many network calls.

    python -m experiments.studies.solvers --data cifar10.zip --out solvers.json --plot solvers.png
    python -m experiments.studies.solvers --checkpoints hot=hot.ckpt warm=warm.ckpt --out trained.json

With --data, the error of each solver with a Gaussian oracle on the data's spectrum, exact and without training, as
`warm oracle` measures it for one. With --checkpoints, what trained models of digits make of the same solvers. The
tables are printed and written as Markdown beside the JSON file.
"""

import argparse
import io
import json
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib as mpl
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from warm_lightning.analysis.oracle_error import gaussian_error
from warm_lightning.config import load_checkpoint
from warm_lightning.data import Digits, ImageFolder
from warm_lightning.errors import UserError, check
from warm_lightning.images import dequantise, quantise
from warm_lightning.metrics import BATCH_SIZE, DigitsFeatures, Extraction, Pixels, Scores, measure
from warm_lightning.model import DiffusionModel
from warm_lightning.processes import ConstantBNR, Warm
from warm_lightning.records import check_out, machine, write_file
from warm_lightning.samplers import Euler, Heun, Multistep, PowerGrid, Sampler, StepRule
from warm_lightning.samplers.multistep import half_log_snr
from warm_lightning.spectral import power_spectrum
from warm_lightning.types import Gains

COLOURS = {
    "Euler": "0.6",
    "Heun": "black",
    "2M in ln SNR": "tab:orange",
    "3M in ln SNR": "tab:red",
    "Multistep 2": "tab:cyan",
    "Multistep 3": "tab:blue",
}
SHOWN_RHO, SHOWN_BNR = 7.0, 0.5


def plot(rows: list[dict[str, Any]], out: Path) -> None:
    """Squared Fréchet error to the data against NFE: a panel a BNR at ρ 7, then a panel a solver at BNR 0.5."""
    bnrs = list(dict.fromkeys(row["bnr"] for row in rows))
    figure = Figure(figsize=(15, 11), layout="constrained")
    panels = iter(figure.subplots(3, 4, sharex=True, sharey=True).flat)
    for bnr in bnrs:
        axes = next(panels)
        at_bnr = [row for row in rows if (row["bnr"], row["rho"]) == (bnr, SHOWN_RHO)]
        for solver, colour in COLOURS.items():
            line(axes, [row for row in at_bnr if row["solver"] == solver], solver, colour)
        dress(axes, f"BNR {bnr:g}, ρ {SHOWN_RHO:g}")
    for solver in ("Heun", "2M in ln SNR", "Multistep 2", "Multistep 3"):
        axes = next(panels)
        of_solver = [row for row in rows if (row["bnr"], row["solver"]) == (SHOWN_BNR, solver)]
        for rho, colour in zip(
            dict.fromkeys(row["rho"] for row in rows), ("tab:green", "black", "tab:purple"), strict=True
        ):
            line(axes, [row for row in of_solver if row["rho"] == rho], f"ρ {rho:g}", colour)
        dress(axes, f"{solver}, BNR {SHOWN_BNR:g}")
        axes.set_xlabel("network calls (NFE)")
    figure.axes[0].legend(fontsize=9)
    figure.axes[8].legend(fontsize=9)
    figure.supylabel("squared Fréchet distance to the data, Gaussian oracle")
    content = io.BytesIO()
    with mpl.rc_context({"font.size": 11}):
        figure.savefig(content, dpi=100)
    write_file(out, content.getvalue())


def line(axes: Axes, rows: list[dict[str, Any]], label: str, colour: str) -> None:
    """Error against NFE."""
    axes.plot([row["nfe"] for row in rows], [row["frechet"] for row in rows], "o-", ms=4, label=label, color=colour)


def dress(axes: Axes, title: str) -> None:
    """Logarithmic, with the NFEs that were measured as ticks."""
    axes.set(xscale="log", yscale="log", title=title, xticks=[10, 18, 35, 79], ylim=(4e-3, 2e3))
    axes.set_xticklabels(["10", "18", "35", "79"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


SEEDS = range(1797)
SCORED = ("Euler", "Heun", "Multistep 2", "Multistep 3")
PATHS = 128
"""The first seeds, of which the path is compared."""
EXACT = Sampler(PowerGrid(100), Heun())
SAMPLED_AT_ONCE = 256


def sample(model: DiffusionModel, sampler: Sampler, seeds: Sequence[int]) -> Tensor:
    """Pixels [len(seeds), C, H, W]."""
    batches = (seeds[k : k + SAMPLED_AT_ONCE] for k in range(0, len(seeds), SAMPLED_AT_ONCE))
    return torch.cat([model.sample(sampler, batch) for batch in batches])


def score_solvers(
    checkpoints: Mapping[str, str], samplers: Sequence[tuple[str, Sampler]], protocol: dict[str, Any]
) -> dict[str, Any]:
    """Scores of models and solvers.

    Args:
        checkpoints: path of each model, by label.
        samplers: by name of the solver; those of `SCORED` are scored, all are compared with the exact path.
        protocol: what is added to.

    Returns:
        "trained": rows of model, solver, nfe, rms (root of the mean square over pixels of the difference to `EXACT`
        from the same seeds), fd_pixel and fd_digits, where scored; "beside": the same of halves and a Gaussian.

    Raises:
        UserError: a checkpoint cannot be read, or is no model of digits that is sampled on a `PowerGrid`.
    """
    data = Digits().train_images()
    models, seen = {}, {}
    for label, path in checkpoints.items():
        module = load_checkpoint(path)
        models[label], seen[label] = module.model("ema"), module.images_seen
        shape, grid = models[label].image_shape, module.sampler.grid
        check(
            shape == data.shape, f"{path}: a model of {shape}, not of digits, which are {data.shape}: give one of them"
        )
        check(
            isinstance(grid, PowerGrid),
            f"{path}: is sampled on {type(grid).__name__}, but the solvers on noise levels from 80 to 0.002: give a "
            "model whose clock is the noise level, hot or warm for instance",
        )
    extractions = [Extraction(extractor, BATCH_SIZE, "cpu") for extractor in (DigitsFeatures(), Pixels())]
    references = [measure(extraction, data, source="Digits: all images") for extraction in extractions]
    rows = []
    beside: dict[str, dict[str, Any]] = {}
    bar = tqdm([(label, *entry) for label in models for entry in samplers], desc="Solvers", unit=" settings")
    exact = {label: sample(model, EXACT, SEEDS[:PATHS]) for label, model in models.items()}
    for label, name, sampler in bar:
        scored = name in SCORED
        images = sample(models[label], sampler, SEEDS if scored else SEEDS[:PATHS])
        rms = (images[:PATHS] - exact[label]).square().mean().sqrt().item()
        row = {"model": label, "solver": name, "nfe": sampler.nfe, "rms": rms}
        for extraction, reference in zip(extractions, references, strict=True) if scored else ():
            scores = Scores(extraction, reference, data.shape)
            scores.update(quantise(images))
            count, values = scores.compute()
            fd = scores.names(count)[0]
            row[fd] = values[fd]
            for end in ("halves", "gaussian"):
                beside.setdefault(end, {"model": end, "solver": "", "nfe": ""})[fd] = scores.companions(count)[
                    f"{fd}_{end}"
                ]
        rows.append(row)
    protocol |= {
        "trained": f"averaged weights, ρ 7; {len(SEEDS)} samples, seeds {SEEDS[0]} to {SEEDS[-1]}, against all "
        f"{len(data)} images",
        "rms": f"to the same seeds' samples by Heun at NFE {EXACT.nfe}, per pixel of [-1, 1], seeds 0 to {PATHS - 1}",
        "checkpoints": ", ".join(f"{label} after {count:,} images" for label, count in seen.items()),
        "extractors": [extraction.extractor.describe() for extraction in extractions],
    }
    return {"trained": rows, "beside": list(beside.values())}


RHOS = (5.0, 7.0, 10.0)
BNRS = (0, 0.1, 0.3, 0.5, 0.65, 1, 2, 10)
"""The eight of Table 3."""


class InLogSNR(Multistep):
    """What `Multistep` is compared with: x̂0 continued as a polynomial in ℓ = ln(A/B) of each frequency.

    Order 2 is DPM-Solver++(2M) with Lu et al.'s coefficient, and order 3 integrates the parabola through three values
    exactly, in Newton's form: B_s ∫ τ e^ℓ dℓ = A_s (h - 1 + e^-h) and B_s ∫ τ² e^ℓ dℓ = A_s (h² - 2h + 2 - 2e^-h).
    """

    def continuation(self, history: list[tuple[Gains, Tensor]], target: Gains) -> Tensor:
        (*_, (before, earlier), (here, now)) = history
        position = half_log_snr(here)
        h, h1 = half_log_snr(target) - position, position - half_log_snr(before)
        d1 = (now - earlier) / h1
        if len(history) == 2:
            return target.signal * -torch.expm1(-h) * h / 2 * d1
        h2 = half_log_snr(before) - half_log_snr(history[0][0])
        d2 = (d1 - (earlier - history[0][1]) / h2) / (h1 + h2)
        first = h + torch.expm1(-h)
        return target.signal * (first * d1 + (h * h - 2 * first + h1 * first) * d2)


MANY, FEW = (10, 18, 24, 35, 79), (10, 18, 35)
HEUN = "Heun"
SOLVERS: dict[str, StepRule] = {
    "Euler": Euler(),
    HEUN: Heun(),
    "2M in ln SNR": InLogSNR(2),
    "3M in ln SNR": InLogSNR(3),
    "Multistep 2": Multistep(2),
    "Multistep 3": Multistep(3),
}


def samplers(nfes: Sequence[int], rho: float = 7.0) -> list[tuple[str, Sampler]]:
    """Each solver at each number of network calls, Heun's, which is odd, at the next one: 9, 19, 25, 35 and 79."""
    heun = {10: 5, 18: 10, 24: 13, 35: 18, 79: 40}
    return [
        (name, Sampler(PowerGrid(heun[nfe] if name == HEUN else nfe, rho=rho), rule))
        for name, rule in SOLVERS.items()
        for nfe in nfes
    ]


def read_spectrum(data: str) -> tuple[Tensor, str]:
    """S, float64 [C, H, W], of the training images in a folder or zip, and what they are in words."""
    images = ImageFolder(data).train_images().all()
    about = f"{Path(data).name}: {len(images)} training images {list(images.shape[1:])} in [-1, 1]"
    return power_spectrum(dequantise(images)), about


def distances(spectrum: Tensor, bnr: float, sampler: Sampler) -> dict[str, float]:
    """frechet and frechet_ode of a deterministic sampler of the warm family."""
    found = gaussian_error(spectrum, Warm(ConstantBNR(bnr)), sampler)
    return {name: found[name] for name in ("frechet", "frechet_ode")}


def oracle_errors(spectrum: Tensor) -> list[dict[str, Any]]:
    """Rows: rho, bnr, solver, nfe, frechet and frechet_ode; S float64 [C, H, W]."""
    settings = [(rho, bnr, name, sampler) for rho, bnr in product(RHOS, BNRS) for name, sampler in samplers(MANY, rho)]
    return [
        {"rho": rho, "bnr": bnr, "solver": name, "nfe": sampler.nfe, **distances(spectrum, bnr, sampler)}
        for rho, bnr, name, sampler in tqdm(settings, desc="Sampling", unit=" settings")
    ]


def table(rows: list[dict[str, Any]], rho: float, key: str) -> str:
    """Markdown: a line a solver and NFE, a column a BNR."""
    chosen = [row for row in rows if row["rho"] == rho]
    values = {(row["solver"], row["nfe"], row["bnr"]): row[key] for row in chosen}
    lines = ["| solver | NFE |" + "".join(f" BNR {bnr:g} |" for bnr in BNRS), "|---|--:|" + "--:|" * len(BNRS)]
    lines += [
        f"| {solver} | {nfe} |" + "".join(f" {values[solver, nfe, bnr]:.3g} |" for bnr in BNRS)
        for solver, nfe in dict.fromkeys((row["solver"], row["nfe"]) for row in chosen)
    ]
    return "\n".join(lines)


def trained_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: a line a model, solver and NFE."""
    names = [name for name in rows[0] if name not in ("model", "solver", "nfe")]
    lines = [
        "| model | solver | NFE |" + "".join(f" {name} |" for name in names),
        "|---|---|--:|" + "--:|" * len(names),
    ]
    for row in rows:
        cells = ("" if row.get(name) is None else f"{row[name]:.3g}" for name in names)
        lines.append(f"| {row['model']} | {row['solver']} | {row['nfe']} |" + "".join(f" {cell} |" for cell in cells))
    return "\n".join(lines)


def words(value: Any) -> str:
    """Plain data on a line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {words(of)}" for name, of in value.items())
    return "; ".join(map(words, value)) if isinstance(value, list) else str(value)


def report(results: dict[str, Any]) -> str:
    """Everything in Markdown."""
    protocol, parts = results["protocol"], ["# Error of solvers against network calls"]
    parts.append("\n".join(f"* {name}: {words(value)}" for name, value in protocol.items()))
    for rho in RHOS if "rows" in results else ():
        parts += [f"## ρ = {rho:g}, to the data", table(results["rows"], rho, "frechet")]
        parts += [f"## ρ = {rho:g}, to the exact ODE", table(results["rows"], rho, "frechet_ode")]
    if "trained" in results:
        parts += ["## Trained models", trained_table(results["trained"])]
        parts += ["What the data and a normal distribution get:", trained_table(results["beside"])]
    return "\n\n".join(parts) + "\n"


def run(options: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    """Measure what is asked for, and write it."""
    began = time.perf_counter()
    results: dict[str, Any] = {}
    protocol: dict[str, Any] = {
        "solvers": "Multistep: x̂0 continued over the number of the step; 2M and 3M in ln SNR: over ln(A/B), the former "
        "DPM-Solver++(2M), the latter exact; all with the exponential integral per frequency",
    }
    if options.data:
        spectrum, about = read_spectrum(options.data)
        results["rows"] = oracle_errors(spectrum)
        protocol |= {
            "data": about,
            "oracle": "Gaussian; β from 80 to 0.002, then 0; initial variance 80² at every frequency",
            "frechet": "squared, summed over channels and frequencies, to N(0, diag S)",
            "frechet_ode": "the same, to where the exact ODE takes the same start",
        }
    if options.checkpoints:
        models = dict(entry.split("=", 1) for entry in options.checkpoints)
        results |= score_solvers(models, samplers(FEW), protocol)
    protocol |= {"seconds": round(time.perf_counter() - began, 1), "machine": machine("cpu")}
    protocol["command"] = " ".join(command)
    results["protocol"] = protocol
    write_file(options.out, json.dumps(results, indent=2, ensure_ascii=False).encode())
    write_file(options.out.with_suffix(".md"), report(results).encode())
    if options.plot:
        from experiments.studies.solvers import plot

        plot(results["rows"], options.plot)
    return results


def check_files(out: Path, plot: Path | None) -> None:
    """Raise UserError unless results can be written to these paths, before the half hour that leads to them."""
    for name, path, suffix in (("--out", out, ".json"), ("--plot", plot, ".png")):
        check(path is None or path.suffix == suffix, f"{name} {path}: name a file that ends in {suffix}")
    for path in filter(None, (out, out.with_suffix(".md"), plot)):
        check_out(str(path))


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.solvers", description=__doc__.split("\n")[0])
    parser.add_argument("--data", help="folder or zip of images, CIFAR-10's for instance")
    parser.add_argument("--checkpoints", nargs="+", default=[], metavar="LABEL=PATH", help="models trained on digits")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write, with tables beside it in .md")
    parser.add_argument("--plot", type=Path, help="PNG file to draw what --data gives in")
    options = parser.parse_args(arguments)
    try:
        check(bool(options.data or options.checkpoints), "nothing to do: give --data, --checkpoints, or both")
        check(bool(options.data) or not options.plot, "--plot draws what --data gives: give that, too")
        wrong = [entry for entry in options.checkpoints if "=" not in entry]
        check(not wrong, f"--checkpoints {' '.join(wrong)}: write LABEL=PATH")
        missing = options.plot and find_spec("matplotlib") is None
        check(not missing, "--plot needs matplotlib: pip install 'warm-lightning[plots]'")
        check_files(options.out, options.plot)
        results = run(options, [parser.prog, *(sys.argv[1:] if arguments is None else arguments)])
    except UserError as error:
        print(f"solvers: {error}", file=sys.stderr)
        return 2
    print(report(results), f"written to {options.out}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
