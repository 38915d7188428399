"""Parameters and multiply-adds, compared with the paper's table and with products counted by hand."""

from __future__ import annotations

import sys

import pytest
import torch

from ssl_vivit.encoders import VideoClassifier, create_encoder, named_config
from ssl_vivit.evaluation.complexity import PAPER, ComplexityTable, count, main, multiply_adds
from ssl_vivit.training import run

VARIANTS = list(PAPER)
T, N, D, CLASSES = 3, 6, 32, 5
SMALL = {
    "num_frames": 6, "image_size": (16, 24), "tubelet_size": (2, 8, 8), "embed_dim": D,
    "num_heads": 4, "head_dim": 6,
}  # fmt: skip
INNER = 24


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_papers_table(variant: str) -> None:
    counted = ComplexityTable(overrides={"variant": variant}).counts()[variant]
    parameters, gflops = PAPER[variant]
    assert abs(counted.parameters / 1e6 - parameters) < 0.1
    assert abs(counted.whole / 1e9 / gflops - 1) < 0.015


def products(sequences: int, length: int, queries: int) -> int:
    """Return the multiply-adds of attention along one axis: logits and weighted values of all heads."""
    return 2 * sequences * queries * length * INNER


def by_hand(variant: str, class_alone: bool, causal: bool = False) -> int:
    """Return the multiply-adds of a classifier of SMALL with depth 2 (Model 2: 2 + 1)."""
    embedding = T * N * D * (3 * 2 * 8 * 8)
    head = D * CLASSES
    projections, mlp = 4 * D * INNER, 8 * D * D
    if variant == "joint":
        k = 1 + T * N
        attention = products(1, k, k)
        if causal:  # time step by time step, over the tokens up to it
            attention = products(1, 1, k) + sum(products(1, N, t * N) for t in range(1, T + 1))
        block = k * (projections + mlp) + attention
        whole = k * (projections + mlp) + products(1, k, k)  # counted in full under a mask
        last = 2 * k * D * INNER + 2 * D * INNER + mlp + products(1, k, 1) if class_alone else whole
        return embedding + block + last + head
    if variant == "factorized_encoder":
        n = 1 + N
        block = T * n * (projections + mlp) + products(T, n, n)
        alone = 2 * T * n * D * INNER + T * (2 * D * INNER + mlp) + products(T, n, 1)
        temporal = T * (projections + mlp) + products(1, T, T)
        return embedding + block + (alone if class_alone else block) + temporal + head
    if variant == "factorized_self_attention":
        block = T * N * (2 * projections + mlp) + products(T, N, N) + products(N, T, T)
        return embedding + 2 * block + head
    block = T * N * (projections + mlp) + (products(T, N, N) + products(N, T, T)) // 2
    return embedding + 2 * block + head


@pytest.mark.parametrize("block", ["pre_norm", "parallel"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_products_written_out(variant: str, causal: bool, block: str) -> None:
    depth = {"spatial_depth": 2, "temporal_depth": 1} if "encoder" in variant else {"depth": 2}
    config = {**SMALL, **depth, "temporal_causal": causal, "block": block}
    model = VideoClassifier(create_encoder("vivit_tiny", variant=variant, **config), CLASSES)
    counted = count(model)
    assert counted.whole == by_hand(variant, class_alone=False, causal=causal)
    assert counted.run == by_hand(variant, class_alone=True, causal=causal)
    assert counted.parameters == sum(p.numel() for p in model.parameters())
    assert count(model, batch=3) == (counted.parameters, 3 * counted.whole, 3 * counted.run)


def test_a_config_counts_as_its_encoder() -> None:
    config = named_config("vivit_tiny", **SMALL)
    assert count(config) == count(create_encoder("vivit_tiny", **SMALL))


def test_overlapping_tubelets_are_counted() -> None:
    config = named_config("vivit_tiny", **{**SMALL, "tubelet_stride": (1, 8, 8)})
    encoder = create_encoder("vivit_tiny", **{**SMALL, "tubelet_stride": (1, 8, 8)})
    video = torch.empty(1, 3, 6, 16, 24)
    assert multiply_adds(encoder.tubelets, video) == config.grid.t * N * D * (3 * 2 * 8 * 8)


def test_patch_dropout_is_counted_only_in_training() -> None:
    encoder = create_encoder("vivit_tiny", **SMALL, class_token=False, patch_dropout=0.5)
    full = create_encoder("vivit_tiny", **SMALL, class_token=False)
    assert count(encoder.eval()) == count(full)
    assert count(encoder.train()).run < 0.6 * count(full).run


def test_counting_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = VideoClassifier(create_encoder("vivit_tiny", **SMALL), CLASSES).eval()
    video = torch.randn(2, 3, 6, 16, 24)
    before = model(video)
    count(model)
    assert torch.equal(model(video), before)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    assert not any(module._forward_pre_hooks for module in model.modules())


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["complexity", *arguments])
    run(main)


def test_the_command_prints_the_table(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ("--overrides.image_size", "[128, 192]", "--overrides.num_frames", "8")
    command(monkeypatch, *sizes)
    rows = capsys.readouterr().out.splitlines()[2:]
    assert len(rows) == len(VARIANTS)
    for row, variant in zip(rows, VARIANTS, strict=True):
        settings = {"variant": variant, "image_size": (128, 192), "num_frames": 8}
        counted = count(named_config("vivit_base_16x2", **settings))
        whole = (counted.whole + 768 * 400) / 1e9
        parameters = (counted.parameters + 769 * 400) / 1e6
        assert row.split(" | ")[1:3] == [f"{parameters:.2f}", f"{whole:.1f}"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--name", "vivit_smal"), "did you mean 'vivit_small'"),
        (("--overrides.variant", "joit"), "choose one of joint"),
        (("--num_classes", "-1"), "--num_classes"),
        (("--variant", "joint"), "allowed here: name, num_classes, overrides"),
    ],
)
def test_a_mistake_is_one_line(
    arguments: tuple[str, ...],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, *arguments)
    assert ended.value.code != 0
    printed = capsys.readouterr()
    assert not printed.out
    assert len(printed.err.splitlines()) == 1
    assert named in printed.err
