"""Unpacking and checking of sessions from archives that the tests write."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from readable_figures import faults
from session_folders import folder

from data_prep import clevrer
from data_prep.sensorium import check, checking, convert, write_movies
from data_prep.sensorium.__main__ import main
from data_prep.session_writer import SessionWriter
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.errors import DataError

FRAMES, NEURONS = 12, 4
TIERS = ["train"] * 4 + ["oracle"] * 2 + ["live_test_main", "none"]


def write_session(path):
    """Write 8 trials; trials 0, 4 and 5 show one movie; neuron 2 is silent, behaviour 1 is constant."""
    rng = np.random.default_rng(0)
    movies = rng.integers(0, 256, (8, FRAMES, 6, 8), dtype=np.uint8)
    with SessionWriter(path, frames_per_second=30, kind="spikes", unit_ids=[5, 6, 7, 9]) as session:
        for trial, tier in enumerate(TIERS):
            spikes = rng.poisson(0.5, (FRAMES, NEURONS))
            spikes[:, 2] = 0
            behaviour = np.stack([rng.random(FRAMES), np.ones(FRAMES)], axis=1)
            movie = movies[0 if trial in (0, 4, 5) else trial]
            session.add(
                tier, movie, spikes, behaviour=behaviour, pupil_centre=np.zeros((FRAMES, 2))
            )
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_session(tmp_path_factory.mktemp("made") / "dynamic1")


@pytest.fixture
def session(made, tmp_path):
    return Path(shutil.copytree(made, tmp_path / "dynamic1"))


def pack(folder, archive, prefix="dynamic1/", extra=()):
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                file.write(path, prefix + path.relative_to(folder).as_posix())
        for name, content in extra:
            file.writestr(name, content)
    return archive


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def errors(argv, capsys):
    assert main(argv) == (1 if argv[0] == "check" and "--sheet" not in argv else 2)
    text = capsys.readouterr().err
    lines = [piece for piece in text.splitlines() if piece.startswith("error: ")]
    return lines


def test_check_counts(session, capsys):
    assert main(["check", str(session)]) == 0
    text = capsys.readouterr().out
    for line in (
        "frames       6×8 pixels, 30 per second",
        "neurons      4, spikes, coordinates unmeasured",
        "trials       8, 12 frames",
        "tiers        train 4, oracle 2, live_test_main 1, none 1",
        "movies       5 different, 1 of them repeated 3 times",
        "padding      none",
        "silent       1 neurons in training trials",
        "behaviour    2 channels, without variance: 1",
        "pupil centre unmeasured",
        "1 of 1 movies of oracle are also shown in train",
    ):
        assert line in text
    assert "live_test_main are shown" not in text
    rates = [np.load(session / f"data/responses/{t}.npy").mean(1) * 30 for t in range(4)]
    rates = np.mean(rates, axis=0)
    assert f"neurons from 0 to {rates.max():.3g} spikes/s" in text


def test_check_finds_padding(session, capsys):
    for trial in (1, 6):
        for name in ("videos", "responses", "behavior", "pupil_center"):
            file = session / f"data/{name}/{trial}.npy"
            array = np.load(file).astype(np.float32)
            array[..., FRAMES - trial :] = np.nan
            np.save(file, array)
    found = check(session, progress=False)
    assert found.problems == []
    assert found.facts["padding"] == "1 to 6 frames at the end of 2 trials"
    assert found.facts["trials"] == "8, 6 to 12 frames"


def test_check_names_every_faulty_trial(session, capsys):
    np.save(session / "data/responses/1.npy", np.zeros((3, FRAMES), np.float32))
    (session / "data/videos/2.npy").unlink()
    np.save(session / "data/behavior/5.npy", np.zeros((2, FRAMES - 1), np.float32))
    # Of a trial that is not used nothing is asked.
    (session / "data/videos/7.npy").unlink()
    lines = errors(["check", str(session)], capsys)
    assert len(lines) == 3
    assert "responses/1.npy has 3 neurons" in lines[0]
    assert "videos/2.npy is missing" in lines[1]
    assert "behavior/5.npy has 11 frames" in lines[2]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ("data/videos", "has no data/videos"),
        ("data/responses", "has no data/responses"),
        ("meta/trials/tiers.npy", "tiers.npy"),
        ("meta/neurons/unit_ids.npy", "unit_ids.npy"),
        ("", "is not a folder"),
    ],
)
def test_check_of_a_session_that_lacks_a_part(part, expected, session, capsys):
    path = session / part
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    lines = errors(["check", str(session)], capsys)
    assert len(lines) == 1
    assert expected in lines[0]


def test_sheet_shows_the_frames(session, tmp_path, capsys):
    picture = tmp_path / "sheet.png"
    assert main(["check", str(session), "--sheet", str(picture)]) == 0
    pixels = np.asarray(Image.open(picture).convert("L"))
    assert pixels.std() > 20
    with pytest.raises(SystemExit):
        main(["check", str(session), "--sheet", str(tmp_path / "sheet.jpg")])
    assert "must end in .png" in capsys.readouterr().err
    lines = errors(["check", str(session), "--sheet", str(picture / "s.png")], capsys)
    assert "cannot be written" in lines[0]


def test_sheet_is_readable_and_numbers_frames(session):
    figure = checking._figure(Session(session), trials=6, frames=5)
    assert faults(figure) == []
    film, responses, behaviour = figure.axes[:3]
    numbers = [text.get_text() for text in film.texts]
    assert numbers == ["frame 0", "frame 3", "frame 6", "frame 8", "frame 11"]
    assert film.get_ylabel() == "trial 0\ntrain"
    for axis in (responses, behaviour):
        assert axis.get_ylabel() == "SDs above minimum"
    shown = [text.get_text() for text in figure.axes[-2].get_legend().get_texts()]
    assert sorted(shown) == ["unit 5", "unit 6", "unit 7", "unit 9"]


def test_sheet_lists_the_neurons_that_vary_most_in_training(tmp_path):
    """Neurons are ranked by training trials, although others vary more in held-out trials."""
    rng = np.random.default_rng(0)
    ids = [11, 12, 13, 14, 15, 16]
    in_training = np.array([1.0, 5.0, 2.0, 6.0, 3.0, 4.0])
    path = tmp_path / "session"
    with SessionWriter(path, frames_per_second=30, kind="calcium", unit_ids=ids) as session:
        for tier in ("train", "train", "oracle"):
            spread = in_training if tier == "train" else 10 - in_training
            session.add(
                tier,
                rng.integers(0, 256, (FRAMES, 6, 8), dtype=np.uint8),
                rng.permuted(np.linspace(0, 1, FRAMES)[:, None] * spread, axis=0),
            )
    opened = Session(path)
    figure = checking._figure(opened, trials=3, frames=2)
    for row, trial in enumerate((0, 1, 2)):
        axis = figure.axes[3 * row + 1]
        assert [line.get_label() for line in axis.lines] == [
            "unit 14", "unit 12", "unit 16", "unit 15",
        ]  # fmt: skip
        for line, neuron in zip(axis.lines, (3, 1, 5, 4), strict=True):
            values = opened.responses(trial)[:, neuron]
            np.testing.assert_allclose(
                line.get_ydata(), (values - values.min()) / values.std(), rtol=1e-5
            )


@pytest.mark.parametrize("prefix", ["dynamic1/", "sensorium/all/dynamic1/", ""])
def test_zip_to_folder(prefix, session, tmp_path, capsys):
    extra = [
        ("README.txt", "x"),
        ("__MACOSX/dynamic1/data/videos/0.npy", "x"),
        (f"{prefix}a.py", ""),
    ]
    archive = pack(session, tmp_path / "dynamic1.zip", prefix, extra)
    assert main(["convert", str(archive), "--out", str(tmp_path / "out")]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["dynamic1"]
    assert contents(tmp_path / "out/dynamic1") == contents(session)
    assert main(["check", str(tmp_path / "out/dynamic1")]) == 0
    capsys.readouterr()
    assert main(["convert", str(archive), "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"already complete: {tmp_path / 'out/dynamic1'}\n"


def test_several_sessions_in_one_zip_and_in_a_folder(session, tmp_path):
    archive = tmp_path / "all.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in ("one", "two"):
            for path, content in contents(session).items():
                file.writestr(f"all/{name}/{path}", content)
    written, there = convert([archive], tmp_path / "out", progress=False)
    assert [path.name for path in written] == ["one", "two"]
    assert there == []
    again, _ = convert([tmp_path / "out"], tmp_path / "copy", progress=False)
    assert [path.name for path in again] == ["one", "two"]
    assert contents(tmp_path / "copy/two") == contents(session)


def damaged(session, archive, name):
    """Return an archive with one wrong byte, and the bytes of the intact archive."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as file:
        for path, content in sorted(contents(session).items()):
            file.writestr(f"dynamic1/{path}", content)
    whole, inside = archive.read_bytes(), (session / name).read_bytes()
    at = whole.index(inside) + len(inside) - 9
    archive.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    return whole


