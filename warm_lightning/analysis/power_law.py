"""The power law S = c/λˢ: its fit to a spectrum, and the blur-to-noise ratio that it suggests (Section 4.4, and more).

Noise β and signal are equal at the frequency λ* with S(λ*) = β². At λ*, the blur α has the gain
M_α(λ*) = exp(-λ*α²/2) and attenuates the signal by 1 - M. For s = 1 and α = BNR·β the gain is exp(-c·BNR²/2) at every
β. The tolerable attenuation is a choice; the suggested BNR follows from this choice alone.

Nothing is suggested by a law that does not hold: it must explain at least half of the variance of ln S over the fitted
frequencies (`EXPLAINED`), with s = 1 for a BNR and with the fitted s for a path. Of exact power laws those with s from
0.59 to 3.4 are explained by half with s = 1.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor

from warm_lightning.analysis.spectrum import MeasuredSpectrum, ring_means
from warm_lightning.errors import check
from warm_lightning.spectral import frequencies, log_blur

# ---- fit of the law

RANGES = (0.5, 1.0, 2.0, 5.0, math.inf)
"""Values of λ below which the law is fitted, beside the requested one; in photographs, c and s depend on the range."""


class PowerLawFit(NamedTuple):
    """A fitted law S = c/λˢ.

    Attributes:
        c: the factor, [...].
        s: the exponent, [...].
        residual: root mean square of ln S - ln(c/λˢ) over the fitted frequencies, [...].
        explained: share of the variance of ln S over these frequencies that the law explains, [...]; with a given s it
            may be negative: then a constant S fits better.
    """

    c: Tensor
    s: Tensor
    residual: Tensor
    explained: Tensor


def fit(power: Tensor, below: float, s: float | None = None) -> PowerLawFit:
    """Fit ln S = ln c - s·ln λ by ordinary least squares over the frequencies 0 < λ < below, with equal weights.

    Args:
        power: S, [..., H, W], positive at these frequencies.
        below: the upper limit of λ in radians²/pixel².
        s: a fixed exponent; None fits it.
    """
    rates = frequencies(power)
    chosen = (rates > 0) & (rates < below)
    x, y = rates[chosen].log(), power[..., chosen].log()
    centred = x - x.mean()
    slope = -(y * centred).sum(dim=-1) / centred.square().sum() if s is None else y.new_full(y.shape[:-1], s)
    c = (y.mean(dim=-1) + slope * x.mean()).exp()
    squared = (y - (c.log().unsqueeze(-1) - slope.unsqueeze(-1) * x)).square().mean(dim=-1)
    return PowerLawFit(c, slope, squared.sqrt(), 1 - squared / y.var(dim=-1, correction=0))


def fit_row(measured: MeasuredSpectrum, below: float) -> dict[str, Any]:
    """Fit the law to the mean over channels, with s free and with s = 1.

    Returns:
        below (None: all frequencies), coefficients, c, c_se, s, s_se, residual, explained; c_at_s1, c_at_s1_se,
        residual_at_s1, explained_at_s1.
        Standard errors are of the bootstrap over images: they do not include the deviation of S from a power law.
    """
    rates = frequencies(measured.power)
    free, resampled = (fit(power, below) for power in (measured.mean_power, measured.resampled))
    one, resampled_one = (fit(power, below, s=1.0) for power in (measured.mean_power, measured.resampled))
    return {
        "below": below if math.isfinite(below) else None,
        "coefficients": int(((rates > 0) & (rates < below)).sum()),
        "c": free.c.item(),
        "c_se": resampled.c.std().item(),
        "s": free.s.item(),
        "s_se": resampled.s.std().item(),
        "residual": free.residual.item(),
        "explained": free.explained.item(),
        "c_at_s1": one.c.item(),
        "c_at_s1_se": resampled_one.c.std().item(),
        "residual_at_s1": one.residual.item(),
        "explained_at_s1": one.explained.item(),
    }


def fit_rows(measured: MeasuredSpectrum, below: float) -> list[dict[str, Any]]:
    """The rows of `fit_row` for the range λ < below and for `RANGES`, where the images have enough frequencies.

    Raises:
        UserError: no line can be fitted in the range λ < below, or S does not fall with λ there.
    """
    rates = frequencies(measured.power).flatten()[1:].sort().values
    check(
        _has_a_slope(rates, below),
        f"--fit_below {below:g} leaves no slope to fit: images of this size have λ from {rates[0]:.3g} to "
        f"{rates[-1]:.3g}; give more than {1.1 * rates[rates > 1.01 * rates[0]][0]:.2g}",
    )
    rows = [fit_row(measured, edge) for edge in sorted({below, *RANGES}) if _has_a_slope(rates, edge)]
    chosen = chosen_row(rows, below)
    check(
        chosen["s"] > 0,
        f"the spectrum does not fall below --fit_below {below:g} (s = {chosen['s']:.3g}), as that of noise: a BNR is "
        "for images whose power falls with frequency",
    )
    return rows


def chosen_row(rows: list[dict[str, Any]], below: float) -> dict[str, Any]:
    """The row of the range λ < below."""
    return next(row for row in rows if (row["below"] or math.inf) == below)


def _has_a_slope(rates: Tensor, below: float) -> bool:
    chosen = rates[rates < below]
    return len(chosen) > 2 and bool(chosen[-1] > 1.01 * chosen[0])


# ---- blur-to-noise ratios by the law

TOLERANCES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
"""Attenuations for which a BNR is given, beside the requested one."""
EXPLAINED = 0.5
"""The least share of the variance of ln S that a law must explain for something to be suggested by it.

