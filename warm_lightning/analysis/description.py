"""Numbers that describe a configuration: its network (Table 6) and its path through the blur-noise plane (Fig. 6)."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from warm_lightning.analysis.figures import new_figure, save_figure
from warm_lightning.losses import ClockLaw
from warm_lightning.networks.base import Network
from warm_lightning.processes import Process
from warm_lightning.processes.base import LARGE
from warm_lightning.samplers import Grid
from warm_lightning.spectral import frequencies
from warm_lightning.types import Level

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# ---- network


def parameter_count(network: Network) -> int:
    """Number of trainable parameters."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def forward_flops(network: Network) -> int:
    """FLOPs of convolutions and matrix products in a call for one image, where a multiply-add counts as two.

    Nothing is computed: the tensors are on the meta device and have only shapes.
    """
    size = network.resolution
    x = torch.empty(1, network.image_channels, size, size, device="meta")
    tensors = [*network.named_parameters(), *network.named_buffers()]  # also the buffers that checkpoints leave out
    weights = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors}
    signal = torch.empty(1, device="meta")
    with torch.no_grad(), torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        functional_call(network, weights, (x, signal, signal))
    return counter.get_total_flops()


# ---- path

QUANTILES = (0.001, 0.5, 0.999)
"""Quantiles of the training levels that are described: nearly the least noise, the median, nearly the most."""
PATH_LEVELS = 200  # clock readings of a path, in each of two spacings


def describe_levels(process: Process, level: Level) -> dict[str, list[float]]:
    """Levels as lists of clock, alpha, beta, bnr = α/β (not finite if β = 0) and scale, the factor of the process."""
    columns = {"clock": level.clock, "alpha": level.alpha, "beta": level.beta, "bnr": level.alpha / level.beta}
    # Adding 0 turns -0, which the logarithm of 1 gives, into 0.
    return {name: (values + 0.0).tolist() for name, values in {**columns, "scale": process.scale(level)}.items()}


def describe_trained(process: Process, clocks: Tensor) -> dict[str, list[float]]:
    """Levels at clock readings [N] as `describe_levels` gives them, and the range of blur trained on at each level.

    Returns:
        The lists of `describe_levels`, and alpha_low and alpha_high, the smallest and the largest blur at which a model
        of this process is trained at that noise level.
    """
    noise_levels = list(zip(clocks.split(1), process.level(clocks).beta.tolist(), strict=True))
    low, high = (
        torch.cat([process.nearest_path(alpha, beta).level(clock).alpha for clock, beta in noise_levels])
        for alpha in (0.0, LARGE)
    )
    levels = describe_levels(process, process.level(clocks))
    return {**levels, "alpha_low": low.tolist(), "alpha_high": high.tolist()}


def describe_path(process: Process, law: ClockLaw, grid: Grid) -> dict[str, dict[str, list[float]]]:
    """The path of a process through the blur-noise plane, as lists of equal length.

    Returns:
        `sampling`, the levels of the grid, see `describe_levels`; `trained`, the levels at the `QUANTILES` of the
        training law; and `path`, many levels from the last one up to the first of sampling or training, evenly
        spaced in the clock and in its logarithm; see `describe_trained` for both.
    """
    clocks = grid.clocks()
    quantiles = law.quantile(torch.tensor(QUANTILES, dtype=torch.float64))
    both = torch.cat([clocks, quantiles])
    low, high = both[both > 0].min().item(), both.max().item()
    linear = torch.linspace(0, high, PATH_LEVELS, dtype=torch.float64)
    logarithmic = torch.logspace(0, 1, PATH_LEVELS, base=high / low, dtype=torch.float64) * low
    fine = torch.cat([linear, logarithmic.clamp(max=high)]).unique()
    return {
        "sampling": describe_levels(process, process.level(clocks)),
        "trained": {"quantile": list(QUANTILES), **describe_trained(process, quantiles)},
        "path": describe_trained(process, fine),
    }


SNR_POINTS = 101
SNR_FREQUENCIES = 6


