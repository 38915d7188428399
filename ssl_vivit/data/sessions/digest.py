"""Digest of a session's files, which identifies the session after its folder was moved."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from ssl_vivit.data.sessions.layout import BEHAVIOUR, PUPIL, RESPONSES, SETTINGS, VIDEOS

_TAIL = 4096


def digest(path: Path) -> str:
    """SHA-256 over the files that a session is read from.

    Trials are gigabytes: of their files the size and the last 4096 bytes count. The files about
    neurons and trials count whole.

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
