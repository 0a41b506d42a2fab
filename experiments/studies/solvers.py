"""The error of solvers against the number of network calls.

    python -m experiments.studies.solvers --data cifar10.zip --out solvers.json --plot solvers.png
    python -m experiments.studies.solvers --checkpoints hot=hot.ckpt warm=warm.ckpt --out trained.json

With --data, the error of each solver with a Gaussian oracle on the spectrum of the data, which is exact and needs no
training, as `warm oracle` measures it for one solver. With --checkpoints, the scores of samples that trained models of
digits make with the same solvers. The tables are printed, and written as Markdown beside the JSON file.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from warm_lightning.analysis.figures import check_matplotlib, new_figure, save_figure
from warm_lightning.analysis.oracle_error import gaussian_error
from warm_lightning.config import load_checkpoint
from warm_lightning.data import Digits, ImageFolder
from warm_lightning.data.image_set import dequantised_batches
from warm_lightning.errors import UserError, check
from warm_lightning.images import quantise
from warm_lightning.metrics import BATCH_SIZE, DigitsFeatures, Evaluation, Extraction, Pixels, measure_reference
from warm_lightning.model import DiffusionModel
from warm_lightning.paths import path_argument
from warm_lightning.processes import ConstantBNR, Warm
from warm_lightning.records import check_out, machine, markdown_table, to_json, write_file
from warm_lightning.samplers import Euler, Heun, Multistep, PowerGrid, Sampler, StepRule
from warm_lightning.samplers.multistep import half_log_snr
from warm_lightning.spectral import power_spectrum
from warm_lightning.types import Gains

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# ---------------------------------------------------------------------- solvers


class InLogSNR(Multistep):
    """A multistep rule that continues x̂0 as a polynomial in ℓ = ln(A/B) of each frequency, beside `Multistep`.

    Order 2 is DPM-Solver++(2M) with Lu et al.'s coefficient, and order 3 integrates the parabola through three values
    exactly, in Newton's form: B_s ∫ τ e^ℓ dℓ = A_s (h - 1 + e^-h) and B_s ∫ τ² e^ℓ dℓ = A_s (h² - 2h + 2 - 2e^-h).
    As in `Multistep`, a step leads from level t to level s; τ = ℓ - ℓ_t runs from 0 to h = ℓ_s - ℓ_t.
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


HEUN = "Heun"
SOLVERS: dict[str, StepRule] = {
    "Euler": Euler(),
    HEUN: Heun(),
    "2M in ln SNR": InLogSNR(2),
    "3M in ln SNR": InLogSNR(3),
    "Multistep 2": Multistep(2),
    "Multistep 3": Multistep(3),
}
MANY, FEW = (10, 18, 24, 35, 79), (10, 18, 35)
"""Numbers of network calls, with the oracle and with trained models."""
RHOS = (5.0, 7.0, 10.0)
BNRS = (0, 0.1, 0.3, 0.5, 0.65, 1, 2, 10)
"""The eight blur-to-noise ratios of Table 3."""


def samplers(nfes: Sequence[int], rho: float = 7.0) -> list[tuple[str, Sampler]]:
    """Each solver at each number of network calls; Heun, whose number is odd, at 9, 19, 25, 35 and 79."""
    heun = {10: 5, 18: 10, 24: 13, 35: 18, 79: 40}
    return [
        (name, Sampler(PowerGrid(heun[nfe] if name == HEUN else nfe, rho=rho), rule))
        for name, rule in SOLVERS.items()
        for nfe in nfes
    ]


# ---------------------------------------------------------------------- with a Gaussian oracle


def oracle_errors(spectrum: Tensor) -> list[dict[str, Any]]:
    """Rows with rho, bnr, solver, nfe, frechet and frechet_ode.

    Args:
        spectrum: S, float64 [C, H, W].
    """
    settings = [(rho, bnr, name, sampler) for rho, bnr in product(RHOS, BNRS) for name, sampler in samplers(MANY, rho)]
    return [
        {"rho": rho, "bnr": bnr, "solver": name, "nfe": sampler.nfe, **distances(spectrum, bnr, sampler)}
        for rho, bnr, name, sampler in tqdm(settings, desc="Sampling", unit=" settings")
    ]


def distances(spectrum: Tensor, bnr: float, sampler: Sampler) -> dict[str, float]:
    """frechet and frechet_ode of a deterministic sampler of the warm family, see `gaussian_error`."""
    errors = gaussian_error(spectrum, Warm(ConstantBNR(bnr)), sampler)
    return {name: errors[name] for name in ("frechet", "frechet_ode")}


