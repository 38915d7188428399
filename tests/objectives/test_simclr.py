"""SimCLR, compared with lightly, a slow loop, and itself on several processes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss
from safetensors.torch import load_file

from ssl_vivit import create_encoder, load_encoder
from ssl_vivit.errors import RunError
from ssl_vivit.objectives import SimCLR, Step
from ssl_vivit.objectives.simclr import nt_xent
from ssl_vivit.training import TrainingConfig, fit

PARITY = Path(__file__).parent / "parity" / "lightly_ntxent.npz"
TINY = {
    "num_frames": 4,
    "image_size": (16, 24),
    "tubelet_size": (2, 8, 8),
    "embed_dim": 24,
    "num_heads": 2,
    "spatial_depth": 2,
    "temporal_depth": 1,
}


def objective(settings=None, **overrides) -> SimCLR:
    torch.manual_seed(0)
    encoder = create_encoder("vivit_tiny", **(TINY | (settings or {})))
    return SimCLR(encoder, **{"hidden_dim": 16, "output_dim": 8, **overrides}).double()


def batch(count=5) -> dict:
    generator = torch.Generator().manual_seed(1)
    clips = torch.randn(count, 2, 3, 4, 16, 24, generator=generator, dtype=torch.float64)
    return {"clips": clips}


def slow_ntxent(first, second, temperature):
    """Compute NT-Xent term by term from its definition (Chen et al. 2020, Eq. 1)."""
    z = torch.nn.functional.normalize(torch.cat((first, second)), dim=1)
    count = len(first)
    terms = []
    for i in range(2 * count):
        others = [(z[i] @ z[j] / temperature).exp() for j in range(2 * count) if j != i]
        positive = (z[i] @ z[(i + count) % (2 * count)] / temperature).exp()
        terms.append(-(positive / torch.stack(others).sum()).log())
    return torch.stack(terms).mean()


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("size", ["n2d8", "n5d16", "n8d32"])
def test_the_loss_is_the_references(size, temperature):
    numbers = np.load(PARITY)
    prefix = f"ntxent|{size}|float64|t{temperature}"
    first, second = (torch.from_numpy(numbers[f"{prefix}|z{i}"]).requires_grad_() for i in (0, 1))
    loss = nt_xent(first, second, temperature)
    loss.backward()
    assert loss.item() == pytest.approx(float(numbers[f"{prefix}|loss"]), abs=1e-12)
    for i, z in enumerate((first, second)):
        expected = torch.from_numpy(numbers[f"{prefix}|grad_z{i}"])
        torch.testing.assert_close(z.grad, expected, rtol=0, atol=1e-12)
    assert loss.item() == pytest.approx(slow_ntxent(first, second, temperature).item(), abs=1e-12)


def test_the_loss_and_its_gradient_are_those_of_lightly():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 6, 12, generator=generator, dtype=torch.float64).unbind()
    found = []
    for loss in (nt_xent, lambda a, b, t: NTXentLoss(t, gather_distributed=True)(a, b)):
        a, b = first.clone().requires_grad_(), second.clone().requires_grad_()
        value = loss(a, b, 0.2)
        value.backward()
        found.append((value.detach(), a.grad, b.grad))
    for own, theirs in zip(*found, strict=True):
        torch.testing.assert_close(own, theirs, rtol=0, atol=1e-14)


def test_metrics_are_left_out_of_steps_that_are_not_logged():
    simclr = objective()
    logged = simclr(batch())
    simclr.logs_step = False
    step = simclr(batch())
    assert not step.metrics
    assert step.loss.item() == logged.loss.item()


@pytest.mark.parametrize("features", ["pooled", "tokens"])
def test_a_step_is_the_slow_loss_of_the_heads_output(features):
    simclr = objective(features=features, batch_norm=False).eval()
    step = simclr(batch())
    assert isinstance(step, Step)
    embeddings = []
    for view in range(2):
        output = simclr.encoder(batch()["clips"][:, view])
        hidden = output.pooled if features == "pooled" else output.tokens.flatten(1, 2).mean(1)
        embeddings.append(simclr.head(hidden))
    expected = slow_ntxent(*embeddings, 0.1)
    assert step.loss.item() == pytest.approx(expected.item(), abs=1e-12)

    z = torch.nn.functional.normalize(torch.cat(embeddings), dim=1)
    hits, distances = 0, []
    for i in range(10):
        order = sorted((j for j in range(10) if j != i), key=lambda j: -(z[i] @ z[j]).item())
        hits += order[0] == (i + 5) % 10
        distances += [(z[i] - z[j]).square().sum() for j in range(10) if j != i]
    assert step.metrics["top1"].item() == pytest.approx(hits / 10)
    assert step.metrics["top1_chance"].item() == pytest.approx(1 / 9)
    uniformity = torch.stack([(-2 * d).exp() for d in distances]).mean().log()
    assert step.metrics["uniformity"].item() == pytest.approx(uniformity.item(), abs=1e-9)
    alignment = (z[:5] - z[5:]).square().sum(1).mean()
    assert step.metrics["alignment"].item() == pytest.approx(alignment.item(), abs=1e-12)
    share = torch.linalg.svdvals(z) / torch.linalg.svdvals(z).sum()
    rank = (-(share * share.log()).sum()).exp()
    assert step.metrics["effective_rank"].item() == pytest.approx(rank.item(), rel=1e-5)


MODELS = [
    {},
    {"class_token": False},
    {"pooling": "temporal_cls", "temporal_causal": True},
    {"pooling": "attention", "final_norm": "pooled"},
    {"frame_pooling": "mean", "register_tokens": 2},
    {"temporal_depth": 0, "register_tokens": 1},
    {"variant": "factorized_self_attention", "depth": 2, "spatial_depth": None,
     "temporal_depth": None, "register_tokens": 1},
    {"block": "parallel", "register_tokens": 1, "temporal_causal": True},
]  # fmt: skip


@pytest.mark.parametrize("features", ["pooled", "tokens"])
@pytest.mark.parametrize("settings", MODELS)
def test_exactly_the_unused_parameters_are_frozen(settings, features):
    simclr = objective(settings, features=features)
    simclr(batch()).loss.backward()
    for name, parameter in simclr.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
    if features == "pooled":
        assert all(parameter.requires_grad for parameter in simclr.parameters())


def test_a_clip_that_is_not_finite_gives_a_loss_that_is_not():
    """The loss must not raise, because the loop refuses the step and names the batch."""
    bad = batch()
    bad["clips"][0, 0, 0, 0, 0, 0] = torch.nan
    step = objective()(bad)
    assert step.loss.isnan()
    assert step.metrics["effective_rank"].isnan()


def test_the_loss_is_computed_in_full_precision_under_autocast():
    simclr = objective(batch_norm=False).float().eval()
    clips = batch()["clips"].float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        step = simclr({"clips": clips})
        embeddings = simclr.head(simclr.features({"clips": clips}).flatten(0, 1))
    assert step.loss.dtype == torch.float32
    first, second = embeddings.float().view(5, 2, -1).unbind(1)
    assert step.loss.item() == pytest.approx(slow_ntxent(first, second, 0.1).item(), abs=1e-5)


def test_dropped_tubes_have_no_part_in_the_mean_of_tokens():
    """The mean is over the tokens that patch dropout kept."""
    simclr = objective({"patch_dropout": 0.5}, features="tokens")
    torch.manual_seed(2)
    features = simclr.features(batch())
    torch.manual_seed(2)
    tokens = simclr.encoder(batch()["clips"].flatten(0, 1)).tokens
    for got, clip in zip(features.flatten(0, 1), tokens.flatten(1, 2), strict=True):
        kept = clip[(clip != 0).all(-1)]
        assert len(kept) == 2 * 3
        torch.testing.assert_close(got, kept.mean(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("features", ["pooled", "tokens"])
def test_patches_are_dropped_by_the_names_of_each_clip(features):
    simclr = objective({"patch_dropout": 0.5}, features=features)
    clips = batch(1)["clips"][:, :1].expand(2, 2, -1, -1, -1, -1)
    named = {"clips": clips, "draw": [(3, 0, "a"), (3, 0, "b")]}
    both = simclr.features(named)
    assert torch.equal(simclr.features(named), both)
    alone = simclr.features({"clips": clips[:1], "draw": [(3, 0, "b")]})
    torch.testing.assert_close(alone[0], both[1], rtol=0, atol=1e-12)
    # One clip four times over: nothing but what is dropped tells them apart.
    assert (torch.cdist(both.flatten(0, 1), both.flatten(0, 1)) > 1e-3).sum() == 12
    later = simclr.features({"clips": clips, "draw": [(3, 1, "a"), (3, 1, "b")]})
    assert not torch.equal(later, both)


def test_features_come_with_their_views():
    simclr = objective().eval()
    clips = torch.randn(2, 3, 3, 4, 16, 24, dtype=torch.float64)
    features = simclr.features({"clips": clips})
    assert features.shape == (2, 3, 24)
    expected = simclr.encoder(clips[1, 2][None]).pooled[0]
    torch.testing.assert_close(features[1, 2], expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"the batch has 3; set data\.clip\.views to 2"):
        simclr({"clips": clips})


def test_export_contains_only_the_encoder(tmp_path):
    torch.manual_seed(0)
    simclr = SimCLR(create_encoder("vivit_tiny", **TINY), preprocessing={"fps": 25.0})
    simclr.export(tmp_path / "encoder", training={"steps": 3})
    loaded = load_encoder(tmp_path / "encoder")
    assert loaded.preprocessing == {"fps": 25.0}
    assert "| steps | 3 |" in (tmp_path / "encoder" / "README.md").read_text()
    for name, value in simclr.encoder.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"features": "cls"}, {"num_layers": 1}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        objective(**settings)


def test_two_processes_equal_one_on_the_joined_batch(tmp_path):
    """Loss and gradients, averaged over ranks, to 1e-10 in float64 (the head has no batch norm)."""
    script = Path(__file__).parent / "simclr_on_ranks.py"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2",
         "--master_port", "0", "--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0",
         script, tmp_path],
        check=True,
    )  # fmt: skip
    simclr = objective(batch_norm=False)
    step = simclr(batch(6))
    step.loss.backward()
    ranks = [load_file(tmp_path / f"rank{rank}.safetensors") for rank in range(2)]
    loss = sum(rank.pop("loss") for rank in ranks) / 2
    assert loss.item() == pytest.approx(step.loss.item(), abs=1e-10)
    assert ranks[0]["top1"] + ranks[1]["top1"] == pytest.approx(2 * step.metrics["top1"].item())
    for name, parameter in simclr.named_parameters():
        for rank in ranks:
            torch.testing.assert_close(rank[name], parameter.grad, rtol=0, atol=1e-10)
    assert ranks[0]["uniformity"].item() == pytest.approx(step.metrics["uniformity"].item())


def test_a_micro_batch_without_negatives_is_refused_before_training(tmp_path):
    settings = {"run_dir": str(tmp_path / "run"), "steps": 2, "tracker": "none"}
    lower = ", or lower training.accumulation"
    for total, accumulation, mend in ((4, 4, f"8 or more{lower}"), (1, 1, "2 or more")):
        config = TrainingConfig(total_batch_size=total, accumulation=accumulation, **settings)
        line = (
            rf"SimCLR needs 2 samples .*accumulation {accumulation} is 1: raise \S+size to {mend}$"
        )
        with pytest.raises(RunError, match=line):
            fit(objective(), [batch(1)], config)
        assert not (tmp_path / "run").exists()
    config = TrainingConfig(total_batch_size=4, accumulation=2, **settings)
    assert fit(objective(), [batch(2)], config).metrics["train/grad_norm"] > 0


def test_a_batch_of_one_video_is_refused_by_the_objective():
    with pytest.raises(ValueError, match="SimCLR needs at least two videos in a batch"):
        objective()(batch(1))
