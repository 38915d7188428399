"""CLEVRER's annotations, rewritten for the frames of a video that are kept."""

from __future__ import annotations

import json
from typing import Any

from ssl_vivit.data.video.annotation_fields import Field
from ssl_vivit.errors import AnnotationError, DecodingError
from ssl_vivit.nested_text import read_json_text


def renumbered(annotation: bytes, kept: list[int], num_frames: int) -> bytes:
    """CLEVRER's annotation in the numbers of the kept frames.

    Trajectories of frames that were left out go, those of repeated frames repeat; a collision moves
    to the nearest kept frame.

    Args:
        annotation: the JSON.
        kept: numbers of the frames that stay, ascending; one may stand several times.
        num_frames: of the video before.

    Raises:
        DecodingError: if it is no JSON object, or a frame's number is none; names the field.
    """
    try:
        content = Field(read_json_text(annotation))
        content.check(isinstance(content.value, dict), "an object")
        if kept == list(range(num_frames)):
            return annotation
        places: dict[int, list[int]] = {}
        for k, frame in enumerate(kept):
            places.setdefault(frame, []).append(k)

        def numbered(name: str) -> list[tuple[dict[str, Any], int]]:
            entries = content[name].items() if name in content.value else []
            return [(entry.value, entry["frame_id"].whole()) for entry in entries]

        trajectory = [
            {**entry, "frame_id": k}
            for entry, frame in numbered("motion_trajectory")
            for k in places.get(frame, ())
        ]
        collisions = [
            {**entry, "frame_id": places[min(kept, key=lambda f: abs(f - frame))][0]}
            for entry, frame in numbered("collision")
        ]
    except AnnotationError as error:
        raise DecodingError(f"its annotation: {error}") from error
    except (ValueError, RecursionError) as error:
        raise DecodingError(f"its annotation is no JSON: {error}") from error
    changed = {**content.value, "motion_trajectory": trajectory, "collision": collisions}
    return json.dumps(changed).encode()
