"""Fixtures of the recipes' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from data_prep.clevrer.packing import pack
from data_prep.synthetic_clevrer.videos import render


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread, because results of several threads may differ between runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> str:
    """Return the pattern of shards with 14 rendered videos."""
    folder = tmp_path_factory.mktemp("rendered")
    render(folder / "videos", 14, size=(24, 36), num_frames=32, workers=1, progress=False)
    pack(folder / "videos", folder / "shards", folder / "videos", frames=32, workers=1,
         progress=False)  # fmt: skip
    return str(folder / "shards" / "*.tar")
