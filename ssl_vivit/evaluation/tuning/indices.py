"""Indices of tuning curves; responses must be relative to grey."""

from __future__ import annotations

import numpy as np
from jaxtyping import Complex, Float, Int

Responses = Float[np.ndarray, "n k"]


def vector_sum(
    responses: Responses, degrees: Float[np.ndarray, " k"], *, period: float
) -> Complex[np.ndarray, " n"]:
    """Return the vector sum of responses, divided by the sum of responses.

    The length of the complex result is one minus the circular variance (Mazurek, Kager & Van Hooser
    2014, Front. Neural Circuits 8:92, equations 2 and 4). It is L_ori of this article for a period
    of 180 degrees, and L_dir for 360 degrees. Its angle in degrees, times period / 360, is the
    preferred angle. Negative responses count as 0.

    Args:
        responses: responses to k evenly spaced angles.
        degrees: these k angles in degrees.
        period: period of the angles in degrees.

    Returns:
        One complex number per unit; NaN for units without a positive response.
    """
    positive = np.maximum(responses, 0)
    turns = np.exp(2j * np.pi * degrees / period)
    return _ratio(positive @ turns, positive.sum(1))


def angle_of(vector: Complex[np.ndarray, " n"], *, period: float) -> Float[np.ndarray, " n"]:
    """Return the preferred angle of a vector sum in degrees, from 0 to below ``period``."""
    return np.mod(np.angle(vector) * period / (2 * np.pi), period)


def contrast_index(preferred: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return (preferred − other) / (preferred + other); negative responses count as 0.

    If ``other`` is the response to the opposite direction, this is the direction selectivity index.
    With the response to the orthogonal orientation it is the orientation selectivity index (Niell &
    Stryker 2008, J. Neurosci. 28:7520). NaN if both responses are 0.
    """
    one, two = np.maximum(preferred, 0), np.maximum(other, 0)
    return _ratio(one - two, one + two)


def at_angle(
    responses: Responses, peak: Int[np.ndarray, " n"], degrees: float, *, period: float
) -> Float[np.ndarray, " n"]:
    """Return each unit's response at ``degrees`` from its peak.

    Args:
        responses: responses to k evenly spaced angles, which cover the period.
        peak: index of each unit's peak.
        degrees: distance from the peak, rounded to a multiple of period / k.
        period: period of the angles in degrees.
    """
    count = responses.shape[1]
    steps = round(degrees / period * count)
    return responses[np.arange(len(responses)), (peak + steps) % count]


def suppression_index(responses: Responses) -> Float[np.ndarray, " n"]:
    """Return (largest response − response to the largest size) / largest response.

    Sizes must be in ascending order. 0 is no surround suppression, 1 is complete suppression
    (Sceniak, Hawken & Shapley 2001, J. Neurophysiol. 85:1873). NaN for units without a positive
    response.
    """
    peak = np.maximum(responses.max(1), 0)
    return _ratio(peak - np.maximum(responses[:, -1], 0), peak)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    dtype = np.result_type(above, np.float64)
    return np.divide(above, below, out=np.full(above.shape, np.nan, dtype), where=below > 0)
