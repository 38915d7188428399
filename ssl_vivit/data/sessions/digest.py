"""Digest of a session's files, which identifies a session even if its folder was moved."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ssl_vivit.data.sessions.layout import BEHAVIOUR, PUPIL, RESPONSES, SETTINGS, VIDEOS

_TAIL = 4096


def digest(path: Path) -> str:
    """Return a SHA-256 digest of the files of a session.

    The files of trials can be large, so only their sizes and their last 4,096 bytes are included.
    The files below ``meta`` are included completely.

    Args:
        path: the session's folder.
    """
    total = hashlib.sha256()
    for part in (VIDEOS, RESPONSES, BEHAVIOUR, PUPIL):
        for file in sorted((path / "data" / part).glob("*.npy")):
            with file.open("rb") as handle:
                size = os.fstat(handle.fileno()).st_size
                handle.seek(max(0, size - _TAIL))
                total.update(f"{part}/{file.name} {size} ".encode() + handle.read())
    meta = path / "meta"
    for file in [
        *sorted(meta.glob("neurons/*.npy")),
        *sorted(meta.glob("trials/*.npy")),
        path / SETTINGS,
    ]:
        if file.is_file():
            content = file.read_bytes()
            total.update(f"{file.relative_to(path)} {len(content)} ".encode() + content)
    return total.hexdigest()