def test_linked_folders_are_followed(session, tmp_path):
    """A part of a session behind a link must not count as missing."""
    source = tmp_path / "source"
    shutil.copytree(session, source / "one")
    (source / "one/data/behavior").rename(tmp_path / "behavior")
    (source / "one/data/behavior").symlink_to(tmp_path / "behavior")
    (source / "two").symlink_to(session)
    convert([source], tmp_path / "out", progress=False)
    whole = {file.relative_to(session) for file in session.rglob("*") if file.is_file()}
    for name in ("one", "two"):
        made = tmp_path / "out" / name
        assert {file.relative_to(made) for file in made.rglob("*") if file.is_file()} == whole
    (source / "three").symlink_to(session)
    with pytest.raises(DataError, match="passed over: 1 folder linked twice"):
        convert([source], tmp_path / "again", progress=False)
    (source / "three").unlink()
    (source / "one/data/behavior/0.npy").unlink()
    (source / "one/data/behavior/0.npy").symlink_to("nothing")
    with pytest.raises(DataError, match=r"0\.npy cannot be read: No such file"):
        convert([source], tmp_path / "again", progress=False)


def test_a_stopped_conversion_continues(session, tmp_path):
    archive = tmp_path / "dynamic1.zip"
    whole = damaged(session, archive, "data/videos/3.npy")
    with pytest.raises(DataError, match="is damaged"):
        convert([archive], tmp_path / "out", progress=False)
    assert not (tmp_path / "out/dynamic1").exists()
    partial = tmp_path / "out/dynamic1.partial"
    before = {
        path.relative_to(partial): path.stat().st_mtime_ns for path in partial.rglob("[0-9]*.npy")
    }
    assert Path("data/videos/2.npy") in before
    assert Path("data/videos/3.npy") not in before
    archive.write_bytes(whole)
    convert([archive], tmp_path / "out", progress=False)
    assert contents(tmp_path / "out/dynamic1") == contents(session)
    for name, time in before.items():
        assert (tmp_path / "out/dynamic1" / name).stat().st_mtime_ns == time


