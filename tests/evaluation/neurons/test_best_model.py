"""The best model of a run among its evaluations."""

from types import SimpleNamespace

import pytest

from ssl_vivit.evaluation.neurons.best_model import BestModel, best_score


@pytest.mark.parametrize(
    ("kinds", "criterion"),
    [
        (["spikes", "spikes"], "val/bps_mean"),
        (["spikes", "calcium"], "val/correlation_mean"),
    ],
)
def test_the_first_of_the_highest_scores_is_kept(tmp_path, kinds, criterion):
    best = BestModel(SimpleNamespace(facts=[SimpleNamespace(kind=kind) for kind in kinds]))
    host = SimpleNamespace(is_main=True, from_main=lambda work: work())
    exported = []

    def evaluate(step, numbers):
        export = lambda path: exported.append((step, path))  # noqa: E731
        best.keep(SimpleNamespace(step=step, run_dir=tmp_path, export=export), numbers, host)

    for step, score in ((0, 9.0), (2, 0.1), (4, 0.3), (6, 0.3), (8, 0.2), (10, 0.4)):
        evaluate(step, {criterion: score, "val/oracle_mean": -score})
    evaluate(12, {"val/oracle_mean": 9.0})
    assert exported == [(step, tmp_path / "best" / "model") for step in (2, 4, 10)]
    assert best_score(tmp_path) == {"step": 10, "name": criterion, "score": 0.4}
