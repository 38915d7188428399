"""The folder that a command writes its results to, which must be new or empty."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from ssl_vivit.errors import RunError
from ssl_vivit.files import finish_replacement
from ssl_vivit.run_lock import LOCK


def new_folder(path: str | Path, option: str, results: str) -> Path:
    """Refuse a folder that holds anything but the lock of a run.

    What a killed command left beside it while its results took their place is removed first.

    Args:
        path: the folder.
        option: that names it, such as ``--run_dir``.
        results: what an earlier folder of results holds, for messages: "scores".

    Raises:
        RunError: if it does, or is a file.
    """
    folder = Path(path)
    if folder.is_file():
        raise RunError(f"{option} {folder} is a file; choose another {option}")
    finish_replacement(folder)
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    held = sorted(names - {LOCK})
    if held:
        earlier = "units.csv" in held
        what = f"{results} of an earlier evaluation" if earlier else f"files ({held[0]} …)"
        number = next(n for n in count(2) if not Path(f"{folder}_{n}").exists())
        raise RunError(
            f"{option} {folder} holds {what}, which are not overwritten; choose another folder, "
            f"such as {option} {folder}_{number}, or remove this one"
        )
    return folder
