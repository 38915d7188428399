"""Settings of probes, their videos, and full fine-tuning.

This module must not import encoders, not even for type checkers: jsonargparse would load them
before it prints --help, which takes longer than loading torch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from ssl_vivit.evaluation.features.config import ReadingForEncoder, Summary
from ssl_vivit.settings import check_least

Probe = Literal["knn", "linear", "attentive"]


@dataclass(frozen=True)
class ProbeData(ReadingForEncoder):
    """Labelled videos and how clips are cut from them.

    Args:
        shards: shards with CLEVRER's annotations; see ``python -m data_prep.clevrer pack``.
        test_shards: shards with test videos; null takes a fraction ``held_out`` of ``shards``.
        folder: folder of videos with one subfolder for each class; replaces ``shards``.
        held_out: fraction of the videos used for testing, selected by a hash of their names. With
            the fraction used in pretraining, the test videos are those that were held out in
            pretraining. This is true of shards, and of a folder from which they were packed.
    """

    shards: str | list[str] | None = None
    test_shards: str | list[str] | None = None
    folder: str | None = None
    held_out: float = 0.2


@dataclass
class AttentiveConfig:
    """Settings of the attentive probe's training.

    Args:
        steps: steps of AdamW. The validation loss is measured at the start and 20 times during
            training; each target uses the weights with the smallest loss.
        batch_size: videos per step.
        learning_rate: peak learning rate of AdamW.
        weight_decay: weight decay of AdamW.
        validation: fraction of the training part used for validation; above 0 and below 1.
    """

    steps: int = 500
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    validation: float = 0.2

    def __post_init__(self) -> None:
        check_least(self, "attentive.", steps=1, batch_size=1)
        if not 0 < self.validation < 1:
            raise ValueError(
                f"attentive.validation is {self.validation}; it must be above 0 and below 1"
            )


@dataclass
class ProbeSettings:
    """Settings of a comparison by probes.

    Args:
        probes: list of probes: knn, linear, attentive.
        seeds: number of repetitions, each with different clips, fits and untrained weights.
        clips: number of clips per video, spread over the video. Features of clips are averaged;
            attentive probes see the tokens of all clips. With several clips, the middle clip is
            also scored separately.
        long_clip: also score one long clip from the middle of the video. It has the total number
            of frames of all clips, at their stride. It is labelled like the clips: objects visible
            in any clip, and collisions from the first to the last clip.
        summary: vector of a clip for kNN and linear probes: pooled (the encoder's pooled vector),
            mean (over patch tokens), or both (concatenated).
        attentive: settings of the attentive probe. Tokens of all clips are stored in a temporary
            file in ``run_dir``, with two bytes per number: 2,000 clips of 8 × 96 tokens of width
            384 take 1.2 GB for each encoder.
        batch_size: number of videos in a batch of the encoder.
    """

    probes: list[Probe] = field(default_factory=lambda: ["knn", "linear", "attentive"])
    seeds: int = 3
    clips: int = 1
    long_clip: bool = False
    summary: Summary = "both"
    attentive: AttentiveConfig = field(default_factory=AttentiveConfig)
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_least(self, seeds=1, clips=1, batch_size=1)
        if not self.probes:
            raise ValueError("--probes is empty; choose from knn, linear, attentive")
        if self.long_clip and self.clips == 1:
            raise ValueError("--long_clip is compared with several clips; set --clips to 2 or more")


@dataclass
class FinetuneConfig:
    """Supervised training of all weights on the labels.

    Args:
        steps: optimisation steps; 0 omits fine-tuning.
        total_batch_size: videos per step.
        learning_rate: peak learning rate of AdamW, reached after a tenth of the steps.
        layer_decay: factor on the learning rate per layer below the head.
        drop_rate: dropout before the head.
        from_scratch: also train the architecture from random weights.
    """

    steps: int = 0
    total_batch_size: int = 32
    learning_rate: float = 3e-4
    layer_decay: float = 0.75
    drop_rate: float = 0.1
    from_scratch: bool = False

    def __post_init__(self) -> None:
        check_least(self, "finetune.", steps=0, total_batch_size=1)
