"""The monitor of masked pretraining, compared with the objective's numbers batch by batch."""

from types import SimpleNamespace

import pytest
import torch

from ssl_vivit import create_encoder
from ssl_vivit.evaluation.monitors import masked
from ssl_vivit.objectives import MaskedTubelets
from ssl_vivit.training.processes import Host


def test_errors_are_means_over_masks_of_their_own_for_each_clip(tmp_path, monkeypatch):
    monkeypatch.setattr(masked, "reconstructions", lambda *args: None)
    torch.manual_seed(0)
    encoder = create_encoder(
        "tiny", variant="joint", depth=1, num_frames=2, image_size=(32, 32), tubelet_size=(2, 8, 8)
    )
    objective = MaskedTubelets(encoder, mask="random", decoder_depth=1).eval()
    clips = torch.randn(2, 1, 3, 2, 32, 32)
    batches = [
        {
            "clips": clips, "frames": torch.zeros(2, 1, 2), "key": [f"a{i}", f"b{i}"],
            "draw": [(0, 0, f"a{i}"), (0, 0, f"b{i}")],
        }
        for i in range(3)
    ]  # fmt: skip

    class Clips:
        """Two clips under three pairs of names."""

        def of_process(self, rank, world_size):
            return self

        def once(self, batch_size, device):
            return iter(batches)

    watch = masked.MaskedEvaluation.__new__(masked.MaskedEvaluation)
    watch.config, watch.clips = SimpleNamespace(batch_size=2), Clips()
    moment = SimpleNamespace(
        step=0, run_dir=tmp_path, warming_up=True,
        accelerator=SimpleNamespace(is_main_process=True, device="cpu"), host=Host(),
        call=lambda method, *args: getattr(objective, method)(*args),
    )  # fmt: skip
    with torch.no_grad():
        numbers, again = watch._measured(moment), watch._measured(moment)
        errors = [objective.errors(batch) for batch in batches]
    assert numbers == again
    for name in ("error", "copy_error", "interpolation_error", "mean_error"):
        mean = torch.cat([each[name] for each in errors]).mean().item()
        assert numbers[f"val/{name}"] == pytest.approx(mean, rel=1e-5)
    of_batches = torch.stack([each["copy_error"].mean() for each in errors])
    assert of_batches.std() > 1e-2
