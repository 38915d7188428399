"""Comparison of encoders with untrained copies, raw pixels and motion energy, over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ssl_vivit.encoders import ViViT, ViViTConfig
from ssl_vivit.encoders.adapt import adapt, adapted_config
from ssl_vivit.errors import DataError
from ssl_vivit.evaluation.features.config import ClipChoice
from ssl_vivit.evaluation.features.extraction import (
    ClipFeatures,
    EncoderFeatures,
    FeatureExtractor,
    MotionEnergyFeatures,
    PixelFeatures,
    clip_features,
    untrained,
)
from ssl_vivit.evaluation.features.preparation import (
    Preparation,
    check_whole_frames,
    preparation,
)
from ssl_vivit.evaluation.probes.attentive import attentive_predict
from ssl_vivit.evaluation.probes.config import ProbeSettings
from ssl_vivit.evaluation.probes.data import Parts
from ssl_vivit.evaluation.probes.linear import predict
from ssl_vivit.evaluation.probes.report import LONG, ProbeScores, Row
from ssl_vivit.evaluation.probes.scores import chances, scores
from ssl_vivit.evaluation.probes.uncertainty import resampled_scores, video_weights

PIXELS, MOTION = "raw pixels", "motion energy"


class Subject(NamedTuple):
    """Subject of the comparison: an encoder, or several encoders with different pretraining seeds.

    Attributes:
        name: name in the table.
        encoders: encoders on the device, in eval mode, with equal architecture and clips. Seeds of
            the probes use them in turn.
        prepared: how clips for the encoders are prepared.
    """

    name: str
    encoders: tuple[ViViT, ...]
    prepared: Preparation

    @property
    def encoder(self) -> ViViT:
        """First encoder; the others have the same architecture and clips."""
        return self.encoders[0]

    def of_seed(self, seed: int) -> ViViT:
        """Return the encoder for a seed of the probes; seeds use the encoders in turn."""
        return self.encoders[seed % len(self.encoders)]


def subject(
    name: str,
    encoders: Sequence[ViViT],
    parts: Parts,
    choice: ClipChoice | None = None,
    clips: int = 1,
) -> Subject:
    """Combine encoders with different pretraining seeds into one subject of the comparison.

    Args:
        name: name in the table.
        encoders: encoders with equal architecture and clips.
        parts: labelled videos for training and for testing the probes.
        choice: settings of clips that replace the settings stored with the encoders.
        clips: number of clips per video.

    Raises:
        DataError: if the clips do not fit the videos, or if the encoders differ in architecture or
            clips.
    """
    prepared, *others = (
        preparation(encoder, parts.train.videos.fps, choice, clips) for encoder in encoders
    )
    first = encoders[0].config
    if any(other != prepared for other in others) or any(e.config != first for e in encoders):
        raise DataError(
            f"--encoders {name} matches encoders of several architectures or clips; give one "
            "pattern for each kind"
        )
    for part in parts:
        check_whole_frames(encoders[0], part.dataset(prepared), name)
    return Subject(name, tuple(encoders), prepared)


def compare(
    subjects: Sequence[Subject],
    parts: Parts,
    settings: ProbeSettings,
    *,
    device: torch.device,
    scratch: Path,
) -> ProbeScores:
    """Probe encoders and compare them with baselines.

    The baselines are untrained copies of the encoders, raw pixels and motion energy. All rows are
    measured once for each seed. The seed determines the folds, the fits of the probes and the
    weights of the untrained encoders. With one clip per video, the seed also determines the clip's
    position. If there are more videos than required, the seed selects them. If a subject has
    several encoders, each seed uses the next one.

    Args:
        subjects: encoders to probe. Encoders with equal clips share one pass over the videos.
        parts: labelled videos for training and for testing the probes.
        settings: settings of the comparison.
        device: device of the encoders.
        scratch: folder for temporary files. It needs space for the tokens of all clips.

    Returns:
        Scores of every encoder and baseline.

    Raises:
        ValueError: if ``settings.long_clip`` asks for clips that do not fit the videos or an
            encoder.
    """
    if settings.long_clip:
        for each in subjects:
            _check_long_clip(each, parts)
    found = ProbeScores(parts.train.labels.targets)
    groups: dict[Preparation, list[Subject]] = {}
    for each in subjects:
        groups.setdefault(each.prepared, []).append(each)
    sizes: tuple[int, ...] = ()
    for seed in range(settings.seeds):
        for prepared, members in groups.items():
            encoders = {each.name: each.of_seed(seed) for each in members}
            suffix = f" at {_geometry(prepared)}" if len(groups) > 1 else ""
            run = _Pass(parts, settings, found, seed, suffix, device, scratch)
            sizes = run.measure(prepared, encoders)
    found.facts |= {
        "train_videos": sizes[0],
        "test_videos": sizes[1],
        "seeds": settings.seeds,
        "clips": settings.clips,
        "summary": settings.summary,
        "encoders_of": {each.name: len(each.encoders) for each in subjects},
        "clips_of": {each.name: _geometry(each.prepared) for each in subjects},
    }
    return found


def _check_long_clip(each: Subject, parts: Parts) -> None:
    """Raise an error if the long clip does not fit an encoder or the videos."""
    prepared = each.prepared.one_long_clip()
    adapted_config(each.encoder.config, {"num_frames": prepared.clip.length})
    for part in parts:
        try:
            part.dataset(prepared, spread=True)
        except DataError as error:
            clips = each.prepared.clip.views
            raise DataError(
                f"--long_clip joins the frames of {clips} clips: {error}; or lower --clips"
            ) from None


@dataclass
class _Pass:
    """Computation of features and probe scores for one seed and for encoders with equal clips."""

    parts: Parts
    settings: ProbeSettings
    found: ProbeScores
    seed: int
    suffix: str
    device: torch.device
    scratch: Path

    def measure(self, prepared: Preparation, encoders: Mapping[str, ViViT]) -> tuple[int, ...]:
        """Compute features, fit and score probes; return numbers of training and test videos."""
        drawn = [
            part.drawn(self.seed, name)
            for part, name in zip(self.parts, ("train videos", "test videos"), strict=True)
        ]
        train, test = self._features(
            prepared, encoders, drawn, [part.labels for part in self.parts]
        )
        self.found.add_chance(chances(test.labels, train.labels, self.found.targets))
        n = self.settings.clips
        views = {"": slice(0, 1)} if n == 1 else {
            "1 clip": slice((n - 1) // 2, (n - 1) // 2 + 1), f"{n} clips": slice(0, n)
        }  # fmt: skip
        for clips, chosen in views.items():
            self._probe(clips, encoders, train, test, chosen)
        if self.settings.long_clip:
            # One long clip of each video, with the labels of its short clips.
            prepared = prepared.one_long_clip()
            frames = prepared.clip.length
            longer = {name: adapt(each, num_frames=frames) for name, each in encoders.items()}
            same = [
                videos[np.isin(np.array(part.videos.keys)[videos], short.keys)]
                for part, videos, short in zip(self.parts, drawn, (train, test), strict=True)
            ]
            labels = [_labels_of_short_clips(train), _labels_of_short_clips(test)]
            train, test = self._features(prepared, longer, same, labels, spread=True)
            self._probe(LONG, encoders, train, test, slice(0, 1))
        return len(train.keys), len(test.keys)

    def _extractors(self, encoders: Mapping[str, ViViT]) -> dict[str, FeatureExtractor]:
        """Return name → feature extractor for the encoders and the baselines.

        Baselines are an untrained copy of each architecture, raw pixels and motion energy.
        """
        architectures: dict[ViViTConfig, str] = {}
        for name, encoder in encoders.items():
            architectures.setdefault(encoder.config, name)
        known = dict(encoders)
        for name in architectures.values():
            title = "untrained" if len(architectures) == 1 else f"untrained {name}"
            known[title + self.suffix] = untrained(encoders[name], self.seed)
        extractors: dict[str, FeatureExtractor] = {
            name: EncoderFeatures(encoder, self.settings.summary) for name, encoder in known.items()
        }
        return {
            **extractors,
            PIXELS + self.suffix: PixelFeatures(),
            MOTION + self.suffix: MotionEnergyFeatures(),
        }

    def _features(
        self,
        prepared: Preparation,
        encoders: Mapping[str, ViViT],
        drawn: Sequence[np.ndarray],
        labels: Sequence[Callable[[dict[str, Any]], dict[str, Tensor]]],
        *,
        spread: bool = False,
    ) -> list[ClipFeatures]:
        """Compute the features of the selected training videos and of the selected test videos."""
        extractors = self._extractors(encoders)
        titles = ("training videos", "test videos")
        return [
            clip_features(
                extractors,
                part.batches(prepared, videos, spread=spread).once(
                    self.settings.batch_size, self.device, epoch=self.seed
                ),
                told,
                videos=len(videos),
                token_folder=self.scratch if "attentive" in self.settings.probes else None,
                title=f"seed {self.seed}, {title}",
            )
            for part, videos, told, title in zip(self.parts, drawn, labels, titles, strict=True)
        ]

    def _probe(
        self,
        clips: str,
        encoders: Mapping[str, ViViT],
        train: ClipFeatures,
        test: ClipFeatures,
        views: slice,
    ) -> None:
        """Fit and score all probes on all features of the clips that ``views`` selects."""
        targets = self.found.targets
        weights = video_weights(test.keys)
        fits = tqdm(
            list(itertools.product(train.vectors, self.settings.probes)), unit="fit", leave=False,
            desc=f"seed {self.seed}, fitting probes on {clips}", dynamic_ncols=True,
        )  # fmt: skip
        for name, kind in fits:
            if kind == "attentive":
                predicted = attentive_predict(
                    train.tokens[name],
                    train.labels,
                    test.tokens[name],
                    views,
                    targets=targets,
                    config=self.settings.attentive,
                    seed=self.seed,
                    device=self.device,
                )
            else:
                predicted = predict(
                    train.vectors[name][:, views].mean(1),
                    train.labels,
                    test.vectors[name][:, views].mean(1),
                    kind,
                    targets=targets,
                    seed=self.seed,
                )
            told = predicted, test.labels, train.labels, targets
            row = Row(name, clips, kind, baseline=name not in encoders)
            self.found.add(row, scores(*told), resampled_scores(*told, weights))


def _labels_of_short_clips(short: ClipFeatures) -> Callable[[dict[str, Any]], dict[str, Tensor]]:
    """Return a function that gives long clips the labels of the short clips of the same videos.

    The function takes a batch of long clips and returns target → labels.
    """
    place = {key: i for i, key in enumerate(short.keys)}

    def labels(batch: dict[str, Any]) -> dict[str, Tensor]:
        index = [place[key] for key in batch["key"]]
        return {name: values[index] for name, values in short.labels.items()}

    return labels


def _geometry(prepared: Preparation) -> str:
    clip, (height, width) = prepared.clip, prepared.size
    rate = "" if clip.fps is None else f" at {clip.fps:g} frames/s"
    return f"{clip.length}×{height}×{width}, stride {clip.frame_stride}{rate}"
