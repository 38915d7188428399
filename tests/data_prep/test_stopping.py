"""Ctrl-C and SIGTERM: the command ends at once, its workers with it, nothing half-written."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_render_stops_with_its_workers(tmp_path, number):
    words = f"--out {tmp_path} --num-videos 5000 --size 16x24 --num-frames 32 --workers 2".split()
    started = subprocess.Popen(
        [sys.executable, "-m", "data_prep.synthetic_clevrer", *words],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Under `nohup make test &` SIGINT would be ignored from the start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("video_*/video_*.mp4"))) < 3:
            assert time.monotonic() < until
            time.sleep(0.05)
        # To the command alone, as `kill` sends it; only Ctrl-C reaches the whole group.
        os.kill(started.pid, number)
        # Workers hold standard error open, so this waits for them too.
        _, text = started.communicate(timeout=20)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(started.pid, signal.SIGKILL)
    assert started.returncode == 130
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith("interrupted; the same command goes on")
    assert not list(tmp_path.rglob("*.part"))
