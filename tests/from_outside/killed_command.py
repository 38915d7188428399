"""Kill commands from outside, start them again, and compare their files with an uninterrupted run."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).parents[2]
# Seconds for one run of a tiny command on a loaded machine.
PATIENCE = 300
# Numbers that a clock decides.
TIMED = ("train/clips_per_second", "train/data_wait")


@dataclass(frozen=True)
class Command:
    """A command line on tiny settings.

    Attributes:
        words: arguments of ``python``; output paths are relative.
        inputs: function that fills the working folder; None if the command reads only other folders.
        differs: names of files that may differ, because they contain times or process numbers.
    """

    words: list[str]
    inputs: Callable[[Path], object] | None = None
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run.

    Attributes:
        contents: result of :func:`contents`.
        operations: its changes of files, in order.
        seconds: time from the first change to the end.
    """

    contents: dict[str, bytes | None]
    operations: list[str]
    seconds: float


@dataclass(frozen=True)
class Kill:
    """Time of a kill: before an operation on files, or some seconds after the first operation.

    Attributes:
        operation: number of the operation, from 1; 0 for none.
        seconds: time after the first operation.
    """

    operation: int = 0
    seconds: float = 0.0

    @classmethod
    def drawn(cls, whole: Whole, draw: random.Random, timed: bool) -> Kill:
        """Draw the time of a kill within an uninterrupted run."""
        if timed:
            return cls(seconds=draw.uniform(0, whole.seconds))
        return cls(operation=draw.randint(1, len(whole.operations)))


def contents(folder: Path, command: Command) -> dict[str, bytes | None]:
    """Return path → bytes of all files below a folder, including hidden files; None for a folder.

    Measured times are left out of ``metrics.jsonl``.
    """
    found: dict[str, bytes | None] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            found[name] = None
        elif path.name in command.differs:
            found[name] = b""
        else:
            found[name] = path.read_bytes()
            if path.name == "metrics.jsonl":
                with contextlib.suppress(ValueError):  # a killed process was writing the last line
                    found[name] = without_times(path.read_text())
    return found


def without_times(lines: str) -> bytes:
    """Return the rows of a metrics.jsonl without measured times."""
    rows = [json.loads(line) for line in lines.splitlines()]
    return json.dumps([{k: v for k, v in row.items() if k not in TIMED} for row in rows]).encode()


def differences(found: dict[str, bytes | None], expected: dict[str, bytes | None]) -> list[str]:
    """Return the differences of two results of :func:`contents`, as a word and a path each."""
    return [
        *(f"left {name}" for name in found.keys() - expected.keys()),
        *(f"missing {name}" for name in expected.keys() - found.keys()),
        *(f"other {n}" for n in found.keys() & expected.keys() if found[n] != expected[n]),
    ]


def started(
    command: Command,
    folder: Path,
    log: Path,
    last: int = 0,
    errors: int | IO[str] = subprocess.PIPE,
) -> subprocess.Popen[str]:
    """Start a command in a new process group.

    Args:
        command: the command.
        folder: the working folder.
        log: file for the log of operations on files; an older log is removed.
        last: number of the operation before which the command is killed; 0 for none.
        errors: file for standard error.
    """
    log.unlink(missing_ok=True)
    return subprocess.Popen(
        [sys.executable, *command.words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=errors,
        text=True,
        start_new_session=True,
        env=os.environ
        | {
            "PYTHONPATH": f"{Path(__file__).parent / 'file_operations'}{os.pathsep}{ROOT}",
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "disabled",
            "KILL_BELOW": str(folder.resolve()),
            "KILL_LOG": str(log),
            "KILL_AT": str(last),
        },
    )


def ended(process: subprocess.Popen[str]) -> str:
    """Wait for all processes of a group; return standard error."""
    try:
        return process.communicate(timeout=PATIENCE)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def run_whole(command: Command, folder: Path) -> Whole:
    """Run a command to its end in a new folder."""
    folder.mkdir()
    if command.inputs is not None:
        command.inputs(folder)
    log = folder.with_suffix(".log")
    process = started(command, folder, log)
    begun = wait_for_operation(process, log)
    errors = ended(process)
    seconds = time.monotonic() - begun
    assert process.returncode == 0, errors
    return Whole(contents(folder, command), log.read_text().splitlines(), seconds)


def wait_for_operation(process: subprocess.Popen[str], log: Path) -> float:
    """Wait for the first operation on files, or the end; return the time."""
    until = time.monotonic() + PATIENCE
    while process.poll() is None and not (log.exists() and log.stat().st_size):
        assert time.monotonic() < until
        time.sleep(0.002)
    return time.monotonic()


def killed(command: Command, folder: Path, kill: Kill) -> str | None:
    """Start a command and kill its process group.

    Returns:
        The operation before or after which it was killed; None if it ended first.
    """
    log = folder.with_suffix(".log")
    process = started(command, folder, log, kill.operation)
    if not kill.operation:
        wait_for_operation(process, log)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(kill.seconds)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    ended(process)
    if process.returncode != -signal.SIGKILL:
        return None
    lines = log.read_text().splitlines() if log.exists() else []
    told = f"{'before' if kill.operation else 'after'} operation {len(lines)}"
    return f"{told}, {lines[-1]}" if lines else "before any operation"


def faults(
    command: Command, folder: Path, whole: Whole, kills: list[Kill]
) -> tuple[int, list[str]]:
    """Kill a command at several times, start it until it ends, and compare its files.

    Args:
        command: the command.
        folder: a new folder.
        whole: the uninterrupted run.
        kills: times of the kills, one per start.

    Returns:
        The number of kills, and the differences from the uninterrupted run; the first line names the
        times of the kills.
    """
    folder.mkdir()
    if command.inputs is not None:
        command.inputs(folder)
    told = [moment for kill in kills if (moment := killed(command, folder, kill)) is not None]
    # Some commands refuse to write again what is there; they still remove what was left beside it.
    before = differences(contents(folder, command), whole.contents)
    was_whole = all(line.startswith("left ") for line in before)
    last = started(command, folder, folder.with_suffix(".log"))
    errors = ended(last)
    found = differences(contents(folder, command), whole.contents)
    if "Traceback" in errors or (last.returncode and not was_whole):
        found.append(f"status {last.returncode}: {errors[-2000:]}")
    return len(told), [f"killed {' and '.join(told)}:", *found] if found else []
