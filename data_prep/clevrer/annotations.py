"""Rewrite CLEVRER's annotations for the kept frames of a video."""

from __future__ import annotations

import json
from typing import Any

from ssl_vivit.data.video.annotation_fields import Field
from ssl_vivit.errors import AnnotationError, DecodingError
from ssl_vivit.nested_text import read_json_text


def renumbered(annotation: bytes, kept: list[int], num_frames: int) -> bytes:
    """Renumber the frames of CLEVRER's annotation for a video with dropped or repeated frames.

    Trajectory entries of dropped frames are removed, those of repeated frames are repeated, and
    collisions move to the nearest kept frame.

    Args:
        annotation: the annotation as JSON.
        kept: numbers of the kept frames, ascending; repeated frames are listed repeatedly.
        num_frames: number of frames of the original video.

    Raises:
        DecodingError: if the annotation is not a JSON object or a frame number is invalid; the
            message names the field.
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
        raise DecodingError(f"its annotation is not valid JSON: {error}") from error
    changed = {**content.value, "motion_trajectory": trajectory, "collision": collisions}
    return json.dumps(changed).encode()
