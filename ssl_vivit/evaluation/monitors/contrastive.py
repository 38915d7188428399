"""Monitor of contrastive pretraining: retrieval, figures, and the summary at its end."""

from __future__ import annotations

from pathlib import Path

from ssl_vivit.data.video.loader import ClipBatches, Clips
from ssl_vivit.evaluation.monitors.collapse import feature_geometry, warn_of_collapse
from ssl_vivit.evaluation.monitors.config import EvaluationConfig
from ssl_vivit.evaluation.monitors.over_processes import measure_videos
from ssl_vivit.evaluation.monitors.pretraining_figures import (
    learning_curves,
    nearest_neighbours,
    view_pairs,
)
from ssl_vivit.evaluation.monitors.retrieval import ViewFeatures, chance, retrieval_top1, view_rows
from ssl_vivit.evaluation.run_summary import first_and_last, run_summary
from ssl_vivit.training import Moment, Periodic
from ssl_vivit.training.metrics.tracking import read_metrics

RETRIEVAL = "val/retrieval_top1"
CHANCE = "val/retrieval_chance"
_SHOWN = 6


class ContrastiveEvaluation:
    """Retrieval of the positive view on held-out videos, and the figures of a run.

    Retrieval uses augmented views, drawn as in training and equal in all evaluations. The figure of
    nearest neighbours uses clips without augmentation.

    Args:
        config: settings of the evaluation.
        clips: training and held-out videos.
    """

    def __init__(self, config: EvaluationConfig, clips: Clips) -> None:
        self.config, self.clips = config, clips
        dataset, workers = clips.train.dataset, clips.train.workers
        self.mean, self.std = dataset.augment.mean, dataset.augment.std
        few = clips.train.indices[:_SHOWN]
        self.shown = ClipBatches(dataset, workers=0, shuffle=False, indices=few)
        self.augmented = self.plain = None
        if clips.held_out is not None and len(clips.held_out) > 1:
            chosen = clips.held_out.indices[: config.videos]
            self.augmented = ClipBatches(dataset, workers=workers, shuffle=False, indices=chosen)
            self.plain = ClipBatches(
                clips.held_out.dataset, workers=workers, shuffle=False, indices=chosen
            )

    def periodic(self) -> Periodic:
        """Return the evaluation as a periodic job of the training loop."""
        return Periodic(self.config.every, self, at_start=True)

    def __call__(self, moment: Moment) -> dict[str, float]:
        """Evaluate the model, draw the figures and return the metrics.

        Must be called on all processes, which share the videos. The main process draws.
        """
        drawing = moment.accelerator.is_main_process
        figures = moment.run_dir / "figures"
        if moment.step == 0 and drawing:
            batch = next(self.shown.once(_SHOWN, "cpu"))
            path = figures / "augmented_views.png"
            view_pairs(batch["clips"], batch["key"], batch["frames"], self.mean, self.std, path)
        numbers = {}
        if self.augmented is not None and self.plain is not None:
            found = self._collect(self.augmented, moment)
            numbers = {
                RETRIEVAL: retrieval_top1(found.features),
                CHANCE: chance(*found.features.shape[:2]),
                **feature_geometry(found.features),
            }
            warn_of_collapse(numbers, moment)
            plain = self._collect(self.plain, moment)
            if drawing:
                path = figures / f"nearest_neighbours_step_{moment.step:08d}.png"
                nearest_neighbours(plain, self.mean, self.std, path)
        if drawing:
            # The loop writes the current metrics only after this function returns them.
            logged = read_metrics(moment.run_dir / "metrics.jsonl")
            learning_curves([*logged, {"step": moment.step, **numbers}], figures / "curves.png")
        return numbers

    def _collect(self, clips: ClipBatches, moment: Moment) -> ViewFeatures:
        keys, rows = measure_videos(
            clips,
            self.config.batch_size,
            moment,
            lambda batch: view_rows(moment.call("features", batch), batch),
        )
        return ViewFeatures(rows["features"], keys, rows["middle_frames"], rows["frame_numbers"])

    def summary(self, run_dir: Path) -> str:
        """Return the run's summary, with retrieval before and after training."""
        measured = {}
        retrieval = first_and_last(run_dir, RETRIEVAL)
        if retrieval is not None and self.augmented is not None:
            by_chance = chance(len(self.augmented), self.augmented.dataset.clip.views)
            measured["retrieval top-1 of the positive view"] = (
                f"{retrieval[0]:.3f} untrained, {retrieval[1]:.3f} trained "
                f"({by_chance:.3f} by chance, {len(self.augmented)} held-out videos)"
            )
        return run_summary(run_dir, measured)
