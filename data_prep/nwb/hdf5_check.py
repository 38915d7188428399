"""Check an HDF5 file without reading its data, before anything else reads it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ssl_vivit.errors import DataError

# Largest allowed ratio of an array's size to its stored bytes. Deflate reaches at most 1032.
_MOST_PACKED = 2000
_FREE_BYTES = 2**26
# Largest allowed chunk: HDF5 always unpacks a whole chunk.
_MOST_CHUNK_BYTES = 2**30


def check_hdf5(path: str | Path) -> None:
    """Raise an error if a file refers to other files, has cyclic links or states too large arrays.

    Args:
        path: an HDF5 file.

    Raises:
        DataError: if a link or an array's data point to another file, a link leads to one of its
            parent groups, or an array's stated size is far above its stored bytes. The message
            names the object.
    """
    import h5py

    with h5py.File(path, "r") as file:
        size = Path(path).stat().st_size
        checked: set[tuple[int, int]] = set()
        # The groups from the root to the current one, each with its unchecked members.
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
    """Yield the paths and objects of all groups and arrays in a group."""
    import h5py

    for name in group:
        place = f"{group.name.rstrip('/')}/{name}"
        try:
            link = group.get(name, getlink=True)
            outside = not isinstance(link, h5py.HardLink | h5py.SoftLink)
        except TypeError:  # a kind of link that h5py does not support
            outside = True
        if outside:
            raise DataError(
                f"{path}: {place} is a link to another file, which is not followed; copy the file "
                "and its linked data into one file"
            )
        try:
            thing = group[name]
        except KeyError:
            continue
        except RuntimeError as error:
            raise DataError(
                f"{path}: the target of the link {place} does not exist; remove the link"
            ) from error
        if isinstance(thing, h5py.Group | h5py.Dataset):
            yield place, thing


def _check_array(array: Any, place: str, path: str | Path, file_bytes: int) -> None:
    if array.external or array.is_virtual:
        raise DataError(
            f"{path}: the data of {place} are in another file, which is not read; copy the data "
            "into this file"
        )
    item = array.id.get_type().get_size()
    claimed = (array.size or 0) * item
    stored = array.id.get_storage_size()
    if stored > file_bytes or claimed > max(_FREE_BYTES, _MOST_PACKED * stored):
        raise DataError(
            f"{path}: {place} states a size of {claimed:,} bytes, but the file contains at most "
            f"{min(stored, file_bytes):,}; write the array again"
        )
    if array.chunks is not None:
        chunk = item
        for length in array.chunks:
            chunk *= int(length)
        if chunk > _MOST_CHUNK_BYTES:
            raise DataError(
                f"{path}: {place} is stored in chunks of {chunk:,} bytes, which are too large to "
                "read; write the array with smaller chunks"
            )