def test_what_another_archive_left_is_not_kept(session, tmp_path):
    (tmp_path / "out/dynamic1.partial/data/videos").mkdir(parents=True)
    partial = tmp_path / "out/dynamic1.partial"
    (partial / "unpacking.json").write_text("[]")
    wrong = (session / "data/videos/0.npy").read_bytes()[::-1]
    (partial / "data/videos/0.npy").write_bytes(wrong)
    convert([session], tmp_path / "out", progress=False)
    assert contents(tmp_path / "out/dynamic1") == contents(session)


@pytest.mark.parametrize("zipped", [True, False])
def test_other_contents_of_equal_size_are_detected(session, tmp_path, zipped):
    """This happens if withheld responses, stored as zeros, are published later."""
    source = pack(session, tmp_path / "s.zip") if zipped else session
    convert([source], tmp_path / "out", progress=False)
    assert convert([source], tmp_path / "out", progress=False)[1] == [tmp_path / "out/dynamic1"]
    responses = session / "data/responses/7.npy"
    np.save(responses, np.load(responses)[..., ::-1])
    source = pack(session, tmp_path / "s.zip") if zipped else session
    with pytest.raises(DataError, match="dynamic1 already exists with other content"):
        convert([source], tmp_path / "out", progress=False)


@pytest.mark.parametrize("call", range(12))
def test_a_conversion_killed_at_any_step_continues(call, session, tmp_path):
    """The steps are writes, renames and removals of leftovers."""
    out = tmp_path / "out"
    (out / "dynamic1.partial/data/videos").mkdir(parents=True)
    (out / "dynamic1.partial/unpacking.json").write_text("[]")
    (out / "dynamic1.partial/data/videos/0.npy").write_bytes(b"of another archive")
    lines = f"""
import os, shutil
from pathlib import Path
from data_prep.sensorium.archive import convert
calls = iter(range(10_000))
def counted(real):
    def step(*given, **options):
        if next(calls) // 2 == {call}:
            os.kill(os.getpid(), 9)
        return real(*given, **options)
    return step
os.rename, os.replace, shutil.rmtree = map(counted, (os.rename, os.replace, shutil.rmtree))
Path.unlink, Path.mkdir = counted(Path.unlink), counted(Path.mkdir)
convert([{str(session)!r}], {str(out)!r}, progress=False)
"""
    subprocess.run([sys.executable, "-c", lines], check=False)
    convert([session], out, progress=False)
    assert [path.name for path in out.iterdir()] == ["dynamic1"]
    assert contents(out / "dynamic1") == contents(session)


@pytest.mark.parametrize(
    "name", ["../evil.npy", "/evil.npy", "a/../../evil.npy", "..\\evil.npy", "C:/e"]
)
def test_entries_that_lead_elsewhere(name, session, tmp_path, capsys):
    archive = pack(session, tmp_path / "a.zip", extra=[(name, "x")])
    lines = errors(["convert", str(archive), "--out", str(tmp_path / "out/below")], capsys)
    assert "leads out of --out" in lines[0]
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("evil*"))


