"""The folder for the results of a command, which must be new or empty."""

from __future__ import annotations

from itertools import count
from pathlib import Path

from ssl_vivit.errors import RunError
from ssl_vivit.files import finish_replacement
from ssl_vivit.run_lock import LOCK


def new_folder(path: str | Path, option: str, results: str) -> Path:
    """Check that a folder is new, or empty except for the lock of a run, and return its path.

    If a command was killed while it moved its results to the folder, its leftovers are removed
    first.

    Args:
        path: the folder.
        option: name of the option that gives the folder, such as ``--run_dir``.
        results: name of the results for error messages, such as "scores".

    Raises:
        RunError: if the path is a file or the folder holds other files.
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
            f"such as {option} {folder}_{number}, or remove {folder}"
        )
    return folder
