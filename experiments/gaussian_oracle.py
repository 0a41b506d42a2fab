"""What blurring and few steps cost the sampler alone, without any training.

    python -m experiments.gaussian_oracle --data cifar10.zip --out gaussian_oracle.json

The data are taken for N(0, diag S) over DCT frequencies, S measured on the training split. Everything is then
linear in u, so one run of the real sampler that starts with u = 80 at every frequency, the standard deviation
of the prior, ends with the standard deviation of its samples: exact, with no Monte Carlo in it.
"""

import argparse
import json
import sys
import time
from itertools import product
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

import warm_lightning
from warm_lightning.data import ImageFolder
from warm_lightning.errors import UserError
from warm_lightning.images import dequantise
from warm_lightning.oracles import GaussianOracle
from warm_lightning.pictures import write_file
from warm_lightning.processes import ConstantBNR, Warm
from warm_lightning.rng import SeedStreams
from warm_lightning.samplers import Heun, PowerGrid, Sampler
from warm_lightning.spectral import idct, power_spectrum

BNRS = (0, 0.1, 0.3, 0.5, 0.65, 1, 2, 10)
"""The eight of Table 3."""
NFES = (19, 35, 79, 159, 319, 999)


def frechet(deviation: Tensor, reference: Tensor) -> float:
    """Σ(√v - √S)², the squared Fréchet distance of two centred Gaussians that are diagonal in one basis."""
    return (deviation - reference).square().sum().item()


def measure(spectrum: Tensor, bnr: float, nfe: int) -> dict[str, float]:
    """How far one sampler's Gaussian is from the data's, and from what the exact ODE makes of the same start.

    Args:
        spectrum: S, float64 [C, H, W].
        bnr: blur-to-noise ratio.
        nfe: network calls, odd.

    Returns:
        A row: bnr, nfe, frechet and frechet_ode.
    """
    sampler = Sampler(PowerGrid((nfe + 1) // 2), Heun())
    if sampler.nfe != nfe:
        raise ValueError(f"Heun's rule has no grid for an even NFE, such as {nfe}")
    return {"bnr": bnr, "nfe": nfe, **distances(spectrum, bnr, sampler)}


def distances(spectrum: Tensor, bnr: float, sampler: Sampler) -> dict[str, float]:
    """frechet and frechet_ode of a deterministic sampler, whatever its rule."""
    process = Warm(ConstantBNR(bnr))
    oracle = GaussianOracle(spectrum, process)
    levels = sampler.grid.levels(process)
    ones = idct(torch.ones(1, *spectrum.shape, dtype=torch.float64))  # the sampler wants unit noise as pixels
    deviation = sampler(oracle, process, ones, SeedStreams([0])).abs()
    exact = oracle.exact_flow(process.prior(ones, levels[0], SeedStreams([0])), levels[0], levels[-1])
    return {"frechet": frechet(deviation, spectrum.sqrt()), "frechet_ode": frechet(deviation, exact)}


def read_spectrum(data: str) -> tuple[Tensor, str]:
    """S, float64 [C, H, W], of the training images in a folder or zip, and what they are in words."""
    images = ImageFolder(data).train_images().all()
    about = f"{Path(data).name}: {len(images)} training images {list(images.shape[1:])} in [-1, 1]"
    return power_spectrum(dequantise(images)), about


def run(data: str, out: Path, command: list[str]) -> list[dict[str, float]]:
    """Measure S and every row, and write them."""
    began = time.perf_counter()
    spectrum, about = read_spectrum(data)
    bar = tqdm(list(product(BNRS, NFES)), desc="Sampling", unit=" settings")
    rows = [measure(spectrum, bnr, nfe) for bnr, nfe in bar]
    protocol = {
        "data": about,
        "spectrum": "variance over images of each orthonormal DCT-II coefficient, per channel",
        "sampler": "Heun, rho 7, beta 0.002 to 80, then 0; initial variance 80^2 at every frequency",
        "frechet": "squared, summed over channels and frequencies, to N(0, diag S)",
        "frechet_ode": "the same, to where the exact ODE takes the same start",
        "seconds": round(time.perf_counter() - began, 1),
        "versions": {"warm_lightning": warm_lightning.__version__, "torch": torch.__version__},
        "command": " ".join(command),
    }
    write_file(out, json.dumps({"rows": rows, "protocol": protocol}, indent=2).encode())
    return rows


def table(rows: list[dict[str, float]], key: str) -> str:
    """Rows as text: a line a BNR, a column an NFE."""
    values = {(row["bnr"], row["nfe"]): row[key] for row in rows}
    lines = [f"{key:<12}" + "".join(f"{'NFE ' + str(nfe):>11}" for nfe in NFES)]
    lines += [f"BNR {bnr:<8g}" + "".join(f"{values[bnr, nfe]:>11.4g}" for nfe in NFES) for bnr in BNRS]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gaussian_oracle", description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder or zip of images, CIFAR-10's for instance")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    try:
        rows = run(options.data, options.out, [parser.prog, *(sys.argv[1:] if arguments is None else arguments)])
    except UserError as error:
        print(f"gaussian_oracle: {error}", file=sys.stderr)
        return 2
    print(table(rows, "frechet"), table(rows, "frechet_ode"), f"written to {options.out}", sep="\n\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
