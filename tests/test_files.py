"""Files and directories that appear whole or not at all."""

import os
import stat

import pytest

from ssl_vivit.files import replaced_directory, replaced_file, write_json


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


def test_a_leftover_of_a_killed_process_is_no_hindrance(tmp_path):
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