Measured over the five ranges: CIFAR-10 at 32×32 0.82 to 0.94 (0.70 to 0.90 with s = 1), normal fields of a power law
0.99 and more, the digits 0.02 to 0.47, white noise 0.02 and less.
"""


def formula(c: float, bnr: float) -> float:
    """The gain of the blur where noise equals a signal S = c/λ, M_α(λ*) = exp(-c·BNR²/2), the same at every β."""
    return math.exp(-c * bnr**2 / 2)


def suggested_bnr(c: float, tolerance: float) -> float:
    """The BNR at which `formula` gives an attenuation 1 - M equal to the tolerance, for S = c/λ."""
    return math.sqrt(-2 * math.log1p(-tolerance) / c)


def suggested_path(c: float, s: float, tolerance: float) -> dict[str, float]:
    """The path with this attenuation for S = c/λˢ, s > 0: bnr and exponent of `PowerLaw`, α = bnr·β^exponent."""
    return {"bnr": math.sqrt(-2 * math.log1p(-tolerance) * c ** (-1 / s)), "exponent": 1 / s}


def suggestion_rows(fits: list[dict[str, Any]], tolerance: float) -> list[dict[str, Any]]:
    """The suggested BNRs, a row for each range of the fit and each tolerance, including the given one.

    Returns:
        below, tolerance; bnr and its standard error bnr_se, for s = 1; path_bnr and path_exponent. Those of a law that
        explains less than `EXPLAINED`, or whose s is not above 0, are None.
    """
    rows = []
    for row in fits:
        ray, curve = (row[name] >= EXPLAINED for name in ("explained_at_s1", "explained"))
        for attenuation in sorted({tolerance, *TOLERANCES}):
            bnr = suggested_bnr(row["c_at_s1"], attenuation) if ray else None
            path = suggested_path(row["c"], row["s"], attenuation) if curve and row["s"] > 0 else {}
            rows.append(
                {
                    "below": row["below"],
                    "tolerance": attenuation,
                    "bnr": bnr,
                    # bnr is proportional to c^(-1/2)
                    "bnr_se": None if bnr is None else bnr * row["c_at_s1_se"] / row["c_at_s1"] / 2,
                    "path_bnr": path.get("bnr"),
                    "path_exponent": path.get("exponent"),
                }
            )
    return rows


# ---- blur-to-noise ratios without a law

LEVELS = 200  # noise levels, evenly spaced in ln β


def crossings(power: Tensor) -> tuple[Tensor, Tensor]:
    """Noise levels β, and for each the frequency λ* where noise and signal are equal.

    S is the geometric mean of each ring except for the first, and ln S is interpolated linearly in ln λ between rings,
    which is exact for every power law. λ* is the frequency above which S stays below β².

    Args:
        power: S, [H, W].

    Returns:
        β, [200], evenly spaced in ln β: from the level at which λ* is the highest frequency to the level at which it
        is the lowest one or that of the highest S; and λ* in radians²/pixel², [200].

    Raises:
        UserError: S is highest at the highest frequency.
    """
    x, y = (ring_means(values.log())[1:] for values in (frequencies(power), power))
    check(bool(y.max() > y[-1]), "the spectrum does not fall with frequency, as that of noise: no BNR goes with it")
    levels = torch.linspace(y[-1].item(), y.max().item(), LEVELS + 2, dtype=y.dtype)[1:-1]  # ln β²
    last = len(y) - 1 - (y.flip(0) >= levels[:, None]).byte().argmax(dim=1)
    share = (y[last] - levels) / (y[last] - y[last + 1])
    return (levels / 2).exp(), torch.lerp(x[last], x[last + 1], share).exp()


def attenuation_rows(power: Tensor, c: float | None, bnrs: Sequence[float]) -> list[dict[str, Any]]:
    """The gain M of the blur where noise and signal are equal, a row for each BNR.

    Args:
        power: S, [H, W].
        c: of the law fitted with s = 1; None if it does not hold.
        bnrs: the BNRs.

    Returns:
        Rows of bnr, formula (None without c), and of M at the λ* of `crossings`: measured (the mean over ln β), lowest
        and highest.
    """
    beta, rate = crossings(power)
    rows = []
    for bnr in bnrs:
        gain = log_blur(rate, bnr * beta).exp()
        values = {"measured": gain.mean(), "lowest": gain.min(), "highest": gain.max()}
        by_law = None if c is None else formula(c, bnr)
        rows.append({"bnr": bnr, "formula": by_law, **{name: value.item() for name, value in values.items()}})
    return rows


def measured_rows(power: Tensor, tolerance: float) -> list[dict[str, float]]:
    """The suggested BNRs without a power law, a row for each tolerance, including the given one.

    Args:
        power: S, [H, W].
        tolerance: the requested attenuation.

    Returns:
        Rows of tolerance; bnr, at which the mean over ln β of the attenuation at the λ* of `crossings` equals the
        tolerance; and bnr_strict, the largest BNR at which the attenuation exceeds it at no β.
    """
    beta, rate = crossings(power)
    local_c = rate * beta.square()  # the c of a law c/λ through S at λ*
    rows = []
    for attenuation in sorted({tolerance, *TOLERANCES}):

        def excess_gain(bnr: float, attenuation: float = attenuation) -> float:
            return log_blur(rate, bnr * beta).exp().mean().item() - (1 - attenuation)

        strict, largest = (suggested_bnr(c.item(), attenuation) for c in (local_c.max(), local_c.min()))
        rows.append({"tolerance": attenuation, "bnr": brentq(excess_gain, 0, 1.01 * largest), "bnr_strict": strict})
    return rows
