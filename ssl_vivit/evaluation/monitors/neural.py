"""Monitor of a model of neurons during training: validation scores, and the best model."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

from torch import Tensor

from ssl_vivit.data.sessions.loader import Sessions
from ssl_vivit.evaluation.monitors.config import NeuralEvaluationConfig
from ssl_vivit.evaluation.neurons.best_model import BestModel, best_score
from ssl_vivit.evaluation.neurons.figures import session_curves
from ssl_vivit.evaluation.neurons.scoring import score, score_true_rates
from ssl_vivit.neural.scoring.scores import NeuralScores
from ssl_vivit.objectives.config import TuningConfig
from ssl_vivit.training import Moment, Periodic
from ssl_vivit.training.metrics.tracking import read_metrics
from ssl_vivit.training.processes import Host

# Smallest time between drawings of curves, in multiples of the duration of the last drawing.
# Drawing takes longer than many steps of a small model.
LEAST_WAIT = 20.0


class NeuralEvaluation:
    """Periodic scores on whole validation trials, curves, and storage of the best model.

    Args:
        config: settings of the evaluation.
        sessions: sessions for training and validation.
        tuning: settings with ``patience``, the number of evaluations without improvement after
            which the run ends.
        watch: function called after each evaluation with the state of the run and the score that
            selects the best model. It may end the run by ``moment.end``.

    Raises:
        ValueError: if ``tuning.patience`` is set without ``config.keep_best`` or without validation
            trials.
    """

    def __init__(
        self,
        config: NeuralEvaluationConfig,
        sessions: Sessions,
        tuning: TuningConfig | None = None,
        watch: Callable[[Moment, float], None] | None = None,
    ) -> None:
        self.config, self.sessions, self.watch = config, sessions, watch
        self.tuning = tuning or TuningConfig()
        if self.tuning.patience is not None and not config.keep_best:
            raise ValueError(
                f"tuning.patience {self.tuning.patience} needs the best model, but "
                "evaluation.keep_best is false; set it to true, or omit tuning.patience"
            )
        if self.tuning.patience is not None and sessions.validation is None:
            raise ValueError(
                f"tuning.patience {self.tuning.patience} needs validation trials, but the sessions "
                "have none; raise data.validation_share, or omit tuning.patience"
            )
        self.ceiling: NeuralScores | None = None
        if sessions.validation is not None:
            self.ceiling = score_true_rates(sessions.validation)
        self.best = BestModel(sessions)
        self._host: Host | None = None
        self._draw_again = -math.inf

    def periodic(self) -> list[Periodic]:
        """Return the periodic jobs of the training loop.

        The list holds the evaluation; it is empty if there are no validation trials.
        """
        if self.sessions.validation is None:
            return []
        return [Periodic(self.config.every, self, at_start=True, on_bar=(self.best.criterion,))]

    def __call__(self, moment: Moment) -> dict[str, float]:
        """Score the model, store it if it is the best, and draw curves; return the metrics."""
        assert self.sessions.validation is not None
        self._host = self._host or Host()

        def rates(part: dict[str, Any]) -> Tensor:
            return moment.call("rates", [part])[0]

        scores = score(
            rates, self.sessions.validation, self._host,
            batch_size=self.config.batch_size, device=moment.accelerator.device,
        )  # fmt: skip
        numbers = {f"val/{name}": value for name, value in scores.compute().items()}
        if self.config.keep_best:
            self.best.keep(moment, numbers, self._host)
        if self.tuning.patience is not None:
            self._end_without_progress(moment, self.tuning.patience)
        if self.watch is not None and self.best.criterion in numbers:
            self.watch(moment, numbers[self.best.criterion])
        if moment.accelerator.is_main_process and monotonic() >= self._draw_again:
            # The loop writes the current metrics only after this function returns them.
            self.draw_curves(moment.run_dir, {"step": moment.step, **numbers})
        return numbers

    def _end_without_progress(self, moment: Moment, patience: int) -> None:
        assert self._host is not None
        best = self._host.from_main(lambda: best_score(moment.run_dir))
        # Counted from the stored score, so that a resumed run ends at the step at which an
        # uninterrupted run would end.
        since = max(0 if best is None else best["step"], self.tuning.readout_steps)
        waited = moment.step // self.config.every - since // self.config.every
        if waited >= patience:
            told = (
                "no score was finite"
                if best is None
                else f"the best was {best['score']:.3f} at step {best['step']}"
            )
            times = "evaluation" if waited == 1 else f"{waited} evaluations"
            moment.end(
                f"{self.best.criterion} did not improve in the last {times} (tuning.patience "
                f"{patience}); {told}"
            )

    def draw_curves(self, run_dir: Path, *newest: dict[str, float]) -> None:
        """Draw the run's metrics to ``figures/curves.png``.

        Args:
            run_dir: the run's directory.
            newest: lines of metrics that are not yet in ``metrics.jsonl``.
        """
        begun = monotonic()
        ceiling = {} if self.ceiling is None else self.ceiling.compute()
        names = [fact.name for fact in self.sessions.facts]
        session_curves(
            [*read_metrics(run_dir / "metrics.jsonl"), *newest],
            names,
            run_dir / "figures" / "curves.png",
            ceiling={name: ceiling[f"bps_{name}"] for name in names if f"bps_{name}" in ceiling},
        )
        ended = monotonic()
        self._draw_again = ended + LEAST_WAIT * (ended - begun)
