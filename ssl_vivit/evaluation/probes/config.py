"""Settings of probes: which ones, on which videos, and how they and full fine-tuning are trained.

No encoder is imported here, not even for type checkers: jsonargparse would import it before it
prints --help, and encoders take longer to load than torch.
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
        test_shards: others to test on; null tests on ``held_out`` of the former.
        folder: in place of shards, a folder of videos with a folder for each class.
        held_out: share of the videos to test on, chosen by their names. The same share as in
            pretraining chooses the same videos.
    """

    shards: str | list[str] | None = None
    test_shards: str | list[str] | None = None
    folder: str | None = None
    held_out: float = 0.2


@dataclass
class AttentiveConfig:
    """Settings of the attentive probe's training.

    Args:
        steps: steps of AdamW. At the start and at twenty moments the loss on the validation part is
            measured; each target takes the weights with the least.
        batch_size: clips in a step.
        learning_rate: of AdamW, at its peak.
        weight_decay: of AdamW.
        validation: share of the training part that chooses the moment.
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
                f"attentive.validation is {self.validation}; it must be between 0 and 1"
            )


@dataclass
class ProbeSettings:
    """Settings of a comparison by probes.

    Args:
        probes: knn, linear, attentive; any of them.
        seeds: repetitions with other clips, fits and untrained weights.
        clips: clips of each video; features are averaged, attentive probes see the tokens of all.
            Above 1, the middle one alone is shown beside all.
        long_clip: beside several clips, which are spread over the whole video, show one clip of as
            many frames as all of them, in a row at the same stride from the middle of the video.
            Its labels are those of the several: what any of them shows, and the collisions from
            the first to the last.
        summary: a clip's vector for kNN and linear probes: the encoder's pooled one, the mean of
            its patch tokens, or both side by side.
        attentive: the attentive probe. Meanwhile the tokens of all clips lie in a file without a
            name in ``run_dir``, two bytes a number, not in memory: 2,000 clips of 8 × 96 tokens of
            width 384 take 1.2 GB for each encoder.
        batch_size: videos that an encoder sees at once.
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
            raise ValueError("--long_clip compares with several clips; set --clips to 2 or more")


@dataclass
class FinetuneConfig:
    """Supervised training of all weights on the labels.

    Args:
        steps: optimisation steps; 0 leaves it out.
        total_batch_size: videos in a step.
        learning_rate: of AdamW at its peak, which it reaches after a tenth of the steps.
        layer_decay: factor on the learning rate per layer below the head.
        drop_rate: dropout before the head.
        from_scratch: also train the same architecture from fresh weights.
    """

    steps: int = 0
    total_batch_size: int = 32
    learning_rate: float = 3e-4
    layer_decay: float = 0.75
    drop_rate: float = 0.1
    from_scratch: bool = False

    def __post_init__(self) -> None:
        check_least(self, "finetune.", steps=0, total_batch_size=1)
