"""Fixtures of the recipes' tests."""

from __future__ import annotations

import pytest
from one_thread import one_thread  # noqa: F401

from data_prep.clevrer.packing import pack
from data_prep.synthetic_clevrer.videos import render


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> str:
    """Return the pattern of shards with 14 rendered videos."""
    folder = tmp_path_factory.mktemp("rendered")
    render(folder / "videos", 14, size=(24, 36), num_frames=32, workers=1, progress=False)
    pack(folder / "videos", folder / "shards", folder / "videos", frames=32, workers=1,
         progress=False)  # fmt: skip
    return str(folder / "shards" / "*.tar")
