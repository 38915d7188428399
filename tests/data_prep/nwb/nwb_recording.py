"""A small recording with known contents, written with pynwb."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

RATE = 30.0
CLIP = 30
SIZE = (18, 32)


@dataclass
class Recording:
    """Two movies of 300 frames shown by index, one movie shown once, three units.

    Attributes:
        templates: name → (F, H, W) uint8 frames.
        onsets: name → times of the frames of the movie in seconds, with jitter.
        indices: name → index of each shown frame in the template.
        spikes: unit id → sorted times in seconds, some of them exactly on onsets.
        tiers: tier of each row of the trials table.
    """

    path: Path
    templates: dict[str, np.ndarray] = field(default_factory=dict)
    onsets: dict[str, np.ndarray] = field(default_factory=dict)
    indices: dict[str, np.ndarray] = field(default_factory=dict)
    spikes: dict[int, np.ndarray] = field(default_factory=dict)
    trials: np.ndarray = field(default_factory=lambda: np.zeros((0, 2)))
    tiers: list[str] = field(default_factory=list)
    running: tuple[np.ndarray, np.ndarray] = field(default=(np.zeros(0), np.zeros(0)))
    pupil: tuple[np.ndarray, np.ndarray] = field(default=(np.zeros(0), np.zeros(0)))


def new_file():
    from pynwb import NWBFile

    return NWBFile(
        session_description="test",
        identifier="mouse-1",
        session_start_time=datetime(2026, 1, 1, tzinfo=UTC),
    )


def write(nwb, path):
    from pynwb import NWBHDF5IO

    with NWBHDF5IO(str(path), mode="w") as io:
        io.write(nwb)


def record(path: Path) -> Recording:
    """Write the recording: 12 clips of 30 frames, their onsets jittered, half a second between them.

    movie_a, an ImageSeries that the presentation points to, shows clips 0 to 5 and 0 twice again;
    movie_b four clips of four images each, one image after another, over and over.
    """
    from pynwb import TimeSeries
    from pynwb.base import Images
    from pynwb.behavior import BehavioralTimeSeries, EyeTracking, SpatialSeries
    from pynwb.image import GrayscaleImage, ImageSeries, IndexSeries

    rng = np.random.default_rng(0)
    made = Recording(path)
    nwb = new_file()
    film = rng.integers(0, 256, (CLIP * 6, *SIZE), dtype=np.uint8)
    pictures = rng.integers(0, 256, (16, *SIZE), dtype=np.uint8)
    made.templates = {"movie_a": film, "movie_b": pictures}
    made.indices = {
        "movie_a": np.concatenate([np.arange(CLIP) + c * CLIP for c in (0, 1, 2, 3, 4, 5, 0, 0)]),
        "movie_b": np.concatenate([np.arange(CLIP) % 4 + c * 4 for c in (3, 1, 2, 0)]),
    }
    nwb.add_stimulus_template(
        ImageSeries(name="movie_a_frames", data=film, unit="n.a.", format="raw", rate=RATE)
    )
    # Named so that the order in the file is not that of the names.
    images = [GrayscaleImage(name=f"image_{k}", data=picture) for k, picture in enumerate(pictures)]
    collection = Images(name="movie_b_images", images=images, description="all")
    collection.order_of_images = _in_order(images)
    nwb.add_stimulus_template(collection)
    start = 5.0
    rows = []
    for name, indices in made.indices.items():
        onsets = []
        for _ in range(len(indices) // CLIP):
            times = start + np.arange(CLIP) / RATE + rng.uniform(0, 0.004, CLIP)
            rows.append((times[0], times[-1] + 1 / RATE))
            onsets.append(times)
            start += CLIP / RATE + 0.5
        made.onsets[name] = np.concatenate(onsets)
        nwb.add_stimulus(
            IndexSeries(
                name=name,
                data=indices.astype(np.uint32),
                indexed_images=collection,
                unit="N/A",
                timestamps=made.onsets[name],
            )
        )
    made.trials = np.array(rows)
    made.tiers = ["oracle", *["train"] * 5, "oracle", "oracle", *["live_test_main"] * 4]
    nwb.add_trial_column("tier", "what the trial is for")
    for (begin, end), tier in zip(rows, made.tiers, strict=True):
        nwb.add_trial(start_time=begin, stop_time=end, tier=tier)
    shown = np.concatenate(list(made.onsets.values()))
    for unit, count in ((7, 400), (3, 100), (12, 0)):
        times = np.concatenate([rng.uniform(0, start, count), shown[:: max(1, unit)][:count]])
        made.spikes[unit] = np.sort(times)
        nwb.add_unit(spike_times=made.spikes[unit], id=unit)
    times = np.arange(0, start + 1, 1 / 50)
    made.running = times, np.sin(times) + 2
    running = TimeSeries(
        name="speed", data=made.running[1], unit="m/s", rate=50.0, starting_time=0.0,
        conversion=0.01, offset=1.0,
    )  # fmt: skip
    times = np.sort(rng.uniform(0, start + 1, 900))
    made.pupil = times, rng.normal(size=(900, 2))
    pupil = SpatialSeries(
        name="pupil", data=made.pupil[1], timestamps=times, reference_frame="camera"
    )
    module = nwb.create_processing_module("behavior", "measured")
    module.add(BehavioralTimeSeries(time_series=running, name="running"))
    module.add(EyeTracking(spatial_series=pupil, name="eye"))
    write(nwb, path)
    _point_to_series(path, "movie_a", "movie_a_frames")
    return made


def _in_order(images):
    from pynwb.base import ImageReferences

    return ImageReferences(name="order_of_images", data=images)


def _point_to_series(path: Path, name: str, template: str) -> None:
    """Point to the series as files of earlier versions of pynwb do; pynwb now refuses to write this."""
    import h5py

    with h5py.File(path, "r+") as file:
        group = file[f"stimulus/presentation/{name}"]
        del group["indexed_images"]
        group["indexed_timeseries"] = h5py.SoftLink(f"/stimulus/templates/{template}")