def test_links_are_not_unpacked(session, tmp_path, capsys):
    link = zipfile.ZipInfo("dynamic1/data/videos/9.npy")
    link.external_attr = 0o120777 << 16
    archive = pack(session, tmp_path / "a.zip", extra=[(link, "/etc/passwd")])
    assert (
        "contains the link"
        in errors(["convert", str(archive), "--out", str(tmp_path / "o")], capsys)[0]
    )


def test_damage_is_found_and_nothing_takes_the_name(session, tmp_path, capsys):
    archive = tmp_path / "a.zip"
    stored = damaged(session, archive, "meta/trials/tiers.npy")
    lines = errors(["convert", str(archive), "--out", str(tmp_path / "out")], capsys)
    assert "is damaged, download it again" in lines[0]
    assert not (tmp_path / "out/dynamic1").exists()
    archive.write_bytes(stored[: len(stored) // 2])
    lines = errors(["convert", str(archive), "--out", str(tmp_path / "out")], capsys)
    assert "neither a folder nor a complete zip archive" in lines[0]


def test_sources_that_cannot_be_converted(session, tmp_path):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "out"
    for sources, expected in (
        ([tmp_path / "none.zip"], "does not exist"),
        ([tmp_path / "empty"], "contains no session"),
        ([session, session], "several sessions have this name"),
    ):
        with pytest.raises(DataError, match=expected):
            convert(sources, out, progress=False)
    with pytest.raises(DataError, match="is already a session in --out"):
        convert([session], session.parent, progress=False)
    (out / "dynamic1").mkdir(parents=True)
    with pytest.raises(DataError, match="already exists with other content"):
        convert([session], out, progress=False)


def decoded(path):
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        return rate, np.stack([f.to_ndarray(format="gray") for f in container.decode(video=0)])


def test_movies_are_the_training_stimuli_without_those_of_other_tiers(tmp_path):
    # Smooth, since the codec does not keep noise.
    across = np.linspace(0, 200, 64)[None] + np.linspace(0, 50, 48)[:, None]
    movies = [
        np.clip(across + 10 * k + 2 * np.arange(FRAMES)[:, None, None], 0, 255) for k in range(4)
    ]
    shown = [
        ("train", 0),
        ("train", 1),
        ("train", 1),
        ("train", 2),
        ("oracle", 2),
        ("live_test_main", 3),
    ]
    path = tmp_path / "a"
    with SessionWriter(path, frames_per_second=30, kind="spikes", unit_ids=[1]) as session:
        for tier, movie in shown:
            session.add(tier, movies[movie].astype(np.uint8), np.ones((FRAMES, 1)))
    found = write_movies([path], tmp_path / "out", progress=False)
    assert [file.name for file in found.written] == ["a_00000.mp4", "a_00001.mp4"]
    assert (found.held_out, found.there) == (1, [])
    for number, file in enumerate(found.written):
        rate, frames = decoded(file)
        assert rate == 30
        assert frames.shape == (FRAMES, 48, 64)
        # Video levels hold 220 steps of grey.
        assert np.abs(frames - movies[number]).mean() < 3
    found.written[1].unlink()
    again = write_movies([path], tmp_path / "out", progress=False)
    assert [file.name for file in again.written] == ["a_00001.mp4"]
    assert [file.name for file in again.there] == ["a_00000.mp4"]


def test_movies_go_through_the_command_line_into_shards(session, tmp_path, capsys):
    assert main(["movies", str(session), "--out", str(tmp_path / "movies")]) == 0
    told = capsys.readouterr().out
    # Trial 0 shows the movie of both oracle trials.
    assert "excluded 1 movies that validation or test trials also show" in told
    assert "wrote 3 movies; next: python -m data_prep.clevrer pack" in told
    report = clevrer.pack(
        tmp_path / "movies", tmp_path / "shards", storage="original", workers=1, progress=False
    )
    assert report.packed == 3


def test_movies_refuse_sessions_without_a_movie_of_their_own(tmp_path):
    path = tmp_path / "a"
    movie = np.zeros((FRAMES, 6, 8), np.uint8)
    with SessionWriter(path, frames_per_second=30, kind="spikes", unit_ids=[1]) as session:
        session.add("train", movie, np.ones((FRAMES, 1)))
        session.add("oracle", movie, np.ones((FRAMES, 1)))
    with pytest.raises(
        DataError, match="all 1 training movies are also shown in validation or test"
    ):
        write_movies([path], tmp_path / "out")
    with pytest.raises(DataError, match="several sessions have the name a; rename"):
        write_movies([path, path], tmp_path / "out")


def test_missing_tiers_are_noted(tmp_path):
    notes = {
        name: check(folder(tmp_path, name, tiers=tiers)).notes
        for name, tiers in (("a", ["train", "train", "oracle"]), ("b", ["train", "live_test_main"]))
    }
    assert [note[:28] for note in notes["a"]] == ["no trial has a tier for test"]
    assert [note[:34] for note in notes["b"]] == ["no trial has a tier for validation"]
