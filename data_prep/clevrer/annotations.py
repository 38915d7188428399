"""CLEVRER's annotations, rewritten for the frames of a video that are kept."""

from __future__ import annotations

import json
from typing import Any

from ssl_vivit.errors import DecodingError


def renumbered(annotation: bytes, kept: list[int], num_frames: int) -> bytes:
    """CLEVRER's annotation in the numbers of the kept frames.

    Trajectories of frames that were left out go, those of repeated frames repeat; a collision moves
    to the nearest kept frame.

    Args:
        annotation: the JSON.
        kept: numbers of the frames that stay, ascending; one may stand several times.
        num_frames: of the video before.

    Raises:
        DecodingError: if it is no JSON object.
    """
    try:
        content: dict[str, Any] = json.loads(annotation)
        if kept == list(range(num_frames)):
            return annotation
        places: dict[int, list[int]] = {}
        for k, frame in enumerate(kept):
            places.setdefault(frame, []).append(k)
        content["motion_trajectory"] = [
            {**entry, "frame_id": k}
            for entry in content.get("motion_trajectory", [])
            for k in places.get(entry["frame_id"], ())
        ]
        content["collision"] = [
            {**entry, "frame_id": places[min(kept, key=lambda f: abs(f - entry["frame_id"]))][0]}
            for entry in content.get("collision", [])
        ]
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise DecodingError(f"its annotation is none of CLEVRER's: {error}") from error
    return json.dumps(content).encode()
