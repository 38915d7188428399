"""Read movie files beside an NWB file like arrays of frames."""

from __future__ import annotations

from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np

from ssl_vivit.data.video.decoding import decode_frames, probe_video
from ssl_vivit.errors import DataError, DecodingError


class MovieFile:
    """Frames of a movie file, decoded as they are read.

    Args:
        nwb: the NWB file.
        name: path of the movie file in the NWB file, relative to the NWB file's folder.

    Attributes:
        shape: (F, H, W, 3).
        dtype: uint8.

    Raises:
        DataError: if the path leads out of the folder, or the file is missing or not a movie.
    """

    def __init__(self, nwb: Path, name: str) -> None:
        folder = nwb.parent.resolve()
        self._path = (folder / name).resolve()
        absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).is_absolute()
        if absolute or "://" in name or not self._path.is_relative_to(folder):
            raise DataError(
                f"{nwb}: the movie {name} is outside the file's folder; move it beside the NWB "
                "file and give its relative path"
            )
        if not self._path.is_file():
            raise DataError(
                f"{nwb}: the movie {name} is not in {nwb.parent}; put it into this folder"
            )
        self._told = f"{nwb}: the movie {name}"
        try:
            info = probe_video(self._path)
        except DecodingError as error:
            raise DataError(f"{self._told} cannot be read: {error}") from error
        self.shape: tuple[int, ...] = (info.num_frames, info.height, info.width, 3)
        self.dtype: np.dtype = np.dtype(np.uint8)

    def __getitem__(self, key: slice, /) -> np.ndarray:
        try:
            return decode_frames(self._path, range(*key.indices(self.shape[0])))
        except DecodingError as error:
            raise DataError(f"{self._told} cannot be read: {error}") from error
