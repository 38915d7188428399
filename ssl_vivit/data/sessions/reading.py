"""Read sequences of frames of trials and make batches of them: padded, standardised, on a device.

A batch has one part for each session: a dictionary of the stacked frames of this session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ssl_vivit.data.phases import phase
from ssl_vivit.data.randomness import Names
from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.to_device import to_device


@dataclass(frozen=True)
class Piece:
    """Frames [start, start + length) of a trial; frames after the trial's end are padding.

    Args:
        session: index of the session.
        trial: number of the trial.
        start: first frame.
        length: number of frames, including padding.
        draw: names that seed the random draws for this piece in training: (seed, epoch, session,
            trial, number of the window). None if there are no random draws.
    """

    session: int
    trial: int
    start: int
    length: int
    draw: Names | None = None


def read_part(
    session: Session, pieces: Sequence[Piece], hidden: np.ndarray, drop_first: int
) -> dict[str, Any]:
    """Read pieces of equal length of one session from disk, without standardising them.

    Args:
        session: session of all pieces.
        pieces: pieces to be stacked.
        hidden: bool (N,) neurons whose responses are replaced by NaN.
        drop_first: number of frames at the start of a piece whose responses are replaced by NaN.

    Returns:
        A dictionary of the stacked pieces, on the CPU.

        - ``session``: name of the session
        - ``video`` (b, T, H, W): pixels from 0 to 255
        - ``behaviour`` (b, T, K): all recorded channels; None if there are none
        - ``pupil_centre`` (b, T, 2): None if it was not measured
        - ``responses`` (b, T, N): NaN if unknown, replaced (see ``hidden`` and ``drop_first``), or
          padding
        - ``frames`` (b, T): number of each frame in its trial; −1 for padding
        - ``trial`` (b,): number of the trial of each piece
        - ``content`` (b,): number of the movie of each piece
        - ``shows``: list with, for each piece, the index of the first piece that shows the same
          frames of the same movie
        - ``draw``: list of the names that seed the random draws of each piece; absent if pieces
          have no random draws
    """
    videos, behaviours, pupils, responses, frames = [], [], [], [], []
    first: dict[tuple[int, int, int], int] = {}
    shows: list[int] = []
    for piece in pieces:
        trial, stop = (
            piece.trial,
            min(piece.start + piece.length, int(session.lengths[piece.trial])),
        )
        span = (trial, piece.start, stop)
        movie = (int(session.contents[trial]), piece.start, stop)
        shows.append(first.setdefault(movie, len(shows)))
        padding = piece.length - (stop - piece.start)
        videos.append(_padded(session.video(*span), padding, mode="edge"))
        known = session.responses(*span)
        known[:drop_first] = np.nan
        known[:, hidden] = np.nan
        responses.append(_padded(known, padding, constant_values=np.nan))
        frames.append(_padded(np.arange(piece.start, stop), padding, constant_values=-1))
        if session.behaviour_channels:
            # The padding is set to zero after standardising.
            behaviours.append(_padded(session.behaviour(*span), padding, mode="edge"))
        if session.has_pupil:
            pupils.append(_padded(session.pupil_centre(*span), padding, mode="edge"))
    trials = np.array([piece.trial for piece in pieces], dtype=np.int64)
    names = [piece.draw for piece in pieces if piece.draw is not None]
    return {
        "session": session.name,
        "video": _stacked(videos),
        "behaviour": _stacked(behaviours) if behaviours else None,
        "pupil_centre": _stacked(pupils) if pupils else None,
        "responses": _stacked(responses),
        "frames": _stacked(frames),
        "trial": torch.from_numpy(trials),
        "content": torch.from_numpy(session.contents[trials]),
        "shows": shows,
        **({"draw": names} if names else {}),
    }


def finish_part(part: dict[str, Any], facts: SessionFacts, device: torch.device) -> dict[str, Any]:
    """Standardise video, behaviour and pupil of one session in a batch, and copy them to a device.

    Args:
        part: dictionary that :func:`read_part` returned.
        facts: ``SessionFacts`` of the session.
        device: device of the result.

    Returns:
        A dictionary with the keys of ``part``, in which ``video`` has shape (b, 1, T, H, W).
        ``behaviour`` and ``pupil_centre`` are 0 for padding, and None if they are absent in
        ``part`` or not used by the model.
    """
    behaviour, pupil = part["behaviour"], part["pupil_centre"]
    valid = rearrange(part["frames"] >= 0, "b t -> b t 1")
    # Standardise on the host: on a GPU, the copies of channels and statistics would block the host.
    if behaviour is not None:
        behaviour = (
            facts.standardised_behaviour(behaviour).where(valid, 0)
            if facts.behaviour_channels
            else None
        )
    if pupil is not None:
        pupil = facts.standardised_pupil(pupil).where(valid, 0) if facts.pupil_mean else None
    with phase("copy"):
        moved = {
            name: to_device(value, device) if isinstance(value, Tensor) else value
            for name, value in {**part, "behaviour": behaviour, "pupil_centre": pupil}.items()
        }
    video = rearrange(moved["video"], "b t h w -> b 1 t h w")
    moved["video"] = facts.standardised_video(video)
    return moved


def finish_batch(
    parts: Sequence[dict[str, Any]], facts: Sequence[SessionFacts], device: torch.device
) -> dict[str, Any]:
    """Standardise the parts of a batch, one for each session, and copy them to a device.

    Args:
        parts: dictionaries that :func:`read_part` returned.
        facts: ``SessionFacts`` of the session of each part.
        device: device of the batch.

    Returns:
        The batch, in the format of :class:`~ssl_vivit.data.sessions.windows.WindowBatches`.
    """
    finished = [finish_part(p, f, device) for p, f in zip(parts, facts, strict=True)]
    return {
        "parts": finished,
        "key": [
            f"{part['session']}/{trial}@{start}"
            for part in parts
            for trial, start in zip(
                part["trial"].tolist(), part["frames"][:, 0].tolist(), strict=True
            )
        ],
        "trial": torch.cat([part["trial"] for part in finished]),
    }


def _padded(array: np.ndarray, padding: int, **how: Any) -> np.ndarray:
    if not padding:
        return array
    return np.pad(array, [(0, padding)] + [(0, 0)] * (array.ndim - 1), **how)


def _stacked(arrays: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(arrays))
