"""Settings of the monitors, which evaluate a model during training.

This module imports no slow modules, to keep --help fast.
"""

from __future__ import annotations

from dataclasses import dataclass

from ssl_vivit.settings import check_least


@dataclass
class EvaluationConfig:
    """Settings of the evaluation on held-out videos during training.

    Args:
        every: optimisation steps between evaluations; the model is also evaluated before the first
            step and at the end of training.
        videos: maximum number of held-out videos.
        batch_size: number of videos in a batch.
    """

    every: int = 1000
    videos: int = 256
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_least(self, "evaluation.", every=1, videos=2, batch_size=1)


@dataclass
class OnlineProbeConfig:
    """Settings of probes during training, on detached features of the objective.

    Args:
        every: optimisation steps between probes; 0 turns probes off. Otherwise the videos need
            CLEVRER's annotations.
        train_videos: maximum number of training videos for fitting a probe.
        test_videos: maximum number of held-out videos for testing a probe.
        batch_size: number of videos in a batch.
    """

    every: int = 0
    train_videos: int = 512
    test_videos: int = 256
    batch_size: int = 16

    def __post_init__(self) -> None:
        check_least(self, "probe.", every=0, train_videos=5, test_videos=2, batch_size=1)


@dataclass(frozen=True)
class NeuralEvaluationConfig:
    """Settings of the evaluation of a model of neurons during training and at its end.

    Args:
        every: optimisation steps between evaluations on the validation trials; the model is also
            evaluated before the first step and at the end of training.
        batch_size: number of trials in a batch.
        keep_best: keep the model with the best score on validation trials instead of the last
            model. The score is bits per spike, or correlation if responses are not spikes.
        fields: number of neurons whose receptive fields are drawn; 0 omits the figure.
    """

    every: int = 500
    batch_size: int = 8
    keep_best: bool = True
    fields: int = 6

    def __post_init__(self) -> None:
        check_least(self, "evaluation.", every=1, batch_size=1, fields=0)
