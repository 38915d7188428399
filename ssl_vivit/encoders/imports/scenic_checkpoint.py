"""Read checkpoint files of google-research/scenic (flax's msgpack format) without flax."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import numpy as np

from ssl_vivit.errors import ExportError, MissingError

# Extension types and numeric dtypes of flax.serialization.
_NDARRAY, _SCALAR = 1, 3
_DTYPES = (
    "float16", "float32", "float64", "bfloat16", "bool",
    "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
)  # fmt: skip
_CHUNKED = "__msgpack_chunked_array__"


class _Extension(NamedTuple):
    """An extension object of msgpack, decoded only if it is a parameter."""

    code: int
    data: bytes


def read_scenic_checkpoint(path: str | Path) -> dict[str, np.ndarray]:
    """Read the parameters of a Scenic checkpoint file.

    Both published layouts are supported: ``{optimizer: {target: …}}`` of flax.optim, with or
    without a ``params`` level, and ``{params: …}`` of optax. Nothing in the file is executed.
    Optimiser state and random state are not decoded.

    Args:
        path: the file, named ``checkpoint`` or ``checkpoint_N`` by flax.

    Returns:
        '/'-joined flax names → arrays, bfloat16 as float32. They may be read-only.

    Raises:
        MissingError: if there is no such file.
        ExportError: if the file is truncated or not a checkpoint, or a parameter is not numeric.
    """
    path = Path(path)
    if path.is_dir():
        raise ExportError(f"{path} is a directory; give the checkpoint file in it")
    if not path.is_file():
        raise MissingError(f"{path} does not exist; give a Scenic checkpoint file")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            # Arrays are extensions and all other objects are maps with short keys. The limits keep
            # a damaged length from allocating more memory than the file has bytes.
            tree = msgpack.unpackb(
                data, raw=False, ext_hook=_Extension, max_array_len=1 << 16, max_map_len=1 << 20
            )
    except (ValueError, TypeError, msgpack.UnpackException, RecursionError) as error:
        reason = str(error) or type(error).__name__
        raise ExportError(
            f"{path} is truncated or not a flax msgpack checkpoint ({reason})"
        ) from None
    try:
        tree = _parameters(tree)
        return dict(_leaves(tree, ""))
    except ValueError as error:
        raise ExportError(f"{path}: {error}") from None


def _parameters(tree: Any) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ValueError(f"a Scenic checkpoint must be a map of names, not {type(tree).__name__}")
    found = tree.get("params")
    if found is None and isinstance(tree.get("optimizer"), dict):
        found = tree["optimizer"].get("target")
    if isinstance(found, dict) and isinstance(found.get("params"), dict):
        found = found["params"]
    if not isinstance(found, dict) or not found:
        raise ValueError(
            "the file has neither params nor optimizer/target, but "
            f"{', '.join(map(str, tree)) or 'nothing'}; give a checkpoint of Scenic"
        )
    return found


def _leaves(tree: dict[str, Any], prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the '/'-joined name and the array of each leaf of a nested dict.

    Each leaf is removed from the dict to free its memory.
    """
    for key in list(tree):
        value = tree.pop(key)
        name = f"{prefix}{key}"
        if isinstance(value, dict) and value.get(_CHUNKED) is True:
            yield name, _chunked(value, name)
        elif isinstance(value, dict):
            yield from _leaves(value, f"{name}/")
        else:
            yield name, _array(value, name)


def _array(value: Any, name: str) -> np.ndarray:
    if not isinstance(value, _Extension):
        raise ValueError(f"{name} is a {type(value).__name__}, not an array")
    if value.code not in (_NDARRAY, _SCALAR):
        raise ValueError(f"{name} is msgpack extension {value.code}, not an array")
    try:
        shape, dtype, buffer = msgpack.unpackb(value.data, raw=True, use_list=False)
        dtype = dtype.decode()
        sizes = all(type(size) is int and size >= 0 for size in shape)
    except (ValueError, TypeError, AttributeError, msgpack.UnpackException):
        raise ValueError(f"{name} is a damaged array") from None
    if dtype not in _DTYPES:
        raise ValueError(f"{name} is an array of {dtype[:40]}, not of numbers")
    if not sizes or not isinstance(buffer, bytes):
        raise ValueError(f"{name} is a damaged array")
    try:
        if dtype == "bfloat16":
            # A bfloat16 is the upper half of a float32.
            halves = np.frombuffer(buffer, np.uint16).astype(np.uint32) << 16
            return halves.view(np.float32).reshape(shape)
        return np.frombuffer(buffer, dtype).reshape(shape)
    except ValueError:
        raise ValueError(
            f"{name} is a damaged array: {len(buffer)} bytes for {dtype} of shape {shape}"
        ) from None


def _chunked(value: Mapping[str, Any], name: str) -> np.ndarray:
    """Join an array that flax saved in chunks, since msgpack objects have at most 2³² bytes."""
    try:
        shape = [value["shape"][str(axis)] for axis in range(len(value["shape"]))]
        parts = [value["chunks"][str(index)] for index in range(len(value["chunks"]))]
    except (KeyError, TypeError):
        raise ValueError(f"{name} is a damaged chunked array") from None
    flat = np.concatenate([_array(part, name).reshape(-1) for part in parts] or [np.empty(0)])
    if not all(type(size) is int and size >= 0 for size in shape) or math.prod(shape) != flat.size:
        raise ValueError(f"{name} is a damaged chunked array: {flat.size} numbers for {shape}")
    return flat.reshape(shape)
