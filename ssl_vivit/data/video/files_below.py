"""List the files below a folder, following links, and count the files that are skipped."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from ssl_vivit.wording import quantity

# Kinds of skipped files: plural → singular.
_SINGULAR = {
    "unreadable folders": "unreadable folder",
    "folders linked twice": "folder linked twice",
    "pipes or devices": "pipe or device",
    "annotations without a video": "annotation without a video",
}


def files_below(root: str | Path) -> tuple[dict[str, int], Counter[str]]:
    """List the files at any depth below a folder.

    Symbolic links to folders are followed. Each folder is read only once, so loops of links end. A
    folder that is reachable without links is listed under that path.

    Args:
        root: the folder.

    Returns:
        A dictionary from the path of each file below the root, with forward slashes, to the size in
        bytes, and a counter of skipped files and folders by kind, such as ``hidden``. A broken link
        is listed with size 0; it cannot be read.
    """
    sizes: dict[str, int] = {}
    passed_over: Counter[str] = Counter()

    def count_unreadable(error: OSError) -> None:
        passed_over["unreadable folders"] += 1

    seen: set[tuple[int, int]] = set()
    starts = [os.fspath(root)]
    for start in starts:  # linked folders are appended in the loop
        for folder, subfolders, names in os.walk(start, onerror=count_unreadable):
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in seen:
                passed_over["folders linked twice"] += 1
                subfolders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            visible = sorted(name for name in subfolders if not is_hidden(name))
            shown = [name for name in names if not is_hidden(name)]
            passed_over["hidden"] += len(subfolders) + len(names) - len(visible) - len(shown)
            paths = {name: os.path.join(folder, name) for name in [*visible, *shown]}
            starts += [paths[name] for name in visible if os.path.islink(paths[name])]
            subfolders[:] = [name for name in visible if not os.path.islink(paths[name])]
            for name in shown:
                size = _size(paths[name])
                if size is None:
                    passed_over["pipes or devices"] += 1
                else:
                    sizes[Path(os.path.relpath(paths[name], root)).as_posix()] = size
    return sizes, +passed_over


def is_hidden(name: str) -> bool:
    """Return whether a path should be skipped because a part of it is hidden.

    Hidden parts start with ".", except "..", or with "__MACOSX", a folder of macOS metadata.
    """
    parts = PurePosixPath(name).parts
    return any(part != ".." and part.startswith((".", "__MACOSX")) for part in parts)


def endings(names: Iterable[str]) -> Counter[str]:
    """Count names by their ending."""
    return Counter(PurePosixPath(name).suffix.lower() or "without ending" for name in names)


def passed_over_line(counts: Counter[str]) -> str | None:
    """Return a line with the number of skipped files of each kind; None if there are none."""
    if not counts:
        return None
    ordered = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    return "passed over: " + ", ".join(_counted(kind, count) for kind, count in ordered)


def _counted(kind: str, count: int) -> str:
    if kind.startswith("."):
        return quantity(count, f"{kind} file")
    return f"{count} {_SINGULAR.get(kind, kind) if count == 1 else kind}"


def _size(path: str) -> int | None:
    try:
        status = os.stat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else None
