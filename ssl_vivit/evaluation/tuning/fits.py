"""Descriptive functions of tuning curves, fitted by least squares."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from ssl_vivit.errors import DataError

Values = Float[np.ndarray, " k"]
# Largest concentration of direction tuning; 100 is a half width at half height of 7 degrees.
_SHARPEST = 100.0


@dataclass(frozen=True)
class Function:
    """A descriptive function of a tuning curve.

    Attributes:
        names: names of the parameters.
        curve: function from values x of the stimulus property, and from the parameters as further
            arguments, to responses.
        limits: function from values x and responses y of a measured curve to the lower limits and
            the upper limits of all parameters.
        starts: function from x and y to a list of initial parameters. A fit is made from each, and
            the best fit is used.
    """

    names: tuple[str, ...]
    curve: Callable[..., Values]
    limits: Callable[[Values, Values], tuple[Sequence[float], Sequence[float]]]
    starts: Callable[[Values, Values], Sequence[Sequence[float]]]


@dataclass(frozen=True)
class Fit:
    """A descriptive function with parameters that were fitted to a tuning curve.

    Attributes:
        function: the descriptive function.
        parameters: name of a parameter → fitted value.
        r2: fraction of the variance over the curve's points that the function explains.
    """

    function: Function
    parameters: dict[str, float]
    r2: float

    def __call__(self, x: Values) -> Values:
        """Evaluate the fitted curve at values ``x``."""
        return self.function.curve(x, *self.parameters.values())


def check_scipy() -> None:
    """Check that SciPy is installed.

    Raises:
        DataError: if SciPy is missing; the message says how to install it.
    """
    try:
        import scipy.optimize  # noqa: F401
    except ImportError:
        raise DataError(
            "fits of tuning curves need scipy; run `pip install 'ssl_vivit[neural]'`, or set "
            "--fits false"
        ) from None


def fit(function: Function, x: Values, y: Values) -> Fit | None:
    """Fit a function to a curve by least squares.

    Returns None if the curve is flat, has no positive response, or has fewer points than the
    function has parameters.

    Args:
        function: one of :data:`FUNCTIONS`.
        x: k values of the property.
        y: responses.
    """
    from scipy.optimize import least_squares

    total = float(np.square(y - y.mean()).sum())
    peak = float(y.max())
    varies = np.isfinite(y).all() and peak > 0 and total > 1e-12 * peak**2
    if not varies or len(x) < len(function.names):
        return None
    # In units of the peak, so that tolerances do not depend on the unit.
    scaled = y / peak
    low, high = map(np.array, function.limits(x, scaled))
    best, least = None, math.inf
    for start in function.starts(x, scaled):
        found = least_squares(
            lambda parameters: function.curve(x, *parameters) - scaled,
            np.clip(start, low + 1e-6 * (high - low), high - 1e-6 * (high - low)),
            bounds=(low, high),
        )
        if 2 * found.cost < least:
            best, least = found.x, 2 * found.cost
    if best is None:
        return None
    named = dict(zip(function.names, best.tolist(), strict=True))
    named |= {name: value * peak for name, value in named.items() if name in _AMPLITUDES}
    return Fit(function, named, 1 - least * peak**2 / total)


_AMPLITUDES = {"baseline", "amplitude", "opposite", "excitation", "inhibition"}


def fit_all(
    values: Mapping[str, Values], responses: Mapping[str, Float[np.ndarray, "n k"]]
) -> dict[str, list[Fit | None]]:
    """Fit every curve of every unit; return property → list with a fit or None for each unit."""
    return {
        name: [fit(FUNCTIONS[name], values[name], curve) for curve in curves]
        for name, curves in responses.items()
    }


def _bump(degrees: Values, centre: float, concentration: float, period: float) -> Values:
    """Evaluate a von Mises function with maximum 1 at ``centre``."""
    return np.exp(concentration * (np.cos(2 * np.pi * (degrees - centre) / period) - 1))


def _direction(
    x: Any,
    baseline: float,
    amplitude: float,
    opposite: float,
    preferred: float,
    concentration: float,
) -> Values:
    here = amplitude * _bump(x, preferred, concentration, 360)
    return baseline + here + opposite * _bump(x, preferred + 180, concentration, 360)


def _orientation(
    x: Any, baseline: float, amplitude: float, preferred: float, concentration: float
) -> Values:
    return baseline + amplitude * _bump(x, preferred, concentration, 180)


def _log_gaussian(
    x: Any, baseline: float, amplitude: float, preferred: float, octaves: float
) -> Values:
    return baseline + amplitude * np.exp(-np.square(np.log2(x / preferred) / octaves) / 2)


def _naka_rushton(x: Any, amplitude: float, c50: float, exponent: float) -> Values:
    power = np.power(x, exponent)
    return amplitude * power / (power + c50**exponent)


def _size(x: Any, excitation: float, centre: float, inhibition: float, extra: float) -> Values:
    from scipy.special import erf

    return excitation * erf(x / centre) - inhibition * erf(x / (centre + extra))


def _frequency_limits(x: Values, y: Values) -> tuple[Sequence[float], Sequence[float]]:
    return (min(0.0, y.min()), 0, x[0] / 2, 0.2), (max(y.max(), 1e-3), 5, x[-1] * 2, 5)


FUNCTIONS = {
    "direction": Function(
        ("baseline", "amplitude", "opposite", "preferred", "concentration"),
        _direction,
        lambda x, y: ((min(0.0, y.min()) - 1, 0, 0, -360, 0.05), (1, 3, 3, 720, _SHARPEST)),
        lambda x, y: [(max(y.min(), 0), 1, 0.5, x[y.argmax()], k) for k in (1.0, 4.0, 16.0)],
    ),
    "orientation": Function(
        ("baseline", "amplitude", "preferred", "concentration"),
        _orientation,
        lambda x, y: ((min(0.0, y.min()) - 1, 0, -180, 0.05), (1, 3, 360, _SHARPEST)),
        lambda x, y: [(max(y.min(), 0), 1, x[y.argmax()], k) for k in (0.5, 2.0, 8.0)],
    ),
    "spatial_frequency": Function(
        ("baseline", "amplitude", "preferred", "octaves"),
        _log_gaussian,
        _frequency_limits,
        lambda x, y: [(0.0, 1.0, x[y.argmax()], w) for w in (0.5, 1.5)],
    ),
    "temporal_frequency": Function(
        ("baseline", "amplitude", "preferred", "octaves"),
        _log_gaussian,
        _frequency_limits,
        lambda x, y: [(0.0, 1.0, x[y.argmax()], w) for w in (0.5, 1.5)],
    ),
    "contrast": Function(
        ("amplitude", "c50", "exponent"),
        _naka_rushton,
        lambda x, y: ((0, 0.01, 0.5), (10, 2, 8)),
        lambda x, y: [(1.2, c, n) for c in (0.2, 0.5) for n in (1.5, 3.0)],
    ),
    "size": Function(
        ("excitation", "centre", "inhibition", "extra"),
        _size,
        lambda x, y: ((0, x[0] / 4, 0, 0), (20, 4 * x[-1], 20, 8 * x[-1])),
        lambda x, y: [(1.5, x[y.argmax()] * share, 0.5, x[-1] / 2) for share in (0.5, 1.0)],
    ),
}
"""Property → its descriptive function.

- direction: a baseline and two von Mises functions, 180 degrees apart, of equal concentration
  (Swindale 1998, Biol. Cybern. 78:45).
- orientation: a baseline and one von Mises function with a period of 180 degrees (Swindale 1998).
- spatial and temporal frequency: a baseline and a Gaussian of the logarithm; ``octaves`` is its
  standard deviation (Priebe, Lisberger & Movshon 2006, J. Neurosci. 26:2941).
- contrast: R · cⁿ / (cⁿ + c50ⁿ), without a baseline because responses are relative to grey (Naka &
  Rushton 1966, J. Physiol. 185:536; Albrecht & Hamilton 1982, J. Neurophysiol. 48:217).
- size: difference of two Gaussian integrals with widths of ``centre`` and ``centre`` + ``extra``
  pixels (Sceniak et al. 1999, Nat. Neurosci. 2:733; 2001, J. Neurophysiol. 85:1873).
"""
