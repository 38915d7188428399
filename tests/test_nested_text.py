"""Readers of JSON and YAML refuse deep nesting, aliases, other types and pipes in one line."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from data_prep.clevrer.annotations import renumbered
from ssl_vivit import load_encoder
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.errors import UserError
from ssl_vivit.files import read_json
from ssl_vivit.nested_text import read_json_text, read_yaml_text
from ssl_vivit.training.run_directory import saved_settings

RECORDED = Path(__file__).parent / "assets" / "mouse_v1_gratings" / "session_fov4_cut"
DEEP = "[" * 200_000
# Ten lines that stand for ten billion words.
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.fixture(autouse=True)
def within_ten_seconds():
    def stop(number, frame):
        raise AssertionError("the reader still waits after ten seconds")

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(10)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


def test_texts_of_any_depth_up_to_fifty():
    assert read_yaml_text("[" * 50 + "]" * 50) == read_json_text("[" * 50 + "]" * 50)
    with pytest.raises(ValueError, match="nested more than 50 levels deep"):
        read_yaml_text("[" * 51 + "]" * 51)
    with pytest.raises(ValueError, match="nested more than 50 levels deep"):
        read_yaml_text("a: " + DEEP[:90_000])
    with pytest.raises(ValueError, match="more than 100,000 characters"):
        read_yaml_text("a: " + DEEP)
    with pytest.raises(ValueError, match="nested too deeply"):
        read_json_text(DEEP)


def test_aliases():
    assert read_yaml_text("a: &a {x: 1}\nb: *a\nc: [*a, *a]") == {
        "a": {"x": 1}, "b": {"x": 1}, "c": [{"x": 1}, {"x": 1}],
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"the alias \*a0 is inside a node with an anchor"):
        read_yaml_text(LAUGHS)
    with pytest.raises(ValueError, match=r"the alias \*x is inside"):
        read_yaml_text("a: &x [1, *x]")
    with pytest.raises(ValueError, match="could not determine a constructor"):
        read_yaml_text("a: !!python/object/apply:os.system ['true']")


@pytest.mark.parametrize("text", [DEEP, '{"a": ' * 100_000], ids=["lists", "objects"])
def test_readers_refuse_deep_json(tmp_path, text):
    path = tmp_path / "file.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"file\.json is damaged \(it is nested too deeply\)"):
        read_json(path, "")
    (tmp_path / "encoder").mkdir()
    shutil.copy(path, tmp_path / "encoder" / "config.json")
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match="nested too deeply"):
        load_encoder(tmp_path / "encoder")
    session = tmp_path / "session"
    shutil.copytree(RECORDED, session)
    (session / "meta" / "session.json").write_text(text)
    with pytest.raises(
        UserError, match=r"session\.json is not valid JSON: it is nested too deeply"
    ):
        Session(session)
    with pytest.raises(UserError, match="nested too deeply"):
        renumbered(text.encode(), [0], 1)
    (tmp_path / "config.yaml").write_text(LAUGHS)
    with pytest.raises(UserError, match=r"config\.yaml is damaged \(the alias"):
        saved_settings(tmp_path / "config.yaml")


@pytest.mark.parametrize("name", ["data/videos/0.npy", "data/responses/0.npy", "meta/session.json"])
def test_a_pipe_in_a_session_is_refused(tmp_path, name):
    session = tmp_path / "session"
    shutil.copytree(RECORDED, session)
    (session / name).unlink(missing_ok=True)
    os.mkfifo(session / name)
    with pytest.raises(UserError, match=f"{name}.* it is not a regular file"):
        Session(session).video(0)
