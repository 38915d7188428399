"""Checks of an HDF5 file that read no data, made before anything of it is read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssl_vivit.errors import DataError

# Bytes that an array may claim for each stored byte. Deflate packs at most 1032 to 1.
_MOST_PACKED = 2000
_FREE_BYTES = 2**26
# A compressed chunk is unpacked whole, however little of it is read.
_MOST_CHUNK_BYTES = 2**30


def check_hdf5(path: str | Path) -> None:
    """Refuse a file that opens other files, has a cycle of links, or claims more than it holds.

    Args:
        path: an HDF5 file.

    Raises:
        DataError: if a link or an array lies in another file, a link leads back to a group above
            it, or an array claims far more bytes than are stored; the message names the place.
    """
    import h5py

    with h5py.File(path, "r") as file:
        size = Path(path).stat().st_size
        checked: set[tuple[int, int]] = set()
        # The groups from the root to the present one, each with its members still to be checked.
        trail = [(_identity(file), _members(file, path))]
        while trail:
            found = next(trail[-1][1], None)
            if found is None:
                checked.add(trail.pop()[0])
                continue
            place, thing = found
            identity = _identity(thing)
            if identity in (above for above, _ in trail):
                raise DataError(f"{path}: {place} leads back to a group above it; remove the link")
            if identity in checked:
                continue
            if isinstance(thing, h5py.Group):
                trail.append((identity, _members(thing, path)))
            else:
                _check_array(thing, place, path, size)
                checked.add(identity)


def _identity(thing: Any) -> tuple[int, int]:
    import h5py

    info = h5py.h5o.get_info(thing.id)
    return info.fileno, info.addr


def _members(group: Any, path: str | Path) -> Iterator[tuple[str, Any]]:
    """Yield groups and arrays of a group with their places. Links to nothing are passed over."""
    import h5py

    for name in group:
        place = f"{group.name.rstrip('/')}/{name}"
        try:
            link = group.get(name, getlink=True)
            outside = not isinstance(link, h5py.HardLink | h5py.SoftLink)
        except TypeError:  # a kind of link that h5py does not know
            outside = True
        if outside:
            raise DataError(
                f"{path}: {place} is a link to another file, which is not followed; copy the file "
                "with what it links to into one file"
            )
        try:
            thing = group[name]
        except KeyError:
            continue
        except RuntimeError as error:
            raise DataError(f"{path}: the link {place} ends nowhere; remove it") from error
        if isinstance(thing, h5py.Group | h5py.Dataset):
            yield place, thing


def _check_array(array: Any, place: str, path: str | Path, file_bytes: int) -> None:
    if array.external or array.is_virtual:
        raise DataError(
            f"{path}: the data of {place} lie in another file, which is not read; copy them into "
            "this file"
        )
    item = array.id.get_type().get_size()
    claimed = (array.size or 0) * item
    stored = array.id.get_storage_size()
    if stored > file_bytes or claimed > max(_FREE_BYTES, _MOST_PACKED * stored):
        raise DataError(
            f"{path}: {place} claims {claimed:,} bytes, of which {min(stored, file_bytes):,} at "
            "most are in the file; write it again with its data"
        )
    if array.chunks is not None:
        chunk = item
        for length in array.chunks:
            chunk *= int(length)
        if chunk > _MOST_CHUNK_BYTES:
            raise DataError(
                f"{path}: {place} is stored in chunks of {chunk:,} bytes, each of which would be "
                "read whole; write it with smaller chunks"
            )
