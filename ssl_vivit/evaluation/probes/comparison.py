"""Encoders beside what they must beat: their untrained selves and raw pixels, over seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssl_vivit.encoders import ViViT
from ssl_vivit.encoders.adapt import adapt, adapted_config
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.features.extraction import (
    ClipFeatures,
    Describer,
    EncoderFeatures,
    PixelFeatures,
    Summary,
    clip_features,
    untrained,
)
from ssl_vivit.evaluation.features.preparation import (
    ClipChoice,
    Preparation,
    check_whole_frames,
    preparation,
)
from ssl_vivit.evaluation.probes.attentive import AttentiveConfig, TokenPart, attentive_predict
from ssl_vivit.evaluation.probes.data import Part, Parts
from ssl_vivit.evaluation.probes.linear import predict, scores
from ssl_vivit.evaluation.probes.report import LONG, ProbeScores, Row
from ssl_vivit.evaluation.probes.scores import chances
from ssl_vivit.evaluation.probes.uncertainty import resampled_scores, video_weights

PROBES = ("knn", "linear", "attentive")
PIXELS = "raw pixels"


class Subject(NamedTuple):
    """An encoder to be probed.

    Attributes:
        name: what it is called in the table.
        encoder: on the device, in eval mode.
        prepared: the clips that it takes.
    """

    name: str
    encoder: ViViT
    prepared: Preparation


@dataclass(frozen=True)
class Protocol:
    """What is measured.

    Attributes:
        probes: of :data:`PROBES`.
        seeds: repetitions.
        clips: clips of each video; above 1, the middle one alone is shown beside all.
        long_clip: whether one clip with the frames of all is shown too.
        summary: what of an encoder's output is a clip's vector.
        attentive: how attentive probes are trained.
        batch_size: videos that encoders see at once.
    """

    probes: tuple[str, ...] = PROBES
    seeds: int = 3
    clips: int = 1
    long_clip: bool = False
    summary: Summary = "both"
    attentive: AttentiveConfig | None = None
    batch_size: int = 16

    def __post_init__(self) -> None:
        for name in ("seeds", "clips", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}; it must be at least 1")
        if unknown := [name for name in self.probes if name not in PROBES]:
            raise ValueError(f"--probes holds {unknown[0]!r}; choose from {', '.join(PROBES)}")
        if not self.probes:
            raise ValueError(f"--probes is empty; choose from {', '.join(PROBES)}")
        if self.long_clip and self.clips == 1:
            raise ValueError("--long_clip compares with several clips; set --clips to 2 or more")
        if self.attentive is not None:
            self.attentive.check()


def subject(
    name: str, encoder: ViViT, parts: Parts, choice: ClipChoice | None = None, clips: int = 1
) -> Subject:
    """Find out which clips an encoder takes of the videos, and refuse one that they do not fit."""
    prepared = preparation(encoder, parts.train.videos.fps, choice, clips)
    for part in parts:
        check_whole_frames(encoder, part.dataset(prepared), name)
    return Subject(name, encoder, prepared)


def compare(
    subjects: Sequence[Subject],
    parts: Parts,
    protocol: Protocol,
    *,
    device: torch.device,
    scratch: Path,
) -> ProbeScores:
    """Probe encoders, their untrained selves and raw pixels.

    Each seed draws clips (where there is one of a video), videos (where there are more than asked
    for), folds, fits and the weights of the untrained encoders anew.

    Args:
        subjects: encoders; those that take the same clips share a pass over the videos.
        parts: labelled videos.
        protocol: what is measured.
        device: where encoders are.
        scratch: a folder with room for tokens.

    Raises:
        ValueError: where a long clip does not fit the videos or an encoder.
    """
    if protocol.long_clip:
        for each in subjects:
            _check_long_clip(each, parts)
    found = ProbeScores(parts.train.labels.targets)
    groups: dict[Preparation, list[Subject]] = {}
    for each in subjects:
        groups.setdefault(each.prepared, []).append(each)
    sizes: tuple[int, int] = (0, 0)
    for seed in range(protocol.seeds):
        drawn = (parts.train.drawn(seed, "train videos"), parts.test.drawn(seed, "test videos"))
        for prepared, group in groups.items():
            suffix = f" at {_geometry(prepared)}" if len(groups) > 1 else ""
            run = _Pass(parts, protocol, found, seed, drawn, device, scratch)
            sizes = run.measure(prepared, group, suffix)
    found.facts |= {
        "train_videos": sizes[0],
        "test_videos": sizes[1],
        "seeds": protocol.seeds,
        "clips": protocol.clips,
        "summary": protocol.summary,
        "clips_of": {each.name: _geometry(each.prepared) for each in subjects},
    }
    return found


def _check_long_clip(each: Subject, parts: Parts) -> None:
    """Refuse it before anything is measured."""
    prepared = each.prepared.one_long_clip()
    adapted_config(each.encoder.config, {"num_frames": prepared.clip.length})
    for part in parts:
        try:
            part.dataset(prepared, spread=True)
        except DataError as error:
            clips = each.prepared.clip.views
            raise DataError(
                f"--long_clip puts the frames of {clips} clips into one: {error}; or lower --clips"
            ) from None


@dataclass
class _Pass:
    """One seed's pass over the videos for encoders that take the same clips."""

    parts: Parts
    protocol: Protocol
    found: ProbeScores
    seed: int
    drawn: tuple[np.ndarray, np.ndarray]
    device: torch.device
    scratch: Path

    def measure(
        self, prepared: Preparation, group: Sequence[Subject], suffix: str
    ) -> tuple[int, int]:
        """Features, then probes; returns how many videos there were to train and test on."""
        describers: dict[str, Describer] = {
            each.name: EncoderFeatures(each.encoder, self.protocol.summary) for each in group
        }
        baselines = self._untrained([(each.name, each.encoder) for each in group], suffix)
        baselines[PIXELS + suffix] = PixelFeatures()
        train, test = (
            self._features(part, drawn, prepared, {**describers, **baselines}, part.labels, title)
            for part, drawn, title in self._both()
        )
        self.found.add_chance(chances(test.labels, train.labels, self.found.targets))
        n = self.protocol.clips
        views = {"": slice(0, 1)} if n == 1 else {
            "1 clip": slice((n - 1) // 2, (n - 1) // 2 + 1), f"{n} clips": slice(0, n)
        }  # fmt: skip
        for clips, chosen in views.items():
            for name in (*describers, *baselines):
                self._probe(name, clips, name in baselines, train, test, chosen)
        if self.protocol.long_clip:
            self._long(prepared, group, suffix, train, test)
        return len(train.keys), len(test.keys)

    def _long(
        self,
        prepared: Preparation,
        group: Sequence[Subject],
        suffix: str,
        train: ClipFeatures,
        test: ClipFeatures,
    ) -> None:
        """One clip with all frames, labelled as the short ones were."""
        prepared = prepared.one_long_clip()
        encoders = [
            (each.name, adapt(each.encoder, num_frames=prepared.clip.length)) for each in group
        ]
        describers: dict[str, Describer] = {
            name: EncoderFeatures(encoder, self.protocol.summary) for name, encoder in encoders
        }
        baselines = self._untrained(encoders, suffix)
        baselines[PIXELS + suffix] = PixelFeatures()
        long_train, long_test = (
            self._features(
                part,
                drawn[np.isin(np.array(part.videos.keys)[drawn], short.keys)],
                prepared,
                {**describers, **baselines},
                _remembered(short),
                title,
                spread=True,
            )
            for (part, drawn, title), short in zip(self._both(), (train, test), strict=True)
        )
        for name in (*describers, *baselines):
            self._probe(name, LONG, name in baselines, long_train, long_test, slice(0, 1))

    def _untrained(
        self, encoders: Sequence[tuple[str, ViViT]], suffix: str
    ) -> dict[str, Describer]:
        """Fresh weights for each architecture among the encoders."""
        fresh: dict[str, Describer] = {}
        seen: dict[Any, str] = {}
        for name, encoder in encoders:
            seen.setdefault(encoder.config, name)
        for config, name in seen.items():
            encoder = next(e for _, e in encoders if e.config == config)
            title = "untrained" if len(seen) == 1 else f"untrained {name}"
            fresh[title + suffix] = EncoderFeatures(
                untrained(encoder, self.seed), self.protocol.summary
            )
        return fresh

    def _both(self) -> Iterator[tuple[Part, np.ndarray, str]]:
        yield self.parts.train, self.drawn[0], f"seed {self.seed}, training videos"
        yield self.parts.test, self.drawn[1], f"seed {self.seed}, test videos"

    def _features(
        self,
        part: Part,
        drawn: np.ndarray,
        prepared: Preparation,
        describers: Mapping[str, Describer],
        labels: Callable[[dict[str, Any]], dict[str, Tensor]],
        title: str,
        *,
        spread: bool = False,
    ) -> ClipFeatures:
        batches = part.batches(prepared, drawn, spread=spread)
        return clip_features(
            describers,
            batches.once(self.protocol.batch_size, self.device, epoch=self.seed),
            labels,
            videos=len(drawn),
            token_folder=self.scratch if "attentive" in self.protocol.probes else None,
            title=title,
        )

    def _probe(
        self,
        name: str,
        clips: str,
        baseline: bool,
        train: ClipFeatures,
        test: ClipFeatures,
        views: slice,
    ) -> None:
        targets = self.found.targets
        for kind in self.protocol.probes:
            if kind == "attentive":
                predicted = attentive_predict(
                    TokenPart(train.tokens[name], views),
                    train.labels,
                    TokenPart(test.tokens[name], views),
                    targets=targets,
                    config=self.protocol.attentive,
                    seed=self.seed,
                    device=self.device,
                )
            else:
                predicted = predict(
                    train.vectors[name][:, views].mean(1),
                    train.labels,
                    test.vectors[name][:, views].mean(1),
                    "knn" if kind == "knn" else "linear",
                    targets=targets,
                    seed=self.seed,
                )
            told = predicted, test.labels, train.labels, targets
            self.found.add(
                Row(name, clips, kind, baseline),
                scores(*told),
                resampled_scores(*told, video_weights(test.keys)),
            )


def _remembered(short: ClipFeatures) -> Callable[[dict[str, Any]], dict[str, Tensor]]:
    """The labels that videos had in another pass."""
    place = {key: i for i, key in enumerate(short.keys)}

    def labels(batch: dict[str, Any]) -> dict[str, Tensor]:
        index = [place[key] for key in batch["key"]]
        return {name: values[index] for name, values in short.labels.items()}

    return labels


def _geometry(prepared: Preparation) -> str:
    clip, (height, width) = prepared.clip, prepared.size
    rate = "" if clip.fps is None else f" at {clip.fps:g} frames/s"
    return f"{clip.length}×{height}×{width}, stride {clip.frame_stride}{rate}"
