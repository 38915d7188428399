"""Commands killed from outside and started again, whose files are held against an uninterrupted run's."""

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
        words: after ``python``; paths of what it writes are relative.
        inputs: fills the folder that it is started in; None where it reads other folders alone.
        differs: names of files that need not be equal, since they hold times or process numbers.
    """

    words: list[str]
    inputs: Callable[[Path], object] | None = None
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Whole:
    """An uninterrupted run.

    Attributes:
        contents: of :func:`contents`.
        operations: changes of files that it made, in order.
        seconds: from the first of them to its end.
    """

    contents: dict[str, bytes | None]
    operations: list[str]
    seconds: float


@dataclass(frozen=True)
class Kill:
    """When a command is killed: before an operation on files, or some time after the first one.

    Attributes:
        operation: its number from 1 on; 0 is none.
        seconds: after the first operation.
    """

    operation: int = 0
    seconds: float = 0.0

    @classmethod
    def drawn(cls, whole: Whole, draw: random.Random, timed: bool) -> Kill:
        """Draw a moment of an uninterrupted run."""
        if timed:
            return cls(seconds=draw.uniform(0, whole.seconds))
        return cls(operation=draw.randint(1, len(whole.operations)))


def contents(folder: Path, command: Command) -> dict[str, bytes | None]:
    """Return path → bytes of everything below a folder, hidden files included; None for a folder.

    Numbers that a clock decides are left out of ``metrics.jsonl``.
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
    """Return the rows of a metrics.jsonl without what a clock decides."""
    rows = [json.loads(line) for line in lines.splitlines()]
    return json.dumps([{k: v for k, v in row.items() if k not in TIMED} for row in rows]).encode()


def differences(found: dict[str, bytes | None], expected: dict[str, bytes | None]) -> list[str]:
    """Return what differs between two results of :func:`contents`, a word and a path each."""
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
    """Start a command in a process group of its own.

    Args:
        command: what is run.
        folder: where it works.
        log: file for its operations on files; an older one is removed.
        last: number of the operation before which it is killed; 0 is none.
        errors: where its standard error goes.
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
    """Wait for all processes of a group; return what standard error got."""
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
        What it was about to do, or had done; None if it ended before.
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
    """Kill a command at each of the moments in turn, start it until it ends, compare its files.

    Args:
        command: what is run.
        folder: a new one.
        whole: the uninterrupted run.
        kills: moments, each of one start.

    Returns:
        How often it was killed, and what differs from the uninterrupted run; a line that says when
        it was killed comes first.
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
