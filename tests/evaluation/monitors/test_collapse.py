"""Measures and warnings of collapse, for features with known spread."""

import json
from types import SimpleNamespace

import pytest
import torch

from ssl_vivit.evaluation.monitors import masked
from ssl_vivit.evaluation.monitors.collapse import (
    RANK,
    STD,
    collapse_warning,
    feature_geometry,
    warn_of_collapse,
)
from ssl_vivit.training.processes import Host


def test_even_features_have_std_one_and_full_rank():
    torch.manual_seed(0)
    numbers = feature_geometry(torch.randn(4000, 2, 16))
    assert numbers[STD] == pytest.approx(1.0, abs=0.02)
    assert numbers[RANK] == pytest.approx(16.0, abs=0.1)
    assert numbers["val/uniformity"] < -3
    # Independent views: E|x − y|² = 2 for unit vectors of mean zero.
    assert numbers["val/alignment"] == pytest.approx(2.0, abs=0.05)


def test_the_rank_is_of_what_differs_between_videos():
    features = torch.randn(60, 2, 8, generator=torch.Generator().manual_seed(0)).double()
    features[..., 0] += 5
    unit = torch.nn.functional.normalize(features[:, 0], dim=-1)
    singular = torch.linalg.svdvals(unit - unit.mean(0))
    share = singular / singular.sum()
    expected = (-share * share.log()).sum().exp()
    assert feature_geometry(features)[RANK] == pytest.approx(float(expected))


def test_equal_and_collinear_features_have_different_measures():
    same = feature_geometry(torch.ones(50, 1, 8) + 1e-4 * torch.randn(50, 1, 8))
    assert same[STD] < 1e-3
    assert "val/alignment" not in same
    assert same["val/uniformity"] == pytest.approx(0.0, abs=1e-3)
    line = torch.linspace(-1, 1, 50)[:, None, None] * torch.eye(8)[0] + torch.eye(8)[1]
    along = feature_geometry(line)
    assert along[STD] > 0.1
    assert along[RANK] < 2.0


def test_the_warning_needs_a_fall_from_where_the_run_began(tmp_path):
    low = {STD: 0.01, RANK: 5.0}
    assert collapse_warning(low, tmp_path, 10) is None  # nothing to compare with
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 0, STD: 0.015, RANK: 6.0}) + "\n")
    assert collapse_warning(low, tmp_path, 10) is None
    metrics.write_text(json.dumps({"step": 0, STD: 0.3, RANK: 6.0}) + "\n")
    warning = collapse_warning(low, tmp_path, 10)
    assert "collapse at step 10" in warning
    assert "0.01, 0.3 at the start" in warning
    assert "\n" not in warning
    assert "one direction" in collapse_warning({STD: 0.2, RANK: 1.1}, tmp_path, 10)
    assert collapse_warning({STD: 0.2, RANK: 2.5}, tmp_path, 10) is None


def test_the_watch_is_silent_while_the_learning_rate_rises(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(json.dumps({"step": 0, STD: 0.3, RANK: 6.0}) + "\n")
    for warming_up, lines in ((True, 0), (False, 1)):
        said = []
        moment = SimpleNamespace(
            step=12, run_dir=tmp_path, warming_up=warming_up,
            progress=SimpleNamespace(write=said.append),
            accelerator=SimpleNamespace(is_main_process=True),
        )  # fmt: skip
        warn_of_collapse({STD: 0.01, RANK: 5.0}, moment)
        assert len(said) == lines


def test_masked_features_that_predict_hidden_pixels_have_not_collapsed(tmp_path, monkeypatch):
    """The warning is printed only if the error is above that of the nearest visible tubelets."""
    monkeypatch.setattr(masked, "reconstructions", lambda *args: None)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, STD: 0.3, RANK: 2.0}) + "\n")
    features = torch.ones(3, 1, 4) + 1e-3 * torch.eye(3, 4)[:, None]
    batch = {"clips": torch.zeros(3, 1), "frames": torch.zeros(3, 1), "key": ["a", "b", "c"]}
    for error, lines in ((0.4, 0), (0.6, 1)):
        said = []
        found = {
            "errors": {
                name: torch.full((3,), value)
                for name, value in (
                    ("error", error), ("copy_error", 0.5), ("interpolation_error", 0.3),
                    ("mean_error", 0.2),
                )
            },
            "features": features,
            "reconstruct": torch.zeros(1),
        }  # fmt: skip
        moment = SimpleNamespace(
            step=12, run_dir=tmp_path, warming_up=False,
            progress=SimpleNamespace(write=said.append),
            accelerator=SimpleNamespace(is_main_process=True, device="cpu"), host=Host(),
            call=lambda name, *args, found=found: found[name],
        )  # fmt: skip
        watch = masked.MaskedEvaluation.__new__(masked.MaskedEvaluation)
        watch.config = SimpleNamespace(batch_size=3)
        watch.clips = OneBatch(batch)
        numbers = watch._measured(moment)
        assert numbers["val/error"] == pytest.approx(error)
        assert len(said) == lines


class OneBatch:
    """Three held-out clips in one batch."""

    def __init__(self, batch):
        self.batch = batch

    def __len__(self):
        return 3

    def of_process(self, rank, world_size):
        return self

    def once(self, batch_size, device):
        yield self.batch