COLOURS = {
    "Euler": "0.6",
    HEUN: "black",
    "2M in ln SNR": "tab:orange",
    "3M in ln SNR": "tab:red",
    "Multistep 2": "tab:cyan",
    "Multistep 3": "tab:blue",
}
SHOWN_RHO, SHOWN_BNR = 7.0, 0.5


def plot(rows: list[dict[str, Any]], out: Path) -> None:
    """Plot the squared Fréchet error to the data against NFE.

    There is a panel for each BNR at ρ 7, and one for each of four solvers at BNR 0.5.

    Args:
        rows: see `oracle_errors`.
        out: PNG file to write.
    """
    figure = new_figure(15, 11)
    panels = iter(figure.subplots(3, 4, sharex=True, sharey=True).flat)
    for bnr in dict.fromkeys(row["bnr"] for row in rows):
        axes = next(panels)
        at_bnr = [row for row in rows if (row["bnr"], row["rho"]) == (bnr, SHOWN_RHO)]
        for solver, colour in COLOURS.items():
            plot_line(axes, [row for row in at_bnr if row["solver"] == solver], solver, colour)
        finish(axes, f"BNR {bnr:g}, ρ {SHOWN_RHO:g}")
    for solver in (HEUN, "2M in ln SNR", "Multistep 2", "Multistep 3"):
        axes = next(panels)
        of_solver = [row for row in rows if (row["bnr"], row["solver"]) == (SHOWN_BNR, solver)]
        for rho, colour in zip(RHOS, ("tab:green", "black", "tab:purple"), strict=True):
            plot_line(axes, [row for row in of_solver if row["rho"] == rho], f"ρ {rho:g}", colour)
        finish(axes, f"{solver}, BNR {SHOWN_BNR:g}")
        axes.set_xlabel("network calls (NFE)")
    figure.axes[0].legend(fontsize=9)
    figure.axes[8].legend(fontsize=9)
    figure.supylabel("squared Fréchet distance to the data, Gaussian oracle")
    save_figure(figure, out)


def plot_line(axes: "Axes", rows: list[dict[str, Any]], label: str, colour: str) -> None:
    """Draw the errors of rows against their NFE."""
    axes.plot([row["nfe"] for row in rows], [row["frechet"] for row in rows], "o-", ms=4, label=label, color=colour)


def finish(axes: "Axes", title: str) -> None:
    """Set a title, logarithmic scales, and ticks at the NFEs that were measured."""
    axes.set(xscale="log", yscale="log", title=title, xticks=[10, 18, 35, 79], ylim=(4e-3, 2e3))
    axes.set_xticklabels(["10", "18", "35", "79"])
    axes.minorticks_off()
    axes.grid(alpha=0.3)


# ---------------------------------------------------------------------- with trained models

SEEDS = range(1797)
SCORED = ("Euler", HEUN, "Multistep 2", "Multistep 3")
PATHS = 128
"""The number of seeds, from the first, whose samples are compared with the exact path."""
EXACT = Sampler(PowerGrid(100), Heun())
SAMPLED_AT_ONCE = 256


