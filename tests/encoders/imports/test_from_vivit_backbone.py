"""The imported public Model 3, compared with its reference numbers."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from parity_files import PARITY
from safetensors.torch import load_file

from ssl_vivit.encoders.imports import from_vivit_backbone
from ssl_vivit.encoders.visible_tokens import Places

TINY = {
    "t": 4, "h": 8, "w": 12, "patch_t": 2, "patch_h": 4, "patch_w": 4, "dim": 24, "depth": 2,
    "heads": 3, "mlp_dim": 40, "dim_head": 8,
}  # fmt: skip
README = {
    "t": 32, "h": 64, "w": 64, "patch_t": 8, "patch_h": 4, "patch_w": 4, "num_classes": 10,
    "dim": 512, "depth": 6, "heads": 10, "mlp_dim": 8, "model": 3,
}  # fmt: skip


def tiny():
    state = load_file(PARITY / "drv_agwl_model3_tiny.safetensors")
    return state, state.pop("_pos_embedding_not_in_state_dict")


def backbone_state(t, h, w, patch_t, patch_h, patch_w, num_classes, dim, depth, heads, mlp_dim,
                   dim_head=3, channels=3, model=3):  # fmt: skip
    """Return random weights with the names and shapes of a ViViTBackbone."""
    torch.manual_seed(0)
    inner = heads * dim_head
    state = {}

    def pair(name, *shape):
        state[f"{name}.weight"] = torch.randn(*shape) * 0.1
        state[f"{name}.bias"] = torch.randn(shape[0]) * 0.1

    pair("to_tubelet_embedding.1", dim, patch_t * patch_h * patch_w * channels)
    for i in range(depth):
        for j in range(2):
            name = f"transformer.layers.{i}.{j}"
            pair(f"{name}.norm", dim)
            state[f"{name}.fn.to_qkv.weight"] = torch.randn(3 * inner, dim) * 0.1
            if not (heads == 1 and dim_head == dim):
                pair(f"{name}.fn.to_out.0", dim, inner)
        name = f"transformer.layers.{i}.2"
        pair(f"{name}.norm", dim)
        pair(f"{name}.fn.net.0", mlp_dim, dim)
        pair(f"{name}.fn.net.3", dim, mlp_dim)
    pair("mlp_head.0", dim)
    pair("mlp_head.1", num_classes, dim)
    return state


def test_output_equals_the_reference_file():
    state, positions = tiny()
    arrays = np.load(PARITY / "drv_agwl_model3_tiny.npz")
    model = from_vivit_backbone(state, TINY, positions)
    with torch.no_grad():
        out = model(torch.from_numpy(arrays["input"]))
        exact = model.double()(torch.from_numpy(arrays["input"]).double())
    torch.testing.assert_close(out, torch.from_numpy(arrays["output"]), rtol=0, atol=1e-6)
    torch.testing.assert_close(exact.float(), torch.from_numpy(arrays["output"]), rtol=0, atol=1e-6)
    # Equal at all times, so they are a table over space alone.
    assert model.encoder.config.temporal_positions == "none"


def test_the_readme_call():
    known = json.loads((PARITY / "drv_agwl_model3.json").read_text())
    positions = torch.randn(known["pos_embedding_shape"][2:])[None, None].expand(1, 4, -1, -1)
    model = from_vivit_backbone(backbone_state(**README), README, positions)
    count = sum(parameter.numel() for parameter in model.parameters())
    # The positions, 256 of width 512, are no parameter there.
    assert count - 256 * 512 == known["params"] == 1_017_402
    state, video = backbone_state(**README), torch.rand(2, 3, 32, 64, 64)
    with torch.no_grad():
        logits = model(video)
        mean = model.encoder(video).tokens.mean((1, 2))
        norm, head = ((state[f"mlp_head.{i}.weight"], state[f"mlp_head.{i}.bias"]) for i in (0, 1))
        expected = F.linear(F.layer_norm(mean, (512,), *norm), *head)
    assert logits.shape == (2, 10)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_readme_call_at_its_batch_size():
    model = from_vivit_backbone(backbone_state(**README), README, torch.randn(1, 4, 256, 512))
    with torch.no_grad():
        assert model(torch.rand(32, 3, 32, 64, 64)).shape == (32, 10)


def test_positions_that_differ_over_time_are_a_joint_table():
    state, positions = tiny()
    positions = positions.clone()
    positions[:, 1] += 1.0
    model = from_vivit_backbone(state, TINY, positions)
    assert model.encoder.config.joint_positions == "learned"
    fixed = from_vivit_backbone(state | {"pos_embedding": positions}, TINY)
    video = torch.rand(2, 3, 4, 8, 12)
    tokens = model.encoder.tubelets(video)[0]
    placed = model.encoder.positions.add_spatial(tokens, Places(model.encoder.config.grid))
    torch.testing.assert_close(placed - tokens, positions.expand(2, -1, -1, -1))
    torch.testing.assert_close(fixed(video), model(video), rtol=0, atol=0)


def test_without_positions_new_ones_are_drawn_with_a_warning():
    state, _ = tiny()
    with pytest.warns(UserWarning, match=r"pos_embedding=model\.pos_embedding"):
        model = from_vivit_backbone(state, TINY)
    table = model.encoder.state_dict()["positions.spatial"]
    assert table.shape == (6, 24)
    assert 0.7 < float(table.std()) < 1.3


def test_the_width_of_heads_is_read_from_the_weights():
    state, positions = tiny()
    settings = {name: value for name, value in TINY.items() if name != "dim_head"}
    model = from_vivit_backbone(state, settings, positions)
    assert model.encoder.config == from_vivit_backbone(state, TINY, positions).encoder.config
    assert model.encoder.config.head_dim == 8


def test_one_head_of_full_width_has_no_output_projection():
    settings = TINY | {"heads": 1, "dim_head": 24}
    state = backbone_state(**settings, num_classes=5)
    model = from_vivit_backbone(state, settings, torch.zeros(1, 2, 6, 24))
    weight = model.encoder.trunk.blocks[0].space.proj.weight
    torch.testing.assert_close(weight.detach(), torch.eye(24), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 48}, "dim is 48 in the config but 24"),
        ({"depth": 3}, "depth is 3 in the config but 2"),
        ({"heads": 6}, "dim_head is 8 in the config but 4 in the weights"),
        ({"heads": 5}, "heads 5 must be a whole number that divides the width of the queries, 24"),
        ({"heads": 0}, "heads 0 must be"),
        ({"w": 16}, r"pos_embedding \(1, 2, 6, 24\) must be \(1, 2, 8, 24\)"),
        ({"model": 4}, "model 4 cannot be imported: ViViTBackbone"),
        ({"channels": 1}, r"embedding\.1\.weight has shape \(24, 96\) instead of \(24, 32\)"),
    ],
)
def test_arguments_that_the_weights_contradict_are_refused(change, message):
    state, positions = tiny()
    with pytest.raises(ValueError, match=message):
        from_vivit_backbone(state, TINY | change, positions)


def test_missing_arguments_and_weights_are_named():
    state, positions = tiny()
    with pytest.raises(ValueError, match="config lacks patch_t, heads"):
        from_vivit_backbone(
            state, {k: v for k, v in TINY.items() if k not in ("heads", "patch_t")}, positions
        )
    name = "transformer.layers.1.2.fn.net.3.bias"
    with pytest.raises(ValueError, match=f"{name} missing"):
        from_vivit_backbone({k: v for k, v in state.items() if k != name}, TINY, positions)
    with pytest.raises(ValueError, match="do not belong to a ViViTBackbone"):
        from_vivit_backbone({"conv.weight": torch.zeros(2)}, TINY, positions)
