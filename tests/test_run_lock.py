"""The lock of a run's directory: one process at a time writes in it."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from ssl_vivit import run_lock
from ssl_vivit.errors import RunError
from ssl_vivit.run_lock import LOCK, locked, refuse_locked

HOLDER = """
import os, sys, time
from pathlib import Path
from ssl_vivit.run_lock import locked
with locked(Path({directory!r}), "--run_dir", print):
    {inside}
    print("held", flush=True)
    time.sleep(600)
"""
LINE = (
    r"--run_dir {} is in use: process {} on host {}, since 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d "
    r"[+-]\d{{4}}, is writing there; wait until that process ends, stop it, or choose another --run_dir"
)


@pytest.fixture
def hold() -> Iterator[Callable[..., subprocess.Popen]]:
    """Start a process that holds the lock of a directory."""
    started = []

    def start(directory: Path, inside: str = "", pass_fds: Sequence[int] = ()) -> subprocess.Popen:
        code = HOLDER.format(directory=str(directory), inside=inside)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, pass_fds=pass_fds
        )
        started.append(process)
        for line in process.stdout:
            if line.strip() == "held":
                break
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def silent(line: str) -> None:
    raise AssertionError(line)


def enter(directory: Path) -> None:
    with locked(directory, "--run_dir", silent):
        assert (directory / LOCK).exists()


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path, hold):
    run = tmp_path / "run"
    holder = hold(run)
    said = (run / LOCK).read_bytes()
    line = LINE.format(re.escape(str(run)), holder.pid, re.escape(platform.node()))
    for enters in (enter, lambda directory: refuse_locked(directory, "--run_dir")):
        with pytest.raises(RunError) as caught:
            enters(run)
        assert re.fullmatch(line, str(caught.value))
    assert (run / LOCK).read_bytes() == said
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert os.listdir(run) == [LOCK]
    refuse_locked(run, "--run_dir")
    enter(run)
    assert os.listdir(run) == []


def test_a_child_that_outlives_the_process_does_not_keep_the_lock(tmp_path, hold):
    run = tmp_path / "run"
    # The child inherits the open file, and closes it when it has read to the end of its input.
    read, write = os.pipe()
    holder = hold(run, f"if not os.fork(): os.read({read}, 1); os._exit(0)", pass_fds=[read])
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    try:
        enter(run)
    finally:
        os.close(write)
        os.close(read)


def test_what_is_made_is_removed_and_what_was_there_stays(tmp_path):
    enter(tmp_path / "runs" / "new")
    assert os.listdir(tmp_path) == []
    with pytest.raises(KeyError), locked(tmp_path / "runs" / "new", "--run_dir", silent):
        raise KeyError
    assert os.listdir(tmp_path) == []
    (tmp_path / "empty").mkdir()
    enter(tmp_path / "empty")
    with locked(tmp_path / "runs" / "full", "--run_dir", silent):
        (tmp_path / "runs" / "full" / "file").touch()
    assert sorted(os.listdir(tmp_path)) == ["empty", "runs"]
    assert os.listdir(tmp_path / "runs" / "full") == ["file"]


def test_a_nested_block_and_a_question_leave_the_lock_where_it_is(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    tried = f"""
from pathlib import Path
from ssl_vivit.run_lock import refuse_locked
refuse_locked(Path({str(tmp_path)!r}), "--run_dir")
"""

    def others_are_refused() -> bool:
        done = subprocess.run([sys.executable, "-c", tried], capture_output=True, text=True)
        return "is in use" in done.stderr

    with locked(tmp_path, "--run_dir", silent):
        enter(tmp_path / "link")
        refuse_locked(tmp_path, "--run_dir")
        assert others_are_refused()
    assert not others_are_refused()


def test_a_forked_process_does_not_inherit_the_lock(tmp_path):
    with locked(tmp_path, "--run_dir", silent):
        child = os.fork()
        if not child:
            try:
                refuse_locked(tmp_path, "--run_dir")
            except RunError:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_a_file_that_its_holder_has_just_removed_is_not_taken(tmp_path, monkeypatch):
    lockf, removed = fcntl.lockf, []

    def late(descriptor: int, operation: int) -> None:
        if not removed:
            removed.append((tmp_path / LOCK).unlink())
        lockf(descriptor, operation)

    monkeypatch.setattr(run_lock.fcntl, "lockf", late)
    enter(tmp_path)
    assert removed == [None]


def test_a_file_system_without_locks_is_reported_in_one_line(tmp_path, monkeypatch):
    def none(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(run_lock.fcntl, "lockf", none)
    told: list[str] = []
    with locked(tmp_path, "--run_dir", told.append):
        pass
    (line,) = told
    assert line.startswith(f"{tmp_path} is on a file system without locks (No locks available)")
    assert os.listdir(tmp_path) == []


def test_places_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match=r"--run_dir \S+file is a file; choose another --run_dir"):
        enter(tmp_path / "file")
    with pytest.raises(RunError, match="inside cannot be written: Not a directory"):
        enter(tmp_path / "file" / "inside")
    # Whatever the file says, it is not read but for a message.
    (tmp_path / LOCK).write_text("[]")
    enter(tmp_path)
    assert os.listdir(tmp_path) == ["file"]
