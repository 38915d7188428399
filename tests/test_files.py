"""Atomic writes: files and directories appear complete or not at all."""

import os
import platform
import stat
import subprocess
import sys
import time

import pytest

from ssl_vivit.errors import RunError
from ssl_vivit.evaluation.result_folder import new_folder
from ssl_vivit.files import (
    process_name,
    remove_unfinished,
    replaced_directory,
    replaced_file,
    temporary_beside,
    without_nan,
    write_json,
)


def test_two_writers_of_a_file_do_not_meet(tmp_path):
    path = tmp_path / "index.json"
    with replaced_file(path) as first:
        first.write_text("first")
        with replaced_file(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["index.json"]


def test_an_error_leaves_the_older_file(tmp_path):
    write_json(tmp_path / "a.json", {"a": 1})
    before = (tmp_path / "a.json").read_text()
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"a": object()})
    assert (tmp_path / "a.json").read_text() == before
    assert os.listdir(tmp_path) == ["a.json"]


def of_a_dead_process(name, ending):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return f".{name}.{platform.node()}-{gone.pid}-0123456789abcdef.{ending}"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    dead = of_a_dead_process("other.json", "part")
    # An earlier process may have had this one's number: in containers many have the number 1.
    earlier = f".index.json.{platform.node()}-{os.getpid()}-0123456789abcdef.part"
    kept = [
        f".index.json.{platform.node()}-{os.getppid()}-0123456789abcdef.part",
        dead.replace(platform.node(), f"{platform.node()}x"),
        ".index.json.part",
        ".mine.part",
    ]
    for name in (dead, earlier, *kept):
        (tmp_path / name).write_text("left")
    (tmp_path / of_a_dead_process("model", "part")).mkdir()
    unasked = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    assert unasked.stdout.read() == b""  # it has ended, and is a zombie until it is waited for
    time.sleep(0.1)
    zombie = f".index.json.{platform.node()}-{unasked.pid}-0123456789abcdef.part"
    (tmp_path / zombie).write_text("left")
    with replaced_file(tmp_path / "index.json") as outer:
        outer.write_text("outer")
        write_json(tmp_path / "b.json", {})
        assert outer.exists()
    assert sorted(os.listdir(tmp_path)) == sorted([*kept, "index.json", "b.json"])
    unasked.communicate()


def test_a_process_removes_its_unfinished_files(tmp_path):
    with temporary_beside(tmp_path / "a") as file, temporary_beside(tmp_path / "b") as folder:
        file.write_text("half")
        folder.mkdir()
        (folder / "half").touch()
        remove_unfinished()
        assert not os.listdir(tmp_path)


@pytest.mark.parametrize("renames", [0, 1, 2, 3])
def test_a_directory_killed_while_it_is_replaced(renames, tmp_path):
    """After a kill before the n-th rename, users' files are still there and the next save is complete."""
    place, own = tmp_path / "model", {"config.json"}
    with replaced_directory(place, own) as staging:
        (staging / "config.json").write_text("old")
    (place / "mine").write_text("mine")
    (place / "notes").mkdir()
    lines = f"""
import os, sys
from ssl_vivit.files import replaced_directory
rename, count = os.rename, iter(range(9))
def killed(*names):
    if next(count) == {renames}:
        os.kill(os.getpid(), 9)
    rename(*names)
os.rename = killed
with replaced_directory({str(place)!r}, {own!r}) as staging:
    (staging / "config.json").write_text("new")
"""
    assert subprocess.run([sys.executable, "-c", lines]).returncode == -9
    assert len(os.listdir(tmp_path)) > 1
    with replaced_directory(place, own) as staging:
        # The older directory is back, whole, if it was away.
        assert (place / "config.json").read_text() == ("old" if renames < 2 else "new")
        (staging / "config.json").write_text("newest")
    assert os.listdir(tmp_path) == ["model"]
    assert sorted(os.listdir(place)) == ["config.json", "mine", "notes"]
    assert (place / "config.json").read_text() == "newest"
    assert (place / "mine").read_text() == "mine"


def test_a_leftover_of_a_killed_process_does_not_block(tmp_path):
    place = tmp_path / "model"
    for text in ("old", "new"):
        left = tmp_path / f".model-old-{os.getpid()}"
        left.mkdir(exist_ok=True)
        (left / "file").write_text("left")
        with replaced_directory(place, {"config.json", "stale"}) as staging:
            (staging / "config.json").write_text(text)
            (staging / "w.safetensors").touch(mode=0o600)
        if text == "old":
            (place / "stale").touch()
            (place / "mine").write_text("kept")
    assert (place / "config.json").read_text() == "new"
    assert sorted(os.listdir(place)) == ["config.json", "mine", "w.safetensors"]
    modes = {
        stat.S_IMODE((place / name).stat().st_mode) for name in ("config.json", "w.safetensors")
    }
    assert len(modes) == 1


def test_numbers_that_json_lacks_become_none():
    content = {"a": {"b": float("nan"), "c": 1.5}, "d": float("-inf"), "e": ["x"], "f": 2}
    assert without_nan(content) == {"a": {"b": None, "c": 1.5}, "d": None, "e": ["x"], "f": 2}


def test_results_that_took_their_place_when_the_command_was_killed(tmp_path):
    left = tmp_path / f".scores.{process_name().rsplit('-', 2)[0]}-999999999-0a.old"
    left.mkdir()
    (left / "units.csv").write_text("older")
    (tmp_path / "scores").mkdir()
    (tmp_path / "scores" / "units.csv").write_text("whole")
    with pytest.raises(RunError, match="holds scores of an earlier evaluation"):
        new_folder(tmp_path / "scores", "--run_dir", "scores")
    assert os.listdir(tmp_path) == ["scores"]
    assert (tmp_path / "scores" / "units.csv").read_text() == "whole"
