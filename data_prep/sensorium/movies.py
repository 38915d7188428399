"""Write training stimuli of sessions as video files, for pretraining without responses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from einops import repeat
from tqdm import tqdm

from data_prep.clevrer.storage import encode_h264
from data_prep.output_files import writing
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.errors import DataError
from ssl_vivit.files import replaced_file


class WrittenMovies(NamedTuple):
    """Result of :func:`write_movies`.

    Attributes:
        written: paths of new files.
        there: paths of files that an earlier call wrote.
        held_out: number of training movies that were excluded, since a validation or test trial of
            one of the sessions also shows them.
    """

    written: list[Path]
    there: list[Path]
    held_out: int


def write_movies(
    sessions: Sequence[str | Path], out: str | Path, *, progress: bool = True
) -> WrittenMovies:
    """Write each movie of the training trials once, as ``out/SESSION_TRIAL.mp4``.

    Movies that are shown in a validation or test trial of any of the sessions are not written.
    Existing files are kept, so that another call continues an interrupted one.

    Args:
        sessions: folders in the Sensorium layout.
        out: folder of the videos; created if missing.
        progress: show a progress bar.

    Returns:
        :class:`WrittenMovies`.

    Raises:
        SessionError: if a session cannot be used.
        DataError: if two sessions have one name, no movie is left, or a file cannot be written.
    """
    opened = [Session(path) for path in sessions]
    names = [session.name for session in opened]
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"several sessions have the name {name}; rename their folders, so that names differ"
            )
    held = {
        session.trials[int(trial)].content
        for session in opened
        for tier in ("validation", "test")
        for trial in session.tiers[tier]
    }
    shown: dict[str, tuple[Session, int]] = {}
    for session in opened:
        for trial in session.tiers["train"]:
            shown.setdefault(session.trials[int(trial)].content, (session, int(trial)))
    chosen = [place for content, place in shown.items() if content not in held]
    if not chosen:
        raise DataError(
            f"all {len(shown)} training movies are also shown in validation or test trials; no "
            "movie is left for pretraining"
        )
    found = WrittenMovies([], [], len(shown) - len(chosen))
    out = Path(out)
    with writing(f"--out {out}"):
        out.mkdir(parents=True, exist_ok=True)
        for session, trial in tqdm(chosen, desc="movies", unit="movie", disable=not progress):
            path = out / f"{session.name}_{trial:05d}.mp4"
            if path.exists():
                found.there.append(path)
                continue
            grey = np.clip(np.rint(session.video(trial)), 0, 255).astype(np.uint8)
            colours = repeat(grey, "t h w -> t h w c", c=3)
            with replaced_file(path) as part:
                part.write_bytes(encode_h264(colours, session.frames_per_second))
            found.written.append(path)
    return found
