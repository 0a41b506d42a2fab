"""S = c/λˢ: fitted to a spectrum, and the blur-to-noise ratio that it suggests (Section 4.4, and beyond it).

Noise β meets the signal at λ* with S(λ*) = β². There the blur α has the gain M_α(λ*) = exp(-λ*α²/2), and attenuates
the signal by 1 - M. For s = 1 and α = BNR·β that is exp(-c·BNR²/2) at every β. Which attenuation is tolerable is a
choice: a BNR follows from it, and from nothing else.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor

from warm_lightning.analysis.spectrum import Measured, ring_means
from warm_lightning.errors import check
from warm_lightning.spectral import frequencies, log_blur

RANGES = (0.5, 1.0, 2.0, 5.0, math.inf)
"""λ below which the law is fitted, beside the one asked for; photographs give other c and s in each."""
TOLERANCES = (0.01, 0.02, 0.03, 0.05, 0.1, 0.2)
"""Attenuations for which a BNR is given, beside the one asked for."""
LEVELS = 200  # of noise, evenly spaced in ln β


class Law(NamedTuple):
    """S = c/λˢ: c and s, and the root mean square of ln S - ln(c/λˢ) over the frequencies fitted; each [...]."""

    c: Tensor
    s: Tensor
    residual: Tensor


def fit(power: Tensor, below: float, s: float | None = None) -> Law:
    """Ordinary least squares of ln S = ln c - s·ln λ over the frequencies 0 < λ < below, each counting once.

    Args:
        power: S, [..., H, W], positive there.
        below: in radians²/pixel².
        s: the exponent, if it is not to be fitted.
    """
    rates = frequencies(power)
    chosen = (rates > 0) & (rates < below)
    x, y = rates[chosen].log(), power[..., chosen].log()
    centred = x - x.mean()
    slope = -(y * centred).sum(dim=-1) / centred.square().sum() if s is None else y.new_full(y.shape[:-1], s)
    c = (y.mean(dim=-1) + slope * x.mean()).exp()
    residual = y - (c.log().unsqueeze(-1) - slope.unsqueeze(-1) * x)
    return Law(c, slope, residual.square().mean(dim=-1).sqrt())


def fit_row(measured: Measured, below: float) -> dict[str, Any]:
    """The law fitted to the mean over channels, with s free and with s = 1.

    Returns:
        below (None: all frequencies), coefficients, c, c_se, s, s_se, residual; c_at_s1, c_at_s1_se, residual_at_s1.
        Standard errors are of the bootstrap over images: they do not say how far S is from any power law.
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
        "c_at_s1": one.c.item(),
        "c_at_s1_se": resampled_one.c.std().item(),
        "residual_at_s1": one.residual.item(),
    }


