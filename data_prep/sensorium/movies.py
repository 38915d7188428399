"""Training stimuli of sessions as video files, to pretrain an encoder on them without responses."""

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
        written: new files.
        there: files that an earlier call had written.
        held_out: training movies that were left out, since a validation or test trial of one of the
            sessions shows them, too.
    """

    written: list[Path]
    there: list[Path]
    held_out: int


def write_movies(
    sessions: Sequence[str | Path], out: str | Path, *, progress: bool = True
) -> WrittenMovies:
    """Write each movie of the training trials once, as ``out/SESSION_TRIAL.mp4``.

    A movie that a validation or test trial of any of the sessions shows is never written. Files
    that are there already are kept, so that a call that was stopped goes on.

    Args:
        sessions: folders in the Sensorium layout.
        out: folder of the videos; made if missing.
        progress: whether to show a bar.

    Returns:
        :class:`WrittenMovies`.

    Raises:
        SessionError: for a session that cannot be used.
        DataError: if two sessions have one name, no movie is left, or a file cannot be written.
    """
    opened = [Session(path) for path in sessions]
    names = [session.name for session in opened]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"two sessions are called {name}; rename a folder")
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
            f"all {len(shown)} training movies are shown in validation or test trials, too; there "
            "is nothing to pretrain on"
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
