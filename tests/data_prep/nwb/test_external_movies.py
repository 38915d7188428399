"""External movies of an NWB file: pixels equal those that were encoded losslessly."""

from __future__ import annotations

import av
import numpy as np
import pytest

pytest.importorskip("pynwb")

from nwb_recording import new_file, write

from data_prep.nwb import convert
from data_prep.nwb.external_movies import MovieFile
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.errors import DataError

RNG = np.random.default_rng(0)
FILMS = [RNG.integers(0, 256, (n, 16, 24), dtype=np.uint8) for n in (50, 70)]


def encode(path, film):
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=30)
        stream.height, stream.width, stream.pix_fmt = *film.shape[1:], "bgr0"
        for picture in film:
            frame = av.VideoFrame.from_ndarray(np.repeat(picture[..., None], 3, -1), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def record(folder, names, starts=None, samples=120, **clock):
    from pynwb.image import ImageSeries

    (folder / "movies").mkdir(exist_ok=True)
    for number, film in enumerate(FILMS):
        encode(folder / "movies" / f"{number}.mkv", film)
    nwb = new_file()
    nwb.add_stimulus(
        ImageSeries(
            name="film",
            external_file=names,
            starting_frame=[0, 50][: len(names)] if starts is None else starts,
            format="external",
            unit="n.a.",
            **(clock or {"rate": 30.0, "starting_time": 2.0, "num_samples": samples}),
        )
    )
    nwb.add_unit(spike_times=[2.5, 3.5, 4.5, 4.6, 5.5], id=1)
    write(nwb, folder / "f.nwb")
    return folder / "f.nwb"


def session_of(path, **settings):
    convert(
        path,
        path.with_name("s"),
        size=(16, 24),
        trial_seconds=1,
        progress=False,
        external_movies=True,
        **settings,
    )
    return Session(path.with_name("s"))


def test_frames_of_two_files_follow_one_another(tmp_path):
    session = session_of(record(tmp_path, ["movies/0.mkv", "./movies/1.mkv"]))
    video = np.concatenate([session.video(t) for t in range(len(session.lengths))])
    np.testing.assert_array_equal(video, np.concatenate(FILMS))
    responses = np.concatenate([session.responses(t) for t in range(len(session.lengths))])
    assert np.flatnonzero(responses[:, 0]).tolist() == [15, 45, 75, 78, 105]


@pytest.mark.parametrize(
    ("clock", "stated"), [({"timestamps": np.arange(49) / 30}, 49), ({"samples": 70}, 70)]
)
def test_movies_with_another_number_of_frames(clock, stated, tmp_path):
    path = record(tmp_path, ["movies/0.mkv"], **clock)
    with pytest.raises(DataError, match=f"states {stated} frames, but its movies have 50"):
        session_of(path)


def test_starting_frames_that_the_movies_do_not_have(tmp_path):
    path = record(tmp_path, ["movies/0.mkv", "movies/1.mkv"], starts=[0, 40])
    with pytest.raises(DataError, match=r"is \[0, 40\], but its movies begin at frames \[0, 50\]"):
        session_of(path)


def test_movies_elsewhere_are_not_opened(tmp_path):
    encode(tmp_path / "out.mkv", FILMS[0])
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "link.mkv").symlink_to(tmp_path / "out.mkv")
    outside = ["../out.mkv", str(tmp_path / "out.mkv"), "link.mkv", "C:\\out.mkv", "http://a/b.mkv"]
    for name in outside:
        with pytest.raises(DataError, match="is outside the file's folder"):
            MovieFile(tmp_path / "in" / "f.nwb", name)
    with pytest.raises(DataError, match=r"the movie none.mkv is not in"):
        MovieFile(tmp_path / "f.nwb", "none.mkv")
    (tmp_path / "text.mkv").write_text("text")
    with pytest.raises(DataError, match=r"the movie text.mkv cannot be read: no readable video"):
        MovieFile(tmp_path / "f.nwb", "text.mkv")
