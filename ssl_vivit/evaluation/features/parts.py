"""Files of extracted features, with checksums: an index, and feature files called parts.

A part holds the features of n videos, with clips of T frames and tokens on a grid (t, h, w):

out/
  index.json               settings, skipped videos with reasons, whether the extraction is complete
  features-00000.safetensors
      frames (n, clips, T) int64, pooled (n, d or 2 d) float32, tokens (n, clips, t, h·w, d)
      float16; the videos' names in its metadata

Files of earlier versions have no checksums and are read without verification.
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
    """Contents of one feature file (a part).

    Attributes:
        keys: names of the part's n videos.
        skipped: reason why a video of the part has no features, by name of the video.
        tensors: ``frames``, ``pooled`` and ``tokens`` of the n videos, as far as they are stored
            and read; empty if the part has no videos with features.
    """

    keys: list[str]
    skipped: dict[str, str]
    tensors: dict[str, Tensor]


def part_path(directory: Path, number: int) -> Path:
    """Return the path of a part's file."""
    return directory / f"features-{number:05d}.safetensors"


def write_part(directory: Path, number: int, part: Part) -> None:
    """Write a feature file atomically to the directory of the index.

    Raises:
        RunError: if the file cannot be written.
    """
    path = part_path(directory, number)
    names = {"keys": part.keys, "skipped": part.skipped}
    sums = {name: _tensor_crc32(value) for name, value in sorted(part.tensors.items())}
    # A single metadata entry, because the order of several entries in the file may vary.
    facts = json.dumps({**names, "crc32": {"names": _json_crc32(names), **sums}})
    try:
        with replaced_file(path) as partial:
            save_file(part.tensors, partial, metadata={"part": facts})
            shutil.copymode(directory / INDEX, partial)
    except (OSError, SafetensorError) as error:
        raise RunError(
            f"{path} cannot be written ({error}); fix the cause and run the command again"
        ) from error


def read_part(directory: Path, number: int, wanted: Collection[str] | None = None) -> Part:
    """Read a feature file and verify the checksums of the tensors that are read.

    Args:
        directory: directory of the features.
        number: number of the part.
        wanted: names of tensors to read; None reads all.

    Raises:
        DataError: if the part is missing or damaged.
    """
    path = part_path(directory, number)
    try:
        with safe_open(path, "pt") as file:
            facts = read_json_text(file.metadata()["part"])
            names = {"keys": facts["keys"], "skipped": facts["skipped"]}
            sums = facts.get("crc32", {})
            if sums.pop("names", None) not in (None, _json_crc32(names)):
                raise ValueError("the checksum of the names does not match")
            if wanted is None:
                wanted = sums.keys() or file.keys()
            tensors = {name: file.get_tensor(name) for name in wanted if names["keys"]}
            for name, value in tensors.items():
                if sums.get(name) not in (None, _tensor_crc32(value)):
                    raise ValueError(f"the checksum of {name} does not match")
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} is missing or damaged ({error}); run recipes/extract_features.py again to "
            "recompute it"
        ) from None
    return Part(names["keys"], names["skipped"], tensors)


def write_index(directory: Path, content: dict[str, Any]) -> None:
    """Write ``index.json`` with a checksum."""
    write_json(directory / INDEX, {**content, "crc32": _json_crc32(content)})


def read_index(directory: Path) -> dict[str, Any]:
    """Read ``index.json`` and verify its checksum.

    Raises:
        DataError: if the index is damaged, since the settings of the parts are then unknown.
    """
    fix = "restore a copy of it, or extract the features again into another folder"
    index = read_json(directory / INDEX, fix)
    found = index.pop("crc32", None)
    kinds = {"complete": bool, "parts": int, "features": str, "skipped": dict}
    wrong = [name for name, kind in kinds.items() if type(index.get(name)) is not kind]
    if wrong or found not in (None, _json_crc32(index)):
        raise DataError(f"{directory / INDEX} is damaged (wrong checksum); {fix}")
    return index


def _json_crc32(content: Any) -> int:
    return zlib.crc32(json.dumps(content).encode())


def _tensor_crc32(value: Tensor) -> int:
    described = zlib.crc32(f"{value.dtype} {tuple(value.shape)}".encode())
    return zlib.crc32(value.contiguous().flatten().view(torch.uint8).numpy().data, described)
