"""Computing, writing and reading features of videos.

:mod:`ssl_vivit.evaluation.features.parts` describes the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ssl_vivit.data.video.dataset import ClipDataset
from ssl_vivit.data.video.loader import ClipBatches
from ssl_vivit.errors import DataError, MissingError, RunError
from ssl_vivit.evaluation.features.config import Kept, Summary
from ssl_vivit.evaluation.features.extraction import EncoderFeatures
from ssl_vivit.evaluation.features.parts import (
    INDEX,
    Part,
    part_path,
    read_index,
    read_part,
    write_index,
    write_part,
)
from ssl_vivit.run_lock import LOCK
from ssl_vivit.training.run_directory import changed_settings

if TYPE_CHECKING:
    from ssl_vivit.encoders import ViViT

FORMAT = 1
# Name of a setting in the index → option of recipes/extract_features.py, for messages.
_OPTIONS = {
    **{name: f"--{name}" for name in ("encoder", "features", "summary", "part_size", "batch_size")},
    **{
        f"prepared.clip.{name}": f"--data.clip.{name}"
        for name in ("num_frames", "frame_stride", "fps")
    },
    "prepared.clip.views": "--clips",
    "frame_size": "--data.frame_size",
    "videos_digest": "hash of the videos' names and lengths",
}


class Features(NamedTuple):
    """Extracted features, in the order of the videos.

    Attributes:
        keys: names of the n videos.
        frames: frame numbers of the clips, int64 (n, clips, T).
        pooled: vectors, averaged over clips, (n, d), or (n, 2 d) with ``--summary both``; None if
            not stored.
        tokens: patch tokens, float16 (n, clips, t, h·w, d); None if not stored.
        skipped: reason why a video has no features, by name of the video.
    """

    keys: list[str]
    frames: Tensor
    pooled: Tensor | None
    tokens: Tensor | None
    skipped: dict[str, str]


def load_features(directory: str | Path, kept: Kept | None = None) -> Features:
    """Read features that ``recipes/extract_features.py`` wrote.

    Args:
        directory: output directory, which the recipe was given as ``--out``.
        kept: "pooled", "tokens" or "both"; None reads all stored features.

    Raises:
        MissingError: if the directory has no index.
        DataError: if the extraction did not finish, if the index is damaged, if a feature file is
            missing or damaged, if no video has features, or if ``kept`` was not extracted.
    """
    directory = Path(directory)
    if not (directory / INDEX).is_file():
        raise MissingError(
            f"{directory} holds no features: {INDEX} is missing; give a folder of features"
        )
    index = read_index(directory)
    if not index["complete"]:
        there = sum(part_path(directory, i).exists() for i in range(index["parts"]))
        raise DataError(
            f"{directory} holds {there} of {index['parts']} feature files; run "
            "recipes/extract_features.py again to finish the extraction"
        )
    wanted = ["frames"]
    wanted += [name for name in ("pooled", "tokens") if _is_kept(name, kept or index["features"])]
    if missing := [name for name in wanted[1:] if not _is_kept(name, index["features"])]:
        raise DataError(
            f"{directory} holds only {index['features']} features, not {missing[0]}; extract "
            f"features by --features {kept} into another folder"
        )
    keys: list[str] = []
    tensors: dict[str, list[Tensor]] = {name: [] for name in wanted}
    for i in range(index["parts"]):
        part = read_part(directory, i, wanted)
        keys += part.keys
        for name, value in part.tensors.items():
            tensors[name].append(value)
    if not keys:
        raise DataError(
            f"{directory} holds features of no video: all {len(index['skipped'])} were skipped; "
            f"see {INDEX} for the reasons"
        )
    joined = {name: torch.cat(parts) for name, parts in tensors.items()}
    return Features(
        keys, joined["frames"], joined.get("pooled"), joined.get("tokens"), index["skipped"]
    )


def _with_option(change: str) -> str:
    """Replace the name of a changed setting by the command-line option that sets it.

    The argument and the result have the form ``NAME (BEFORE → NOW)``. In the result, NAME is the
    option. A setting without an option keeps its name.
    """
    name, _, values = change.partition(" ")
    return f"{_OPTIONS.get(name, name)} {values}"


class FeatureFiles:
    """Output directory of a feature extraction, in which an interrupted extraction is resumed.

    Args:
        directory: the directory.
        settings: all settings on which the features depend, as JSON values.
        parts: number of feature files (parts).

    Raises:
        RunError: if the directory holds other files, or features with other settings.
        DataError: if the index is damaged.
    """

    def __init__(self, directory: Path, settings: dict[str, Any], parts: int) -> None:
        self.directory = directory
        self.index = {"format": FORMAT, **settings, "parts": parts}
        if directory.is_dir() and any(entry.name != LOCK for entry in directory.iterdir()):
            self._check()
        elif directory.exists() and not directory.is_dir():
            raise RunError(f"--out {directory} is a file; choose another --out")

    def _check(self) -> None:
        if not (self.directory / INDEX).is_file():
            raise RunError(f"--out {self.directory} holds other files; choose another folder")
        saved = read_index(self.directory)
        changes = changed_settings({name: saved.get(name) for name in self.index}, self.index)
        if changes:
            raise RunError(
                f"--out {self.directory} holds features with other settings: "
                f"{', '.join(map(_with_option, changes))}; restore "
                "the settings to continue, or choose another folder"
            )

    def begin(self, tell: Callable[[str], None]) -> None:
        """Write the index if it does not exist, and remove damaged feature files.

        :meth:`missing` then lists the removed files.

        Args:
            tell: function called with a message for each damaged file.
        """
        if not (self.directory / INDEX).is_file():
            write_index(self.directory, {**self.index, "complete": False, "skipped": {}})
        missing = self.missing()
        for number in range(self.index["parts"]):
            if number not in missing:
                try:
                    read_part(self.directory, number)
                except DataError as error:
                    tell(str(error))
                    part_path(self.directory, number).unlink()

    def missing(self) -> list[int]:
        """Return the numbers of the feature files that do not exist yet."""
        count = self.index["parts"]
        return [i for i in range(count) if not part_path(self.directory, i).exists()]

    def write(
        self, number: int, keys: list[str], tensors: dict[str, Tensor], skipped: dict[str, str]
    ) -> None:
        """Write one feature file atomically.

        Raises:
            RunError: if the file cannot be written.
        """
        write_part(self.directory, number, Part(keys, skipped, tensors))

    def finish(self, skipped: dict[str, str]) -> dict[str, Any]:
        """Write the index of a finished extraction and return it.

        Args:
            skipped: reason why a video was excluded before any features were computed, by name of
                the video.

        Raises:
            DataError: if a feature file is missing or damaged.
        """
        count = 0
        skipped = dict(skipped)
        for i in range(self.index["parts"]):
            part = read_part(self.directory, i, wanted=())
            count += len(part.keys)
            skipped |= part.skipped
        whole = {**self.index, "complete": True, "videos": count, "skipped": skipped}
        write_index(self.directory, whole)
        return whole


def extract(
    encoder: ViViT,
    batches: Iterable[dict[str, Any]],
    kept: Kept,
    summary: Summary,
    seen: Callable[[int], object],
) -> tuple[list[str], dict[str, Tensor]]:
    """Encode batches of clips and concatenate the features of their videos.

    Args:
        encoder: encoder on the batches' device.
        batches: batches with ``clips`` (b, clips, C, T, H, W), ``key`` and ``frames``.
        kept: "pooled", "tokens" or "both".
        summary: vector of a clip, see :class:`EncoderFeatures`.
        seen: function called with the number of videos of each batch.

    Returns:
        Names of the n videos, and a dictionary of tensors (n, …) with the keys ``frames``,
        ``pooled`` and ``tokens``, as far as they are kept; see :class:`Features`.
    """
    features_of = EncoderFeatures(encoder, summary)
    keys: list[str] = []
    found: dict[str, list[Tensor]] = {}
    for batch in batches:
        views = batch["clips"].shape[1]
        clips = rearrange(batch["clips"], "b v c T H W -> (b v) c T H W")
        vectors, tokens = features_of(clips, tokens=_is_kept("tokens", kept))
        made = {"frames": batch["frames"].cpu()}
        if _is_kept("pooled", kept):
            made["pooled"] = rearrange(vectors.cpu(), "(b v) d -> b v d", v=views).mean(1)
        if tokens is not None:
            half = tokens.to("cpu", torch.float16)
            made["tokens"] = rearrange(half, "(b v) t n d -> b v t n d", v=views)
        for name, value in made.items():
            found.setdefault(name, []).append(value)
        keys += batch["key"]
        seen(len(batch["key"]))
    return keys, {name: torch.cat(parts).contiguous() for name, parts in found.items()}


def write_parts(
    encoder: ViViT,
    dataset: ClipDataset,
    parts: Mapping[int, np.ndarray],
    files: FeatureFiles,
    *,
    kept: Kept,
    summary: Summary,
    batch_size: int,
    workers: int | None,
    broken: Mapping[str, str],
    device: torch.device,
    seen: Callable[[int], object],
) -> None:
    """Compute features of videos and write them to several feature files (parts).

    Args:
        encoder: encoder on ``device``.
        dataset: the videos.
        parts: indices in ``dataset`` of the videos of each feature file, by the file's number.
        files: directory of the features.
        kept: "pooled", "tokens" or "both".
        summary: vector of a clip, see :class:`EncoderFeatures`.
        batch_size: number of videos in a batch.
        workers: number of processes that decode videos.
        broken: error of each video that is already known to be broken, by name of the video.
        device: device of the computation.
        seen: function called with the number of videos of each batch.
    """
    broken = dict(broken)
    for number, indices in parts.items():
        loader = ClipBatches(
            dataset, workers=workers, shuffle=False, indices=indices, broken=broken
        )
        with closing(loader.once(batch_size, device)) as stream:
            keys, tensors = extract(encoder, stream, kept, summary, seen)
        new = {name: why for name, why in loader.broken.items() if name not in broken}
        broken |= new
        files.write(number, keys, tensors, new)


def fingerprint(encoder: ViViT) -> str:
    """Return a hash of an encoder's architecture and weights."""
    digest = hashlib.sha256(json.dumps(encoder.config.to_dict(), sort_keys=True).encode())
    for name, value in sorted(encoder.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _is_kept(name: str, kept: str) -> bool:
    return kept in (name, "both")
