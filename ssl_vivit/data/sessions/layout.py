"""Names of files and tiers in a session's folder, in the layout of Sensorium 2023.

data/{videos,responses,behavior,pupil_center}/N.npy    (H, W, T), (N, T), (K, T), (2, T)
data/true_rates/N.npy                                  (N, T), simulated sessions only
meta/neurons/{unit_ids,cell_motor_coordinates}.npy
meta/trials/tiers.npy
meta/session.json                                      optional: frames_per_second, responses
meta/statistics                                        for other programs; not read here
"""

from __future__ import annotations

from ssl_vivit.errors import SessionError

VIDEOS, RESPONSES, BEHAVIOUR, PUPIL = "videos", "responses", "behavior", "pupil_center"
TRUE_RATES = "true_rates"

UNIT_IDS = "meta/neurons/unit_ids.npy"
COORDINATES = "meta/neurons/cell_motor_coordinates.npy"
TIER_NAMES = "meta/trials/tiers.npy"
SETTINGS = "meta/session.json"

# Uses of a trial in a model; see tier_of.
TIERS = ("train", "validation", "test")

SENSORIUM_TIERS = (
    "train",
    "oracle",
    "validation",
    "live_test_main",
    "live_test_bonus",
    "final_test_main",
    "final_test_bonus",
    "none",
)


def tier_of(name: str) -> str | None:
    """Return "train", "validation" or "test" for a name in tiers.npy; None for unused trials.

    Raises:
        SessionError: if the name is unknown; the message lists the allowed names.
    """
    if name in ("oracle", "validation", "val"):
        return "validation"
    if name.startswith(("live_", "final_", "test")):
        return "test"
    if name in ("train", "none"):
        return None if name == "none" else name
    raise SessionError(
        f"tier {name!r} is unknown; allowed are train, oracle (or validation, val), live_*, "
        "final_*, test*, none"
    )
