"""Counts a command's file operations and ends it before a chosen one, without a change to the command.

Python imports this module at its start, in workers as well, from a folder on PYTHONPATH. Operations
are those that change something below the folder ``KILL_BELOW``: a file opened for writing, flushed,
renamed or removed, a folder made or removed. Libraries that write without Python are not seen.
"""

import os
import signal
import sys

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
RENAMES = ("os.rename", "os.link", "os.symlink")
CHANGES = ("os.mkdir", "os.remove", "os.rmdir", "os.truncate")


def watch(below: str, log: str, last: int) -> None:
    """Log each operation of this process and its children, and kill their group at one of them.

    Args:
        below: the folder.
        log: file of all processes, a line for each operation.
        last: number of the operation before which the process group is killed; 0 is none.
    """
    lines = os.open(log, os.O_RDWR | os.O_APPEND | os.O_CREAT)

    def count(what: str, path: int | str | bytes, folder: int = -1) -> None:
        if isinstance(path, int):
            path = os.readlink(f"/proc/self/fd/{path}")
        place = os.fsdecode(path)
        if folder != -1:  # the functions that remove whole trees name files by their folders
            place = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), place)
        place = os.path.abspath(place)
        if not place.startswith(below + os.sep):
            return
        os.write(lines, f"{what} {os.path.relpath(place, below)}\n".encode())
        if last and os.pread(lines, 1 << 24, 0).count(b"\n") >= last:
            os.killpg(0, signal.SIGKILL)

    def hook(event: str, given: tuple) -> None:
        if event == "open":
            if given[2] & WRITES and not isinstance(given[0], int):  # one that is open already
                count("open", given[0])
        elif event in RENAMES:
            count(event, given[1], given[-1] if isinstance(given[-1], int) else -1)
        elif event in CHANGES:
            count(event, given[0], -1 if event == "os.truncate" else given[-1])

    flush = os.fsync

    def fsync(file: object) -> None:
        number = file if isinstance(file, int) else file.fileno()
        count("fsync", number)
        flush(number)

    os.fsync = fsync
    sys.addaudithook(hook)


if "KILL_BELOW" in os.environ:
    watch(os.environ["KILL_BELOW"], os.environ["KILL_LOG"], int(os.environ.get("KILL_AT", "0")))
