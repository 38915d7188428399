"""Probes on CLEVRER's labels during pretraining."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

from torch import Tensor

from ssl_vivit.data.video.dataset import ClipDataset
from ssl_vivit.data.video.loader import ClipBatches, Clips
from ssl_vivit.evaluation.monitors.config import OnlineProbeConfig
from ssl_vivit.evaluation.monitors.over_processes import measure_videos
from ssl_vivit.evaluation.probes.linear import ProbeKind, probe
from ssl_vivit.evaluation.probes.scores import CLEVRER_TARGETS, chances
from ssl_vivit.training import Moment, Periodic

_ON_BAR = ("probe/knn_presence", "probe/linear_presence")
_NAMES = tuple(target.name for target in CLEVRER_TARGETS)


class OnlineProbe:
    """Probes of CLEVRER's labels by nearest neighbours and by ridge regression during pretraining.

    The features are those of one clip of each video, without augmentation. Scores are logged as
    ``probe/knn_TARGET`` and ``probe/linear_TARGET``, and chance levels as ``probe/chance_TARGET``;
    see :func:`ssl_vivit.evaluation.probes.scores.score`. The progress bar shows the scores of the
    target ``presence``.

    Args:
        config: settings of the probes.
        clips: training and held-out videos.

    Raises:
        ValueError: if no videos are held out, or the videos have no annotations.
    """

    def __init__(self, config: OnlineProbeConfig, clips: Clips) -> None:
        self.config = config
        if not config.every:
            return
        if clips.held_out is None:
            raise ValueError(
                "probe.every needs held-out videos; set --data.held_out above 0, or --probe.every 0"
            )
        plain = clips.held_out.dataset
        labelled = ClipDataset(
            plain.videos,
            replace(plain.clip, views=1),
            plain.augment,
            plain.seed,
            labels=True,
            frame_size=plain.frame_size,
            evaluation=True,
            short_videos=plain.short_videos,
        )
        self.train, self.test = (
            ClipBatches(labelled, workers=part.workers, shuffle=False, indices=part.indices[:count])
            for part, count in (
                (clips.train, config.train_videos),
                (clips.held_out, config.test_videos),
            )
        )

    def periodic(self) -> list[Periodic]:
        """Return the periodic jobs of the training loop.

        The list holds the probe; it is empty if the probe is turned off.
        """
        if not self.config.every:
            return []
        return [Periodic(self.config.every, self, at_start=True, on_bar=_ON_BAR)]

    def __call__(self, moment: Moment) -> dict[str, float]:
        """Fit and test the probes on the encoder's features, and return the metrics.

        Must be called on all processes, which share the computation of features.
        """
        train, test = (self._features(part, moment) for part in (self.train, self.test))
        found = {kind: probe(*train, *test, kind=kind) for kind in get_args(ProbeKind)}
        found["chance"] = chances(test[1], train[1], CLEVRER_TARGETS)
        numbers = {
            f"probe/{kind}_{target}": value
            for kind, values in found.items()
            for target, value in values.items()
            if value == value
        }
        if moment.accelerator.is_main_process:
            shown = ", ".join(
                f"{name.removeprefix('probe/linear_')} {value:.3f}"
                for name, value in numbers.items()
                if name.startswith("probe/linear_")
            )
            moment.progress.write(f"step {moment.step}, linear probe: {shown}")
        return numbers

    def _features(self, clips: ClipBatches, moment: Moment) -> tuple[Tensor, dict[str, Tensor]]:
        def measure(batch: dict[str, Any]) -> dict[str, Tensor]:
            labels = {name: batch[name][:, 0] for name in _NAMES}
            return {"features": moment.call("features", batch)[:, 0].float(), **labels}

        _, rows = measure_videos(clips, self.config.batch_size, moment, measure)
        return rows.pop("features"), rows