def fit_rows(measured: Measured, below: float) -> list[dict[str, Any]]:
    """`fit_row` for the range asked for and for `RANGES`, as far as the images have frequencies there.

    Raises:
        UserError: no line can be fitted in the range asked for, or S does not fall there.
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
    """The row of one range."""
    return next(row for row in rows if (row["below"] or math.inf) == below)


def _has_a_slope(rates: Tensor, below: float) -> bool:
    chosen = rates[rates < below]
    return len(chosen) > 2 and bool(chosen[-1] > 1.01 * chosen[0])


def formula(c: float, bnr: float) -> float:
    """M_α(λ*) = exp(-c·BNR²/2), the gain of the blur where the noise meets a signal S = c/λ; the same at every β."""
    return math.exp(-c * bnr**2 / 2)


def suggested_bnr(c: float, tolerance: float) -> float:
    """The BNR whose blur attenuates S = c/λ by the tolerance where SNR = 1: `formula` solved for it."""
    return math.sqrt(-2 * math.log1p(-tolerance) / c)


def suggested_path(c: float, s: float, tolerance: float) -> dict[str, float]:
    """The same for S = c/λˢ, s > 0: bnr and exponent of `processes.PowerLaw`, α = bnr·β^exponent."""
    return {"bnr": math.sqrt(-2 * math.log1p(-tolerance) * c ** (-1 / s)), "exponent": 1 / s}


def suggestion_rows(fits: list[dict[str, Any]], tolerance: float) -> list[dict[str, Any]]:
    """A row a range of the fit and tolerance, the one asked for among them.

    Returns:
        below, tolerance; bnr and its standard error bnr_se, for s = 1; path_bnr and path_exponent, None if s ≤ 0.
    """
    rows = []
    for row in fits:
        for allowed in sorted({tolerance, *TOLERANCES}):
            bnr = suggested_bnr(row["c_at_s1"], allowed)
            path = suggested_path(row["c"], row["s"], allowed) if row["s"] > 0 else {"bnr": None, "exponent": None}
            rows.append(
                {
                    "below": row["below"],
                    "tolerance": allowed,
                    "bnr": bnr,
                    "bnr_se": bnr * row["c_at_s1_se"] / row["c_at_s1"] / 2,  # bnr goes with c^(-1/2)
                    "path_bnr": path["bnr"],
                    "path_exponent": path["exponent"],
                }
            )
    return rows


def crossings(power: Tensor) -> tuple[Tensor, Tensor]:
    """Noise levels, and the frequency where each meets the signal.

    S is taken as the geometric mean of every ring but the first, and as straight between rings in ln S against ln λ,
    which is exact for every power law. λ* is where S falls below β² for good, above which noise exceeds the signal.

    Args:
        power: S, [H, W].

    Returns:
        β, [200], evenly spaced in ln β between where λ* is the highest and where it is the lowest frequency or that
        of the highest S; and λ* in radians²/pixel², [200].

    Raises:
        UserError: S is highest at the highest frequency.
    """
    x, y = (ring_means(values.log())[1:] for values in (frequencies(power), power))
    check(bool(y.max() > y[-1]), "the spectrum does not fall with frequency, as that of noise: no BNR goes with it")
    levels = torch.linspace(y[-1].item(), y.max().item(), LEVELS + 2, dtype=y.dtype)[1:-1]  # ln β²
    last = len(y) - 1 - (y.flip(0) >= levels[:, None]).byte().argmax(dim=1)
    share = (y[last] - levels) / (y[last] - y[last + 1])
    return (levels / 2).exp(), torch.lerp(x[last], x[last + 1], share).exp()


def attenuation_rows(power: Tensor, c: float, bnrs: Sequence[float]) -> list[dict[str, float]]:
    """The gain M of the blur where SNR = 1, against the BNR.

    Args:
        power: S, [H, W].
        c: of the law fitted with s = 1.
        bnrs: to look at.

    Returns:
        Rows of bnr, formula, and of M at λ* of `crossings`: measured (its mean over ln β), lowest and highest.
    """
    beta, rate = crossings(power)
    rows = []
    for bnr in bnrs:
        gain = log_blur(rate, bnr * beta).exp()
        values = {"measured": gain.mean(), "lowest": gain.min(), "highest": gain.max()}
        rows.append({"bnr": bnr, "formula": formula(c, bnr), **{name: value.item() for name, value in values.items()}})
    return rows


def measured_rows(power: Tensor, tolerance: float) -> list[dict[str, float]]:
    """BNRs that need no power law, a row a tolerance, the one asked for among them.

    Args:
        power: S, [H, W].
        tolerance: that was asked for.

    Returns:
        Rows of tolerance; bnr, at which the attenuation at λ* of `crossings` is that in the mean over ln β; and
        bnr_strict, at which it is nowhere more.
    """
    beta, rate = crossings(power)
    steepness = rate * beta.square()  # c, where S = c/λ
    rows = []
    for allowed in sorted({tolerance, *TOLERANCES}):

        def spare(bnr: float, allowed: float = allowed) -> float:
            return log_blur(rate, bnr * beta).exp().mean().item() - (1 - allowed)

        strict, lax = (suggested_bnr(extreme.item(), allowed) for extreme in (steepness.max(), steepness.min()))
        rows.append({"tolerance": allowed, "bnr": brentq(spare, 0, 1.01 * lax), "bnr_strict": strict})
    return rows
