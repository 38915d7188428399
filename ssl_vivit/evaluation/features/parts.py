"""The files of extracted features, each with checksums of what it holds: an index and parts.

out/
  index.json               settings, what was skipped and why, whether all parts are there
  features-00000.safetensors
      frames (n, clips, T) int64, pooled (n, d or 2 d) float32, tokens (n, clips, t, h·w, d) float16;
      the videos' names in its metadata

Files of earlier versions have no checksums and are read without.
"""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ssl_vivit.errors import DataError, RunError
from ssl_vivit.files import read_json, replaced_file, write_json
from ssl_vivit.nested_text import read_json_text

INDEX = "index.json"


class Part(NamedTuple):
    """Contents of a part.

    Attributes:
        keys: names of its n videos.
        skipped: name → why a video of it has no features.
        tensors: name → (n, …); none where there is no video.
    """

    keys: list[str]
    skipped: dict[str, str]
    tensors: dict[str, Tensor]


def part_path(directory: Path, number: int) -> Path:
    """The file of a part."""
    return directory / f"features-{number:05d}.safetensors"


def write_part(directory: Path, number: int, part: Part) -> None:
    """Write a part beside the index; it appears whole.

    Raises:
        RunError: if the disk does not take it.
    """
    path = part_path(directory, number)
    names = {"keys": part.keys, "skipped": part.skipped}
    sums = {name: _tensor_crc32(value) for name, value in sorted(part.tensors.items())}
    # One entry alone: the order of several in the file is not the same every time.
    facts = json.dumps({**names, "crc32": {"names": _json_crc32(names), **sums}})
    try:
        with replaced_file(path) as partial:
            save_file(part.tensors, partial, metadata={"part": facts})
            shutil.copymode(directory / INDEX, partial)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} cannot be written ({error}); fix that and run the same command again"
        ) from error


def read_part(directory: Path, number: int, wanted: Collection[str] | None = None) -> Part:
    """Read a part and compare what is read with its checksums.

    Args:
        directory: of the features.
        number: of the part.
        wanted: names of tensors; None reads all.

    Raises:
        DataError: if it is missing or damaged.
    """
    path = part_path(directory, number)
    try:
        with safe_open(path, "pt") as file:
            facts = read_json_text(file.metadata()["part"])
            names = {"keys": facts["keys"], "skipped": facts["skipped"]}
            sums = facts.get("crc32", {})
            if sums.pop("names", None) not in (None, _json_crc32(names)):
                raise ValueError("checksum of the names")
            if wanted is None:
                wanted = sums.keys() or file.keys()
            tensors = {name: file.get_tensor(name) for name in wanted if names["keys"]}
            for name, value in tensors.items():
                if sums.get(name) not in (None, _tensor_crc32(value)):
                    raise ValueError(f"checksum of {name}")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is missing or damaged ({error}); the same command makes it anew"
        ) from None
    return Part(names["keys"], names["skipped"], tensors)


def write_index(directory: Path, content: dict[str, Any]) -> None:
    """Write the index."""
    write_json(directory / INDEX, {**content, "crc32": _json_crc32(content)})


def read_index(directory: Path) -> dict[str, Any]:
    """Read the index and compare it with its checksum.

    Raises:
        DataError: if it is damaged, which leaves open what the parts depend on.
    """
    mend = "put a copy of it back, or extract the features anew into another folder"
    index = read_json(directory / INDEX, mend)
    found = index.pop("crc32", None)
    kinds = {"complete": bool, "parts": int, "features": str, "skipped": dict}
    wrong = [name for name, kind in kinds.items() if type(index.get(name)) is not kind]
    if wrong or found not in (None, _json_crc32(index)):
        raise DataError(f"{directory / INDEX} is damaged (checksum); {mend}")
    return index


def _json_crc32(content: Any) -> int:
    return zlib.crc32(json.dumps(content).encode())


def _tensor_crc32(value: Tensor) -> int:
    described = zlib.crc32(f"{value.dtype} {tuple(value.shape)}".encode())
    return zlib.crc32(value.contiguous().flatten().view(torch.uint8).numpy().data, described)
