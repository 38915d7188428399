"""Videos that are too short for the clips are skipped, padded or refused by one setting."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from data_prep.clevrer import pack
from data_prep.clevrer.storage import encode_h264
from ssl_vivit.data.batch_split import BatchSplit
from ssl_vivit.data.video.augment import AugmentConfig
from ssl_vivit.data.video.clips import ClipConfig
from ssl_vivit.data.video.decoding import decode_frames
from ssl_vivit.data.video.loader import DataConfig, build_clips
from ssl_vivit.errors import DataError

LENGTHS = {"long0": 30, "long1": 24, "long2": 20, "short0": 1, "short1": 7, "short2": 13}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("short")
    (folder / "v").mkdir()
    for name, length in LENGTHS.items():
        frames = np.full((length, 16, 16, 3), 0, np.uint8)
        frames += np.arange(length, dtype=np.uint8)[:, None, None, None] * 8
        (folder / "v" / f"{name}.mp4").write_bytes(encode_h264(frames, 25))
    pack(folder / "v", folder, prefix="x", storage="original", workers=1, progress=False)
    return folder


def clips(folder: Path, **settings: Any):
    # A clip spans 13 steps; the second view needs one more.
    given = {"clip": ClipConfig(num_frames=4, frame_stride=4), "held_out": 0.0, "workers": 0}
    config = DataConfig(shards=str(folder / "x-*.tar"), mean=(0.0,), std=(1.0,), **given | settings)
    return build_clips(config, size=(16, 16))


def once(found) -> dict[str, tuple[np.ndarray, torch.Tensor]]:
    batch = next(found.train.once(10, "cpu"))
    return {
        key: (frames.numpy(), pixels)
        for key, frames, pixels in zip(batch["key"], batch["frames"], batch["clips"], strict=True)
    }


def test_they_are_left_out_counted_and_named_in_one_line(folder, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        found = clips(folder)
    (line,) = caplog.messages
    assert line.startswith("3 of 6 videos are too short for the clips, so they are left out")
    assert line.endswith(
        "(--data.short_videos skip; 2 clips of 4 frames with different starts at stride 4 need 14 "
        "frames): short0, short1, short2"
    )
    assert list(once(found)) == ["long0", "long1", "long2"]
    stream = found.train.stream(BatchSplit(2), start_step=0, device="cpu")
    seen = {key for _ in range(12) for key in next(stream)["key"]}
    stream.close()
    assert seen == {"long0", "long1", "long2"}


def test_their_last_frame_is_repeated(folder, caplog) -> None:
    with caplog.at_level(logging.WARNING):
        found = once(clips(folder, short_videos="pad", augment=AugmentConfig(strength="none")))
    assert "their last frame is repeated (--data.short_videos pad; " in caplog.text
    assert list(found) == list(LENGTHS)
    assert found["short0"][0].tolist() == [[0, 0, 0, 0]] * 2
    padded = sorted(found["short1"][0].tolist())
    assert padded in ([[0, 4, 6, 6], [1, 5, 6, 6]], [[0, 4, 6, 6], [0, 4, 6, 6]])
    for key in ("short1", "short2", "long2"):
        frames, pixels = found[key]
        assert frames.max() < LENGTHS[key]
        plain = decode_frames(folder / "v" / f"{key}.mp4", frames.ravel().tolist())
        expected = torch.from_numpy(plain).permute(0, 3, 1, 2).float() / 255
        torch.testing.assert_close(pixels.transpose(1, 2).flatten(0, 1), expected)


def test_the_needed_length_is_in_seconds_if_clips_have_a_rate(folder, caplog) -> None:
    # Videos at 25 frames/s. The fourth frame of a clip at 5 frames/s is 15 frames after its first.
    with caplog.at_level(logging.WARNING):
        clips(folder, clip=ClipConfig(num_frames=4, frame_stride=2, views=1, fps=10.0))
    (line,) = caplog.messages
    assert "; a clip of 4 frames at 5 frames/s spans 0.6 s): short0, short1, short2" in line


def test_they_end_the_run_where_that_is_asked_for(folder) -> None:
    with pytest.raises(DataError, match=r"short0 \(one of 2 .*1 frames.*--data\.short_videos pad"):
        clips(folder, short_videos="refuse")


def test_nothing_but_short_videos_is_refused(folder) -> None:
    with pytest.raises(DataError, match=r"one of 6 .*--data\.short_videos pad"):
        clips(folder, clip=ClipConfig(num_frames=31))
    assert len(once(clips(folder, clip=ClipConfig(num_frames=31), short_videos="pad"))) == 6


def test_a_held_out_part_of_only_short_videos_is_none(folder) -> None:
    long = {f"long{i}" for i in range(3)}
    for share in np.linspace(0.05, 0.95, 19):
        found = clips(folder, held_out=float(share))
        keys = found.train.dataset.videos.keys
        held_out = [] if found.held_out is None else found.held_out.indices.tolist()
        assert {keys[i] for i in [*found.train.indices, *held_out]} == long
        assert found.held_out is None or held_out
