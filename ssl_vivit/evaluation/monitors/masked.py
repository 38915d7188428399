"""Monitor of masked pretraining: errors on hidden tubelets of held-out videos, figures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ssl_vivit.data.video.loader import ClipBatches, Clips
from ssl_vivit.evaluation.monitors.collapse import feature_geometry, warn_of_collapse
from ssl_vivit.evaluation.monitors.config import EvaluationConfig
from ssl_vivit.evaluation.monitors.pretraining_figures import learning_curves, reconstructions
from ssl_vivit.evaluation.run_summary import first_and_last, run_summary
from ssl_vivit.training import Moment, Periodic
from ssl_vivit.training.tracking import read_metrics

ERROR, COPY_ERROR, MEAN_ERROR = "val/error", "val/copy_error", "val/mean_error"
INTERPOLATION_ERROR = "val/interpolation_error"
_SHOWN = 4


class MaskedEvaluation:
    """Error on hidden tubelets of held-out videos, always with the same masks, and figures.

    ``val/copy_error`` is that of the nearest visible tubelet in their place,
    ``val/interpolation_error`` that of a mean of the nearest visible tubelets, and
    ``val/mean_error`` that of each hidden tubelet's own mean colour, an oracle.

    Args:
        config: how often and how much.
        clips: training and held-out videos; without held-out ones only curves are drawn.
    """

    def __init__(self, config: EvaluationConfig, clips: Clips) -> None:
        self.config = config
        self.clips = None
        if clips.held_out is not None:
            chosen = clips.held_out.indices[: config.videos]
            self.clips = ClipBatches(
                clips.held_out.dataset, workers=clips.train.workers, shuffle=False, indices=chosen
            )

    def periodic(self) -> Periodic:
        """The evaluation as a job of the training loop."""
        return Periodic(self.config.every, self, at_start=True)

    def __call__(self, moment: Moment) -> dict[str, float]:
        """Measure and draw; every process measures, the main one draws."""
        numbers = {} if self.clips is None else self._measured(moment)
        if moment.accelerator.is_main_process:
            logged = read_metrics(moment.run_dir / "metrics.jsonl")
            path = moment.run_dir / "figures" / "curves.png"
            learning_curves([*logged, {"step": moment.step, **numbers}], path)
        return numbers

    def _measured(self, moment: Moment) -> dict[str, float]:
        assert self.clips is not None
        names = (ERROR, COPY_ERROR, INTERPOLATION_ERROR, MEAN_ERROR)
        errors: dict[str, list[Tensor]] = {name: [] for name in names}
        features = []
        device = moment.accelerator.device
        for seed, batch in enumerate(self.clips.once(self.config.batch_size, device)):
            found = moment.call("errors", batch, seed)
            for name, values in errors.items():
                values.append(found[name.removeprefix("val/")].cpu())
            features.append(moment.call("features", batch).float().cpu())
            if seed == 0:
                few = batch["clips"][:_SHOWN, 0]
                with torch.random.fork_rng(devices=[]):
                    torch.manual_seed(0)
                    shown = moment.call("reconstruct", few)
                if moment.accelerator.is_main_process:
                    name = f"reconstructions_step_{moment.step:08d}.png"
                    path = moment.run_dir / "figures" / name
                    numbers = batch["frames"][:_SHOWN, 0]
                    reconstructions(shown.cpu(), batch["key"][:_SHOWN], numbers, path)
        geometry = feature_geometry(torch.cat(features)) if len(self.clips) > 1 else {}
        means = {name: torch.cat(values).mean().item() for name, values in errors.items()}
        # Class tokens of Model 2 lie close together for the first hundreds of steps, while the
        # tokens already predict hidden pixels: that is no collapse.
        if geometry and means[ERROR] > means[COPY_ERROR]:
            warn_of_collapse(geometry, moment)
        return means | geometry

    def summary(self, run_dir: Path) -> str:
        """A table of what the run made."""
        measured = {}
        names = (ERROR, COPY_ERROR, INTERPOLATION_ERROR, MEAN_ERROR)
        error, copied, between, mean = (first_and_last(run_dir, name) for name in names)
        if error and copied and between and mean and self.clips is not None:
            measured["error on hidden tubelets"] = (
                f"{error[0]:.3g} untrained, {error[1]:.3g} trained ({copied[1]:.3g} with the "
                f"nearest visible tubelet in their place, {between[1]:.3g} with a mean of the "
                f"nearest visible tubelets, {mean[1]:.3g} with their own mean colour, an oracle; "
                f"{len(self.clips)} held-out videos)"
            )
        return run_summary(run_dir, measured)
