"""If the file system refuses to write, one line names the file, and earlier files are unchanged."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import save_file

from ssl_vivit.data.sessions.facts import SessionFacts
from ssl_vivit.errors import UserError, WriteError
from ssl_vivit.files import replaced_directory, replaced_file, write_json

NOISE = np.random.default_rng(0).integers(0, 256, (8, 64, 64), np.uint8)


@contextmanager
def no_space_beyond(size: int) -> Iterator[None]:
    """Limit files to a size in bytes, like a disk that becomes full in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def png(path: Path) -> None:
    figure = Figure()
    figure.add_subplot().imshow(NOISE[0])
    FigureCanvasAgg(figure).print_png(path)


def gif(path: Path) -> None:
    first, *rest = [Image.fromarray(frame) for frame in NOISE]
    first.save(path, format="GIF", save_all=True, append_images=rest)


def savez(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, noise=NOISE)


def parquet(path: Path) -> None:
    from ssl_vivit.evaluation.neurons.result_files import write_parquet

    write_parquet(path, {"value": NOISE.ravel().astype(float).tolist()})


def csv(path: Path) -> None:
    from ssl_vivit.evaluation.neurons.result_files import write_csv

    write_csv(path, {"value": NOISE.ravel().tolist()})


def nwb(path: Path) -> None:
    pytest.importorskip("pynwb")
    from ssl_vivit.evaluation.neurons.nwb_predictions import PredictedTrial, write_nwb

    rates = NOISE.reshape(len(NOISE), -1)[:, :20].astype(np.float32)
    facts = SessionFacts(
        name="a", unit_ids=tuple(range(20)), frames_per_second=30.0, kind="spikes",
        frame_size=(36, 64), video_mean=0.5, video_std=0.3, behaviour_channels=(),
        behaviour_mean=(), behaviour_std=(), pupil_mean=None, pupil_std=None,
        mean_response=(0.1,) * 20, coordinates=None, split={},
    )  # fmt: skip
    write_nwb(path, facts, [PredictedTrial("test", 0, rates, rates)], model="model")


def tensors(path: Path) -> None:
    save_file({"noise": torch.from_numpy(NOISE)}, path)


WRITERS = [png, gif, savez, parquet, csv, nwb, tensors]


@pytest.mark.parametrize("write", WRITERS)
def test_a_refused_file_is_one_line_and_the_earlier_file_stays(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "result"
    path.write_text("earlier")
    with no_space_beyond(2000), pytest.raises(WriteError) as refused, replaced_file(path) as part:
        write(part)
    assert str(refused.value) == (
        f"{path} cannot be written: File too large; its earlier content is unchanged. Fix the "
        "cause and run the command again"
    )
    assert isinstance(refused.value, UserError)
    assert path.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [path]
    with replaced_file(path) as part:
        write(part)
    assert path.stat().st_size > 2000


def test_a_refused_directory_leaves_the_earlier_one(tmp_path: Path) -> None:
    place = tmp_path / "encoder"
    with replaced_directory(place) as staging:
        write_json(staging / "config.json", {"width": 1})

    def replace() -> None:
        with replaced_directory(place) as staging:
            write_json(staging / "config.json", {"width": 2})
            tensors(staging / "model.safetensors")

    with no_space_beyond(2000), pytest.raises(WriteError, match="encoder cannot be written: File"):
        replace()
    assert [path.name for path in tmp_path.iterdir()] == ["encoder"]
    assert (place / "config.json").read_text() == '{\n  "width": 1\n}\n'


def test_a_place_that_cannot_be_made_names_itself(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match=r"file/below/a\.json cannot be written: Not a directory"):
        write_json(tmp_path / "file" / "below" / "a.json", {})


def test_errors_of_what_is_read_meanwhile_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="missing"), replaced_file(tmp_path / "a") as part:
        part.write_bytes((tmp_path / "missing").read_bytes())
    assert list(tmp_path.iterdir()) == []
