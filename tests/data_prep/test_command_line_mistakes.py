"""Mistakes on the command lines of data_prep end with one line that names the setting; no files stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_prep.clevrer import __main__ as clevrer
from data_prep.synthetic_clevrer import __main__ as synthetic_clevrer
from data_prep.synthetic_clevrer.videos import render

REAL = Path(__file__).parents[1] / "assets" / "collision_clips"


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    out = tmp_path_factory.mktemp("videos")
    render(out, 3, size=(16, 24), num_frames=8, workers=1, progress=False)
    return str(out)


def line(command, argv, capsys):
    """Return the exit status and the one line on standard error, without progress bars."""
    try:
        status = command(argv)
    except SystemExit as end:
        status = end.code
    text = capsys.readouterr().err
    lines = [piece for piece in text.splitlines() if piece.strip() and "it/s" not in piece]
    lines = [piece for piece in lines if "video/s" not in piece]
    assert len(lines) == 1, text
    return status, lines[0]


def test_settings_that_packed_nothing_do_not_block_others(videos, tmp_path, capsys):
    out = ["--out", str(tmp_path), "--workers", "1"]
    status, text = line(clevrer.main, ["pack", "--videos", videos, *out], capsys)
    assert status == 2
    assert "8 frames, but 128 are asked for" in text
    assert "--frames N" in text
    assert clevrer.main(["pack", "--videos", videos, *out, "--frames", "8"]) == 0


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--size", ["999999", "24"]),
        ("--size", ["0", "24"]),
        ("--fps", ["inf"]),
        ("--prefix", ["a*b"]),
        ("--prefix", ["a{0..3}"]),
        ("--storage", ["png"]),
    ],
)
def test_pack_refuses_values(option, value, videos, tmp_path, capsys):
    argv = ["pack", "--videos", videos, "--out", str(tmp_path / "out"), "--workers", "1"]
    status, text = line(clevrer.main, [*argv, "--frames", "8", option, *value], capsys)
    assert status != 0
    assert text.startswith("error: ")
    assert option in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "argv", [[], ["pick"], ["pack", "--out", "x"], ["download", "--split", "x"]]
)
def test_usage_mistakes_are_one_line(argv, capsys):
    status, text = line(clevrer.main, argv, capsys)
    assert status == 2
    assert text.startswith("error: ")
    assert "--help" in text


@pytest.mark.parametrize(
    ("main", "argv", "message"),
    [
        (clevrer.main, ["pack", "--video", "x"], "--video (did you mean --videos?); see python -m data_prep.clevrer pack --help"),
        (clevrer.main, ["pack", "--videos=x", "--outt=y"], "--outt (did you mean --out?); see"),
        (clevrer.main, ["info", "x", "--contact-shet", "a.png"], "--contact-shet (did you mean --contact-sheet?); see"),
        (clevrer.main, ["info", "x", "--zzz"], "--zzz; see"),
        (synthetic_clevrer.main, ["--nun-videos", "3"], "--nun-videos (did you mean --num-videos?); see"),
    ],
)  # fmt: skip
def test_an_unknown_option_names_the_nearest(main, argv, message, capsys):
    status, text = line(main, argv, capsys)
    assert status == 2
    assert text.startswith(f"error: unknown option {message}")


def test_values_that_begin_with_dashes_are_not_options(tmp_path, capsys):
    """The check accepts words with a space, and words after ``--``, as values."""
    for words in (["--a b*.tar"], ["--", "--ab*.tar"]):
        _, text = line(clevrer.main, ["info", *words], capsys)
        assert text.startswith("error: SHARDS ")


def test_out_that_is_a_file(videos, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    out = ["--out", str(tmp_path / "file")]
    for command in (["pack", "--videos", videos], ["download", "--split", "test"]):
        status, text = line(clevrer.main, [*command, *out], capsys)
        assert status == 2
        assert "is a file; give a folder" in text
    assert (tmp_path / "file").read_text() == "mine"


def test_contact_sheet_is_a_png_before_anything_is_printed(videos, tmp_path, capsys):
    assert (
        clevrer.main(["pack", "--videos", str(REAL), "--out", str(tmp_path), "--size", "16", "16"])
        == 0
    )
    capsys.readouterr()
    sheet = ["--contact-sheet", str(tmp_path / "sheet.jpg")]
    status, text = line(clevrer.main, ["info", str(tmp_path), *sheet], capsys)
    assert status == 2
    assert "argument --contact-sheet: " in text
    assert "must end in .png" in text


def test_messages_use_the_commands_name_for_shards(tmp_path, capsys):
    status, text = line(clevrer.main, ["verify", str(tmp_path / "*.tar")], capsys)
    assert status == 2
    assert text.startswith("error: SHARDS ")
    assert "--data.shards" not in text


@pytest.mark.parametrize("size", [["abc"], ["24", "36", "12"]])
def test_render_size(size, tmp_path, capsys):
    argv = ["--out", str(tmp_path / "out"), "--size", *size]
    status, text = line(synthetic_clevrer.main, argv, capsys)
    assert status == 2
    assert "argument --size: " in text
    assert "must be height and width, such as 36x64" in text
    assert not (tmp_path / "out").exists()


def test_render_where_nothing_can_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "below"
    status, text = line(synthetic_clevrer.main, ["--out", str(out), "--num-videos", "1"], capsys)
    assert status == 2
    assert text.startswith(f"error: --out {out}: ")
    assert "cannot be written" in text


def test_contact_sheet_where_nothing_can_be_written(videos, tmp_path, capsys):
    (tmp_path / "file").touch()
    sheet = tmp_path / "file" / "sheet.png"
    settings = ["--num-videos", "3", "--size", "16x24", "--num-frames", "8"]
    argv = ["--out", videos, *settings, "--contact-sheet", str(sheet)]
    status, text = line(synthetic_clevrer.main, argv, capsys)
    assert status == 2
    assert f"--contact-sheet {sheet}: " in text
