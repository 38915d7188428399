"""HDF5 files with external links, cycles or false sizes are refused before they are read."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("h5py")

import h5py

from data_prep.nwb.hdf5_check import check_hdf5
from ssl_vivit.errors import DataError


def external_link(file, folder):
    with h5py.File(folder / "other.h5", "w") as other:
        other["secret"] = np.arange(3)
    file["a/link"] = h5py.ExternalLink("other.h5", "/secret")


def external_storage(file, folder):
    (folder / "raw.bin").write_bytes(bytes(80))
    file.create_dataset("a/raw", (10,), "f8", external=[(str(folder / "raw.bin"), 0, 80)])


def virtual_data(file, folder):
    layout = h5py.VirtualLayout((3,), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "secret", (3,))
    file.create_virtual_dataset("a/virtual", layout)


def hard_cycle(file, folder):
    file["a/b/up"] = file["a"]


def soft_cycle(file, folder):
    file["a/b/up"] = h5py.SoftLink("/c")
    file["c/back"] = h5py.SoftLink("/a")


def own_name(file, folder):
    file["a/loop"] = h5py.SoftLink("/a/loop")


def empty_claim(file, folder):
    file.create_dataset("a/huge", (10**6, 10**5), "f8", chunks=(1, 10**5))


def large_chunk(file, folder):
    file.create_dataset("a/chunk", (2**28,), "f8", chunks=(2**28,), compression="gzip")


def large_chunk_of_few_bytes(file, folder):
    data = file.create_dataset("a/chunk", (2**28,), "f8", chunks=(2**28,), compression="gzip")
    # What is stored could hold the claim.
    data.id.write_direct_chunk((0,), bytes(2**21))


@pytest.mark.parametrize(
    ("write", "expected"),
    [
        (external_link, "/a/link is a link to another file"),
        (external_storage, "/a/raw are in another file"),
        (virtual_data, "/a/virtual are in another file"),
        (hard_cycle, "/a/b/up leads back to a group above it"),
        (soft_cycle, "leads back to a group above it"),
        (own_name, "/a/loop"),
        (
            empty_claim,
            "/a/huge states a size of 800,000,000,000 bytes, but the file contains at most 0",
        ),
        (
            large_chunk,
            "/a/chunk states a size of 2,147,483,648 bytes, but the file contains at most 0",
        ),
        (large_chunk_of_few_bytes, "/a/chunk is stored in chunks of 2,147,483,648 bytes"),
    ],
)
def test_refused(write, expected, tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_group("a/b")
        file.create_group("c")
        write(file, tmp_path)
    with pytest.raises(DataError) as error:
        check_hdf5(tmp_path / "f.h5")
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_links_within_the_file_and_packed_zeros_pass(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.create_dataset(
            "a/zeros", data=np.zeros((100, 2**17)), chunks=(1, 2**17), compression=9
        )
        file["b/hard"] = file["a"]
        file["b/soft"] = h5py.SoftLink("/a/zeros")
        file["b/dangling"] = h5py.SoftLink("/nowhere")
        file["b/empty"] = h5py.Empty("f8")
        file["b/text"] = "text"
    check_hdf5(tmp_path / "f.h5")


def test_many_levels_of_groups(tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        group = file
        for _ in range(1500):
            group = group.create_group("g")
    check_hdf5(tmp_path / "f.h5")
