"""The video of a trial, from a recorded session or from a video file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Shaped

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.data.video.decoding import decode_frames, probe_video
from ssl_vivit.data.video.frame_times import covered_steps, frames_at
from ssl_vivit.errors import DataError, SessionError
from ssl_vivit.evaluation.chosen_units import ChosenUnits
from ssl_vivit.preprocessing import Preprocessing

# Number of frames decoded at once.
_TOGETHER = 128


def video_of_trial(
    chosen: ChosenUnits, folder: str, trial: int | None
) -> Shaped[np.ndarray, "T H W"]:
    """Return the pixels of a trial from the recording of a session.

    Args:
        chosen: selected units of the session.
        folder: folder of the recording.
        trial: number of the trial; None takes the first trial outside the training split.

    Raises:
        SessionError: if the folder holds another session, or if the trial does not exist.
    """
    session = chosen.opened(folder).sessions[0]
    if trial is None:
        trained = set(chosen.facts.split["train"])
        others = sorted(set(session.trials) - trained) or sorted(session.trials)
        trial = others[0]
    if trial not in session.trials:
        numbers = sorted(session.trials)
        raise SessionError(
            f"--trial {trial}: session {session.name} has no such trial with responses; its "
            f"{len(numbers)} trials are numbered from {numbers[0]} to {numbers[-1]}"
        )
    return session.video(trial)


def video_of_file(path: str | Path, facts: SessionFacts) -> Float[np.ndarray, "T H W"]:
    """Return the pixels of a video file, converted to the format of a session's videos.

    Frames are resampled to the session's frame rate, by repeating or skipping frames of the file.
    The largest central crop with the session's aspect ratio is resized to the session's frame size
    and converted to grey (ITU-R 601).

    Args:
        path: the video file.
        facts: ``SessionFacts`` of the session.

    Raises:
        DataError: if the video states no frame rate.
        DecodingError: if the file is not a video or is broken.
    """
    info = probe_video(path)
    if info.times is None and not info.fps:
        raise DataError(
            f"{path} states no frame rate; convert it to a video that states one, such as the "
            f"session's {facts.frames_per_second:g} frames per second"
        )
    rate = facts.frames_per_second
    times = np.arange(info.num_frames) / info.fps if info.times is None else np.array(info.times)
    steps = covered_steps(times, rate) if len(times) > 1 else 1
    numbers = frames_at(np.arange(steps) / rate, times).tolist()
    prepare = Preprocessing(channels="luma", mean=(0.0,), std=(1.0,), resize=facts.frame_size)
    parts = [
        prepare(torch.from_numpy(decode_frames(path, numbers[start : start + _TOGETHER])))[0]
        for start in range(0, len(numbers), _TOGETHER)
    ]
    return (255 * torch.cat(parts)).numpy()
