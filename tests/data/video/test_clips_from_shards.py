"""Batches from real shards: encoded videos in a webdataset tar with an index."""

from __future__ import annotations

import io
import itertools
import json
import logging
import tarfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from data_prep.clevrer.packing import pack
from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.data.video.augment import AugmentConfig
from ssl_vivit.data.video.clips import ClipConfig
from ssl_vivit.data.video.decoding import decode_frames
from ssl_vivit.data.video.loader import DataConfig, build_clips
from ssl_vivit.errors import DataError

NUM_FRAMES = 24


def encoded(seed: int) -> bytes:
    """Encode a bright square that moves over a coloured ground as h264, 48×32 pixels at 25 Hz."""
    rng = np.random.default_rng(seed)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "8"})
        stream.codec_context.thread_count = 1
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        ground, start = rng.integers(40, 160, 3), rng.integers(0, 20, 2)
        for i in range(NUM_FRAMES):
            picture = np.full((32, 48, 3), ground, np.uint8)
            y, x = (start + i) % 20
            picture[y : y + 10, x : x + 10] = 240
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    for i in range(120):
        (folder / "videos").mkdir(exist_ok=True)
        (folder / "annotations").mkdir(exist_ok=True)
        thing = {"object_id": 0, "velocity": [0.0, 0.0, i], "inside_camera_view": True}
        annotation = {
            "object_property": [
                {"object_id": 0, "color": "cyan", "material": "rubber", "shape": "sphere"}
            ],
            "motion_trajectory": [{"frame_id": f, "objects": [thing]} for f in range(NUM_FRAMES)],
            "collision": [],
        }
        (folder / "videos" / f"video_{i:05d}.mp4").write_bytes(encoded(i))
        (folder / "annotations" / f"annotation_{i:05d}.json").write_text(json.dumps(annotation))
    pack(
        folder / "videos",
        folder,
        folder / "annotations",
        prefix="some",
        storage="original",
        frames=NUM_FRAMES,
        samples_per_shard=60,
        workers=1,
        progress=False,
    )
    return folder


def config(folder: Path, **settings: Any) -> DataConfig:
    settings = {"workers": 0, "clip": ClipConfig(num_frames=4, frame_stride=2), **settings}
    return DataConfig(shards=str(folder / "some-*.tar"), decoder="pyav", **settings)


def test_clips_are_the_frames_that_the_batch_names(shards: Path) -> None:
    parts = build_clips(config(shards, mean=(0.0,), std=(1.0,), held_out=0.2), size=(32, 48))
    held_out = parts.held_out
    assert held_out is not None
    assert len(parts.train) + len(held_out) == 120
    assert len(held_out) > 10
    batch = next(held_out.once(4, "cpu"))
    assert batch["frames"][0].tolist() == [[0, 2, 4, 6], [17, 19, 21, 23]]
    stored = {}
    for shard in shards.glob("*.tar"):
        with tarfile.open(shard) as tar:
            stored |= {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    for key, frames, views in zip(batch["key"], batch["frames"], batch["clips"], strict=True):
        for view in range(2):
            plain = decode_frames(stored[f"{key}.mp4"], frames[view].tolist(), decoder="pyav")
            expected = torch.from_numpy(plain).permute(3, 0, 1, 2).float() / 255
            assert (views[view] - expected).abs().max() < 1e-6


def test_workers_resumption_and_rates_on_encoded_videos(shards: Path) -> None:
    clip = ClipConfig(num_frames=6, fps=30.0)

    def some(workers: int, start: int, count: int) -> list[dict[str, Any]]:
        clips = build_clips(config(shards, workers=workers, clip=clip), size=(16, 16), labels=True)
        stream = clips.train.stream(BatchSplit(16), start_step=start, device="cpu")
        taken = list(itertools.islice(stream, count))
        stream.close()
        return taken

    whole = some(0, 5, 4)
    for workers, start in ((2, 5), (1, 7)):
        for a, b in zip(whole[start - 5 :], some(workers, start, 9 - start), strict=True):
            assert a["key"] == b["key"]
            for name in ("clips", "frames", "fps", "mean_speed", "presence"):
                assert torch.equal(a[name], b[name])
    speeds = [float(key[-5:]) for key in whole[0]["key"]]
    assert whole[0]["mean_speed"].tolist() == [[speed, speed] for speed in speeds]
    assert set(whole[0]["frames"].diff().unique().tolist()) == {0, 1}


def test_damaged_bytes_are_replaced_and_named(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for source in shards.glob("some-*"):
        (tmp_path / source.name).write_bytes(source.read_bytes())
    index = json.loads((tmp_path / "some-000000.json").read_text())
    sample = index["samples"][7]
    content = bytearray((tmp_path / "some-000000.tar").read_bytes())
    content[sample["members"]["mp4"][0] + 400] ^= 0xFF
    (tmp_path / "some-000000.tar").write_bytes(content)
    train = build_clips(config(tmp_path, held_out=0.0), size=(16, 16)).train
    stream = train.stream(BatchSplit(40), start_step=0, device="cpu")
    with caplog.at_level(logging.WARNING):
        keys = [key for batch in itertools.islice(stream, 3) for key in batch["key"]]
    assert list(train.broken) == ["video_00007"]
    assert "CRC" in train.broken["video_00007"]
    assert "video_00007" in caplog.text
    assert len(keys) == 120
    assert "video_00007" not in keys


def test_settings_that_cannot_be_are_named(shards: Path) -> None:
    with pytest.raises(DataError, match=r"--data\.shards is not set"):
        build_clips(DataConfig(), size=(16, 16))
    long = config(shards, clip=ClipConfig(num_frames=128))
    with pytest.raises(DataError, match=r"has 24 frames.*num_frames 128.*needs 128"):
        build_clips(long, size=(16, 16))
    with pytest.raises(DataError, match=r"--data\.workers is -1"):
        build_clips(config(shards, workers=-1), size=(16, 16))
    grey = build_clips(
        config(shards, augment=AugmentConfig(), held_out=0.0), size=(9, 16), in_channels=1
    )
    assert grey.held_out is None
    assert next(grey.train.once(2, "cpu"))["clips"].shape == (2, 2, 1, 4, 9, 16)