def describe_snr(process: Process, grid: Grid, power: Tensor) -> dict[str, Any]:
    """The signal-to-noise ratio A² S/B² of some frequencies over the steps of a sampler.

    Args:
        process: a process that has learned what it needs.
        grid: of the sampler; between its levels the clock is linear.
        power: S, the second moment of the data's DCT coefficients, float64 [C, H, W].

    Returns:
        share: of the steps that are left, from 1 to 0 (exclusive); frequency: √λ of each chosen frequency along a row,
        in radians per pixel; db: for each frequency 10 log10 of its SNR, the mean over channels and over rows and
        columns.
    """
    clocks = grid.clocks()[:-1]
    position = torch.linspace(0, len(clocks) - 1, SNR_POINTS, dtype=torch.float64)
    below = position.floor().long().clamp(max=max(0, len(clocks) - 2))
    fine = torch.lerp(clocks[below], clocks[(below + 1).clamp(max=len(clocks) - 1)], position - below)
    columns = torch.linspace(1, power.shape[2] - 1, min(SNR_FREQUENCIES, power.shape[2] - 1)).round().long()
    rows = (columns * power.shape[1] / power.shape[2]).long()
    gains = process.gains(process.level(fine), power[None].expand(SNR_POINTS, -1, -1, -1))
    log_snr = 2 * gains.log_signal + power.log() - 2 * gains.noise.log()
    chosen = (log_snr[..., 0, columns] + log_snr[..., rows, 0]).mean(1) / 2
    return {
        "share": (1 - position / len(clocks)).tolist(),
        "frequency": frequencies(power)[0, columns].sqrt().tolist(),
        "db": (10 / math.log(10) * chosen).T.tolist(),
    }


def plot(description: dict[str, Any], title: str, out: Path) -> None:
    """Draw a path in the blur-noise plane to a PNG file; see `path_figure`."""
    save_figure(path_figure(description, title), out)


def path_figure(description: dict[str, Any], title: str, width: float = 6.5, height: float = 5) -> "Figure":
    """Draw a path in the blur-noise plane: a line, the sampling levels as dots, and the training levels shaded.

    Args:
        description: of `describe_path`.
        title: of the figure.
        width: in inches.
        height: in inches.
    """
    path, sampling, trained = (description[name] for name in ("path", "sampling", "trained"))
    figure = new_figure(width, height)
    axes = figure.subplots()
    first, last = min(trained["clock"]), max(trained["clock"])
    inside = [k for k, clock in enumerate(path["clock"]) if first <= clock <= last]
    names = ("beta", "alpha", "alpha_low", "alpha_high")
    beta, alpha, low, high = ([path[name][k] for k in inside] for name in names)
    shade = ("tab:orange", 0.25)
    axes.fill_between(beta, low, high, lw=0, color=shade)
    axes.plot(beta, alpha, lw=9, solid_capstyle="butt", label="trained on (99.8 % of the levels)", color=shade)
    axes.plot(path["beta"], path["alpha"], color="black", lw=1, label="path")
    axes.plot(sampling["beta"], sampling["alpha"], "o", color="tab:blue", ms=4, label="sampling levels")
    _rescale(axes.set_xscale, axes.set_xlim, sampling["beta"], path["beta"])
    _rescale(axes.set_yscale, axes.set_ylim, sampling["alpha"], path["alpha"])
    axes.set(xlabel="noise level β (images in [-1, 1])", ylabel="blur level α (pixels)")
    axes.set_title(title, fontsize=9, wrap=True)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=9)
    return figure


def _rescale(
    set_scale: Callable[..., Any], set_limits: Callable[..., Any], sampling: list[float], path: list[float]
) -> None:
    """Make an axis logarithmic; if the path reaches 0, linear below the smallest positive sampling level."""
    smallest = min((value for value in sampling if value > 0), default=1.0)
    if min(path) > 0:
        set_scale("log")
    else:
        set_scale("symlog", linthresh=smallest, linscale=0.6)
        set_limits(-smallest / 2, max(2 * max(path), smallest))