def score_solvers(
    checkpoints: Mapping[str, str], samplers: Sequence[tuple[str, Sampler]], protocol: dict[str, Any]
) -> dict[str, Any]:
    """Scores of the samples that models make with solvers.

    Args:
        checkpoints: path of each model, by its label.
        samplers: by the name of the solver; all are compared with the exact path, and those of `SCORED` are scored.
        protocol: where the protocol is added.

    Returns:
        "trained": rows with model, solver, nfe, rms (root of the mean square over pixels of the difference to `EXACT`
        from the same seeds), and fd_pixel and fd_digits where scored; "beside": the scores of halves of the data and
        of a Gaussian.

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
    references = [measure_reference(extraction, data, source="Digits: all images") for extraction in extractions]
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
            scores = Evaluation(extraction, reference, data.shape)
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


def sample(model: DiffusionModel, sampler: Sampler, seeds: Sequence[int]) -> Tensor:
    """Samples of a model, pixels [len(seeds), C, H, W]."""
    batches = (seeds[k : k + SAMPLED_AT_ONCE] for k in range(0, len(seeds), SAMPLED_AT_ONCE))
    return torch.cat([model.sample(sampler, batch) for batch in batches])


# ---------------------------------------------------------------------- report and command


def report(results: dict[str, Any]) -> str:
    """All results in Markdown."""
    parts = ["# Error of solvers against network calls"]
    parts.append("\n".join(f"* {name}: {in_words(value)}" for name, value in results["protocol"].items()))
    for rho in RHOS if "rows" in results else ():
        parts += [f"## ρ = {rho:g}, to the data", oracle_table(results["rows"], rho, "frechet")]
        parts += [f"## ρ = {rho:g}, to the exact ODE", oracle_table(results["rows"], rho, "frechet_ode")]
    if "trained" in results:
        parts += ["## Trained models", trained_table(results["trained"])]
        parts += ["What the data and a normal distribution get:", trained_table(results["beside"])]
    return "\n\n".join(parts) + "\n"


def oracle_table(rows: list[dict[str, Any]], rho: float, key: str) -> str:
    """A table with a row for each solver and NFE, and a column for each BNR.

    Args:
        rows: see `oracle_errors`.
        rho: of the grid.
        key: frechet or frechet_ode.
    """
    chosen = [row for row in rows if row["rho"] == rho]
    values = {(row["solver"], row["nfe"], row["bnr"]): f"{row[key]:.3g}" for row in chosen}
    settings = dict.fromkeys((row["solver"], row["nfe"]) for row in chosen)
    lines = [[solver, nfe, *(values[solver, nfe, bnr] for bnr in BNRS)] for solver, nfe in settings]
    return markdown_table(["solver", "NFE", *(f"BNR {bnr:g}" for bnr in BNRS)], lines)


def trained_table(rows: list[dict[str, Any]]) -> str:
    """A table with a row for each model, solver and NFE, see `score_solvers`."""
    settings = ("model", "solver", "nfe")
    names = [name for name in rows[0] if name not in settings]
    lines = [
        [*(row[name] for name in settings), *("" if row.get(name) is None else f"{row[name]:.3g}" for name in names)]
        for row in rows
    ]
    return markdown_table(["model", "solver", "NFE", *names], lines, words=2)


def in_words(value: Any) -> str:
    """Plain data on one line."""
    if isinstance(value, dict):
        return ", ".join(f"{name} {in_words(entry)}" for name, entry in value.items())
    return "; ".join(map(in_words, value)) if isinstance(value, list) else str(value)


def run(options: argparse.Namespace, command: list[str]) -> dict[str, Any]:
    """Measure what the options ask for, and write it as JSON, Markdown and, with --plot, PNG."""
    began = time.perf_counter()
    results: dict[str, Any] = {}
    protocol: dict[str, Any] = {
        "solvers": "Multistep: x̂0 continued over the number of the step; 2M and 3M in ln SNR: over ln(A/B), the former "
        "DPM-Solver++(2M), the latter exact; all with the exponential integral per frequency",
    }
    if options.data:
        images = ImageFolder(options.data).train_images()
        results["rows"] = oracle_errors(power_spectrum(dequantised_batches(images, "Measuring the spectrum")))
        protocol |= {
            "data": f"{Path(options.data).name}: {len(images)} training images {list(images.shape)} in [-1, 1]",
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
    write_file(options.out, to_json(results).encode())
    write_file(options.out.with_suffix(".md"), report(results).encode())
    if options.plot:
        plot(results["rows"], options.plot)
    return results


def check_files(out: Path, plot: Path | None) -> None:
    """Raise UserError unless results can be written to these paths; asked before half an hour of work."""
    for name, path, suffix in (("--out", out, ".json"), ("--plot", plot, ".png")):
        check(path is None or path.suffix == suffix, f"{name} {path}: name a file that ends in {suffix}")
    for path in filter(None, (out, out.with_suffix(".md"), plot)):
        check_out(str(path), replace=True)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.solvers", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=path_argument, help="folder or zip of images, CIFAR-10's for instance")
    parser.add_argument("--checkpoints", nargs="+", default=[], metavar="LABEL=PATH", help="models trained on digits")
    parser.add_argument(
        "--out", required=True, type=path_argument, help="JSON file to write, with tables beside it in .md"
    )
    parser.add_argument("--plot", type=path_argument, help="PNG file to draw what --data gives in")
    options = parser.parse_args(arguments)
    try:
        check(bool(options.data or options.checkpoints), "nothing to do: give --data, --checkpoints, or both")
        check(bool(options.data) or not options.plot, "--plot draws what --data gives: give that, too")
        wrong = [entry for entry in options.checkpoints if "=" not in entry]
        check(not wrong, f"--checkpoints {' '.join(wrong)}: write LABEL=PATH")
        if options.plot:
            check_matplotlib()
        check_files(options.out, options.plot)
        results = run(options, [parser.prog, *(sys.argv[1:] if arguments is None else arguments)])
    except UserError as error:
        print(f"solvers: {error}", file=sys.stderr)
        return 2
    print(report(results), f"written to {options.out}", sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
