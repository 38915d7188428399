"""Stopped commands: all processes end, no file is incomplete, and a second start gives equal bytes."""

from __future__ import annotations

import contextlib
import importlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

# Processes end within two seconds; a loaded machine gets more. Jobs that go on take far longer.
PATIENCE = 6
# To the command alone, as `kill` sends it, or to its process group, as Ctrl-C and Slurm send it.
WAYS = [
    (signal.SIGTERM, os.kill),
    (signal.SIGINT, os.killpg),
    (signal.SIGKILL, os.kill),
    (signal.SIGKILL, os.killpg),
    (signal.SIGTERM, os.killpg),
    (signal.SIGINT, os.kill),
]
SIMULATION = (
    "--stimuli textures --neurons 12 --train-trials 30 --held-out-movies 2 --repeats 2 "
    "--seconds 2 --fps 20 --size 18x32"
)
RENDERING = "--num-videos 8 --size 48x72 --num-frames 64"


def run_to_the_end(module, words, *options):
    assert importlib.import_module(f"{module}.__main__").main([*words, *options]) == 0


def contents(folder):
    """Return path → bytes of all files, including hidden files."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def temporary_files(folder):
    # Unlike rglob, walk bears that folders vanish meanwhile.
    return [
        os.path.join(place, name)
        for place, folders, files in os.walk(folder)
        for name in folders + files
        if name.endswith((".part", ".old"))
    ]


def started(*words):
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Under `nohup make test &` SIGINT would be ignored from the start.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def stop(process, folder, way, delay, is_begun=None):
    """Send a signal ``delay`` seconds after work has begun; return standard error.

    Args:
        is_begun: returns whether work has begun; by default, whether ``folder`` has a new temporary
            file.
    """
    number, send = way
    before, until = set(temporary_files(folder)), time.monotonic() + 60
    try:
        while process.poll() is None:
            if is_begun() if is_begun else set(temporary_files(folder)) - before:
                break
            assert time.monotonic() < until
            time.sleep(0.005)
        time.sleep(delay)
        with contextlib.suppress(ProcessLookupError):
            send(process.pid, number)
        # Workers hold standard error open, so this waits for them too.
        return process.communicate(timeout=PATIENCE)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return the folders of uninterrupted runs."""
    folder = tmp_path_factory.mktemp("whole")
    run_to_the_end(
        "data_prep.synthetic_clevrer", RENDERING.split(), "--out", str(folder / "render")
    )
    run_to_the_end(
        "data_prep.synthetic_neural", SIMULATION.split(), "--out", str(folder / "simulate/s")
    )
    return folder


def command(name, whole, tmp_path):
    """Return module, options, options of the interrupted run, and folder of an uninterrupted run."""
    if name == "render":
        options = [*RENDERING.split(), "--out", str(tmp_path / "out")]
        return "data_prep.synthetic_clevrer", options, ["--workers", "2"], whole / "render"
    if name == "simulate":
        options = [*SIMULATION.split(), "--out", str(tmp_path / "out/s")]
        return "data_prep.synthetic_neural", options, [], whole / "simulate"
    if name == "pack":
        videos, expected = str(whole / "render"), tmp_path / "whole"
        options = ["pack", "--videos", videos, "--annotations", videos, "--storage", "h264"]
        options += ["--frames", "64", "--samples-per-shard", "2", "--size", "96x144", "--out"]
        run_to_the_end("data_prep.clevrer", [*options, str(expected)], "--workers", "1")
        return "data_prep.clevrer", [*options, str(tmp_path / "out")], ["--workers", "2"], expected
    session = tmp_path / "whole/s"
    shutil.copytree(whole / "simulate/s", session)
    noise = np.random.default_rng(0)
    for number in range(40):
        np.save(session / f"data/videos/{100 + number}.npy", noise.bytes(1_000_000))
    archive = shutil.make_archive(str(tmp_path / "s"), "zip", session)
    options = ["convert", archive, "--out", str(tmp_path / "out")]
    return "data_prep.sensorium", options, [], session.parent


def interrupted_often(name, whole, tmp_path, ways, draw):
    """Stop a command in several ways, finish it, and compare it with an uninterrupted run."""
    module, options, workers, expected = command(name, whole, tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    for way in ways:
        process = started("-m", module, *options, *workers)
        text = stop(process, out, way, draw.uniform(0, 0.3))
        if way[0] != signal.SIGKILL:
            assert process.returncode in (130, 0), text
            assert "Traceback" not in text
            assert not temporary_files(out)
    run_to_the_end(module, options, *[word.replace("2", "1") for word in workers])
    assert contents(out) == contents(expected)


@pytest.mark.parametrize(
    ("name", "ways"),
    [
        ("render", WAYS[:4]),
        ("pack", WAYS[1:4]),
        ("simulate", [WAYS[4], WAYS[2]]),
        ("convert", [WAYS[0], WAYS[2], WAYS[3]]),
    ],
)
def test_interrupted_commands_end_with_the_bytes_of_uninterrupted_ones(name, ways, whole, tmp_path):
    interrupted_often(name, whole, tmp_path, ways, random.Random(0))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("name", ["render", "pack", "simulate", "convert"])
def test_interrupted_commands_at_many_moments(name, seed, whole, tmp_path):
    draw = random.Random(seed)
    interrupted_often(name, whole, tmp_path, draw.choices(WAYS, k=6), draw)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[1]])
def test_render_stops_with_one_line(tmp_path, way):
    words = ["--num-videos", "5000", "--size", "16x24", "--num-frames", "32", "--workers", "2"]
    process = started("-m", "data_prep.synthetic_clevrer", "--out", tmp_path, *words)
    text = stop(
        process, tmp_path, way, 0, lambda: len(list(tmp_path.glob("video_*/video_*.mp4"))) > 2
    )
    assert process.returncode == 130
    assert "Traceback" not in text
    assert text.splitlines()[-1].startswith("interrupted; run the same command again to continue")
    assert not temporary_files(tmp_path)


@pytest.mark.parametrize("way", [WAYS[0], WAYS[2], WAYS[4]])
def test_workers_of_a_recipes_sample_end_with_it(tmp_path, way):
    # Recipes leave SIGTERM its default action until they train.
    lines = f"""
import sys
sys.path.insert(0, {str(Path.cwd())!r})
from data_prep.synthetic_clevrer.videos import render
if __name__ == "__main__":
    render({str(tmp_path / "out")!r}, 4, num_frames=2000, workers=2)  # minutes for each
"""
    (tmp_path / "recipe.py").write_text(lines)
    process = started(tmp_path / "recipe.py")
    stop(process, tmp_path, way, 0.2, lambda: len(temporary_files(tmp_path)) == 2)
    assert process.returncode == -way[0]
    assert not temporary_files(tmp_path)
