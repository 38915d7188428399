"""Settings of the monitors: how often and on how much they measure beside training.

Nothing heavy is imported, so that --help does not wait.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssl_vivit.settings import check_least


@dataclass
class EvaluationConfig:
    """Settings of the evaluation on held-out videos beside training.

    Args:
        every: steps between evaluations; there is one before the first step and one at the end.
        videos: how many held-out videos take part at most.
        batch_size: videos that the encoder sees at once.
    """

    every: int = 1000
    videos: int = 256
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_least(self, "evaluation.", every=1, videos=2, batch_size=1)


@dataclass
class OnlineProbeConfig:
    """Settings of probes beside training, on features that the objective trains, without gradient.

    Args:
        every: steps between probes; 0 turns them off. The videos need CLEVRER's annotations.
        train_videos: training videos that a probe learns from, at most.
        test_videos: held-out videos that it is tested on, at most.
        batch_size: clips that the encoder sees at once.
    """

    every: int = 0
    train_videos: int = 512
    test_videos: int = 256
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_least(self, "probe.", every=0, train_videos=5, test_videos=2, batch_size=1)


@dataclass(frozen=True)
class NeuralEvaluationConfig:
    """Settings of the evaluation beside training, and at its end.

    Args:
        every: steps between evaluations on the validation trials; there is one before the first
            step and one at the end.
        batch_size: trials that the model sees at once.
        keep_best: the run's model is the one that did best on the validation trials, by
            bits per spike (correlation where responses are no counts), instead of the last one.
        fields: neurons whose receptive fields are drawn; 0 leaves the figure out.
    """

    every: int = 500
    batch_size: int = 8
    keep_best: bool = True
    fields: int = 6

    def __post_init__(self) -> None:
        check_least(self, "evaluation.", every=1, batch_size=1, fields=0)
