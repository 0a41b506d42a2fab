"""What trained models of digits make of a solver: scores of its samples, and how far it strays from the exact ODE."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from warm_lightning.config import load_checkpoint
from warm_lightning.data import Digits
from warm_lightning.errors import check
from warm_lightning.images import quantise
from warm_lightning.metrics import BATCH_SIZE, DigitsFeatures, Observer, Pixels, Scores, measure
from warm_lightning.model import DiffusionModel
from warm_lightning.samplers import Heun, PowerGrid, Sampler

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
    observers = [Observer(extractor, BATCH_SIZE, "cpu") for extractor in (DigitsFeatures(), Pixels())]
    references = [measure(observer, data, source="Digits: all images") for observer in observers]
    rows = []
    beside: dict[str, dict[str, Any]] = {}
    bar = tqdm([(label, *entry) for label in models for entry in samplers], desc="Solvers", unit=" settings")
    exact = {label: sample(model, EXACT, SEEDS[:PATHS]) for label, model in models.items()}
    for label, name, sampler in bar:
        scored = name in SCORED
        images = sample(models[label], sampler, SEEDS if scored else SEEDS[:PATHS])
        rms = (images[:PATHS] - exact[label]).square().mean().sqrt().item()
        row = {"model": label, "solver": name, "nfe": sampler.nfe, "rms": rms}
        for observer, reference in zip(observers, references, strict=True) if scored else ():
            scores = Scores(observer, reference, data.shape)
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
        "extractors": [observer.extractor.describe() for observer in observers],
    }
    return {"trained": rows, "beside": list(beside.values())}
