"""Full supervised fine-tuning of an encoder, scored in the table of the probes."""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ssl_vivit.data.provenance import pretraining_data
from ssl_vivit.data.video.augment import AugmentConfig
from ssl_vivit.data.video.clips import even_starts
from ssl_vivit.data.video.dataset import ClipDataset
from ssl_vivit.data.video.loader import ClipBatches, DataConfig
from ssl_vivit.encoders import VideoClassifier
from ssl_vivit.errors import AnnotationError, DataError
from ssl_vivit.evaluation.features.extraction import half_precision, untrained
from ssl_vivit.evaluation.features.files import fingerprint
from ssl_vivit.evaluation.probes.comparison import Subject
from ssl_vivit.evaluation.probes.config import FinetuneConfig
from ssl_vivit.evaluation.probes.data import Part, Parts
from ssl_vivit.evaluation.probes.labelled_videos import LabelledBatches, Labels
from ssl_vivit.evaluation.probes.report import Row
from ssl_vivit.evaluation.probes.scores import scores
from ssl_vivit.evaluation.probes.uncertainty import resampled_scores, video_weights
from ssl_vivit.evaluation_mode import evaluation_mode
from ssl_vivit.objectives.supervised import Supervised
from ssl_vivit.objectives.targets import NumberScale
from ssl_vivit.training import OptimConfig, TrainingConfig, fit, to_plain


def finetune(
    subject: Subject,
    parts: Parts,
    config: FinetuneConfig,
    *,
    seed: int,
    run_dir: Path,
    batch_size: int,
    fresh: bool = False,
) -> tuple[Row, dict[str, float], dict[str, np.ndarray]] | None:
    """Train a copy of an encoder on the training part and score it on the test part.

    Args:
        subject: one or several encoders; a copy of ``subject.of_seed(seed)`` is trained.
        parts: labelled videos for training and for testing.
        config: settings of fine-tuning.
        seed: seed of the head, the clips and the selection of videos.
        run_dir: directory of the training run; an interrupted run is resumed.
        batch_size: number of test videos in a batch.
        fresh: train the architecture from random weights, with one learning rate for all layers.

    Returns:
        The row of the table of probes, target → score, and target → scores on resampled test
        videos. None if a signal ended the run.

    Raises:
        ValueError: if there are fewer training videos than ``config.total_batch_size``.
        RunError: if ``run_dir`` holds a run with another encoder or other settings.
    """
    train = parts.train.drawn(seed, "train videos")
    if len(train) < config.total_batch_size:
        raise ValueError(
            f"there are {len(train)} training videos, fewer than "
            f"--finetune.total_batch_size {config.total_batch_size}; lower it"
        )
    targets = parts.train.labels.targets
    dataset = _augmented(subject, parts.train, seed)
    train_labels = _middle_labels(dataset, train, parts.train.labels)
    scale = NumberScale.of(train_labels, targets)
    pretrained = subject.of_seed(seed)
    encoder = untrained(pretrained, seed) if fresh else copy.deepcopy(pretrained)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        objective = Supervised(
            encoder.requires_grad_(True),
            targets,
            scale,
            preprocessing=encoder.preprocessing,
            drop_rate=config.drop_rate,
        )
    batches = ClipBatches(dataset, workers=parts.train.config.workers, indices=train)
    training = _training(config, seed, run_dir, fresh)
    result = fit(
        objective,
        LabelledBatches(batches, parts.train.labels),
        training,
        # A run is resumed only if its encoder and videos are unchanged.
        run_config={
            "training": to_plain(training),
            "finetune": to_plain(config),
            "encoder": fingerprint(pretrained),
            "videos": [parts.train.videos.keys[i] for i in train],
            "clip": asdict(dataset.clip),
        },
        card={"data": _record(parts, train, seed)},
    )
    if result.encoder is None:
        return None
    # Score the exported weights, which are not sharded over processes.
    device = next(subject.encoder.parameters()).device
    objective.classifier = VideoClassifier.from_pretrained(result.encoder).to(device)
    predicted, test_labels, keys = _predict(subject, objective, parts.test, seed, batch_size)
    name = f"{subject.name}, trained from scratch" if fresh else subject.name
    clips = f"{subject.prepared.clip.views} clips" if subject.prepared.clip.views > 1 else ""
    row = Row(name, clips, "fine-tuned", baseline=fresh)
    told = predicted, test_labels, train_labels, targets
    return row, scores(*told), resampled_scores(*told, video_weights(keys))


def _record(parts: Parts, train: np.ndarray, seed: int) -> dict[str, Any]:
    """Return a record of the training videos, to be stored in the exported encoder.

    :func:`~ssl_vivit.evaluation.probes.data.not_unseen` uses the record to find training videos
    among test videos.
    """
    config = parts.train.config
    held_out = 0.0 if config.test_shards else config.held_out
    named = DataConfig(shards=config.shards, held_out=held_out)
    return pretraining_data(named, parts.train.videos, train, seed)


def _augmented(subject: Subject, part: Part, seed: int) -> ClipDataset:
    """Return clips at random times with random flips and colours, one clip per video.

    Frames are not cropped, since labels refer to whole frames.
    """
    prepared = subject.prepared
    mild = AugmentConfig(scale=(1.0, 1.0), ratio=(1.0, 1.0), blur_probability=0.0)
    return ClipDataset(
        part.videos,
        replace(prepared.clip, views=1),
        prepared.augment(mild),
        seed,
        labels=part.labels.annotated,
        frame_size=part.config.frame_size,
        short_videos=part.config.short_videos,
    )


def _training(config: FinetuneConfig, seed: int, run_dir: Path, fresh: bool) -> TrainingConfig:
    return TrainingConfig(
        run_dir=str(run_dir),
        steps=config.steps,
        total_batch_size=config.total_batch_size,
        optimizer=OptimConfig(
            learning_rate=config.learning_rate,
            scaling="none",
            layer_decay=1.0 if fresh else config.layer_decay,
            warmup_steps=max(1, config.steps // 10),
        ),
        checkpoint_every=max(100, config.steps // 4),
        keep_checkpoints=1,
        resume="auto",
        tracker="none",
        seed=seed,
    )


def _middle_labels(dataset: ClipDataset, indices: np.ndarray, labels: Labels) -> dict[str, Tensor]:
    """Return labels of the middle clip of each labelled video, without decoding frames."""
    told: list[dict[str, Tensor]] = []
    reason = ""
    for i in indices:
        frames = dataset.clip_frames(int(i), even_starts(int(dataset.start_counts[i]), 1))
        batch = {"key": [dataset.videos.keys[i]], "frames": torch.from_numpy(frames)[None]}
        try:
            told.append(labels(batch))
        except AnnotationError as error:
            reason = reason or str(error)
    if not told:
        raise DataError(f"no training video has labels; the first error: {reason}")
    return _joined(told)


def _predict(
    subject: Subject, objective: Supervised, part: Part, seed: int, batch_size: int
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Return predictions (averaged over clips), labels and names of the test videos."""
    device = next(objective.parameters()).device
    batches = part.batches(subject.prepared, part.drawn(seed, "test videos"))
    found: list[dict[str, Tensor]] = []
    told: list[dict[str, Tensor]] = []
    keys: list[str] = []
    for batch in batches.once(batch_size, device, epoch=seed):
        with evaluation_mode(objective), half_precision(device):
            predicted = objective.predict(batch["clips"])
        found.append({name: value.cpu() for name, value in predicted.items()})
        told.append(part.labels(batch))
        keys += batch["key"]
    if not told:
        raise ValueError("no test video is readable; check the videos")
    return _joined(found), _joined(told), keys


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
