"""Imported ViViT and VideoMAE, compared with reference files, and with transformers if installed."""

import json

import numpy as np
import pytest
import torch
from parity_files import PARITY
from safetensors.torch import load_file

from ssl_vivit.encoders.classifier import VideoClassifier
from ssl_vivit.encoders.imports import from_hf_vivit, from_videomae

# A grid that is not square, and 2 frames a tubelet.
SIZES = {
    "image_size": [8, 12],
    "num_frames": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
}


def facts(name):
    return json.loads((PARITY / f"{name}.json").read_text()), np.load(PARITY / f"{name}.npz")


def weights(name):
    return load_file(PARITY / f"{name}.v5.safetensors")


def clips(frames=4, height=8, width=12, channels=3, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return torch.randn(2, channels, frames, height, width, generator=generator, dtype=dtype)


def peer(make, **settings):
    """Return a model of transformers with large random weights, in float64."""
    torch.manual_seed(0)
    model = make(**settings)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.double().eval()


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


V4_ENCODER = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}


def vivit_under_v4_names(state):
    def renamed(name):
        if not name.startswith("layers."):
            return name
        for new, old in V4_ENCODER.items():
            name = name.replace(new, old)
        return f"encoder.layer.{name.removeprefix('layers.')}"

    return {renamed(name): value for name, value in state.items()}


def videomae_under_v4_names(state):
    for part in ("query", "value"):
        state = {
            name.replace(f"{part}.bias", f"{part[0]}_bias"): value for name, value in state.items()
        }
    return state


@pytest.mark.parametrize("names", ["v5", "v4"])
def test_vivit_equals_the_reference_file(names):
    known, arrays = facts("hf_vivit")
    state = weights("hf_vivit")
    if names == "v4":
        state = vivit_under_v4_names(state)
    assert state.keys() == known[names]["keys"].keys()
    model = from_hf_vivit(state, known["config"]).double()
    video = torch.from_numpy(arrays["pixel_values"]).double().transpose(1, 2)
    with torch.no_grad():
        out, pooled = model.encoder(video), model(video)
    last = torch.cat((out.cls, out.tokens.flatten(1, 2)), dim=1)
    # transformers computes the softmax in float32 whatever the input is.
    for ours, name in ((last, "last_hidden_state_f64"), (pooled, "pooler_output_f64")):
        torch.testing.assert_close(ours, torch.from_numpy(arrays[name]), rtol=0, atol=1e-6)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == known[names]["n_params"]


@pytest.mark.parametrize("names", ["v5", "v4"])
def test_videomae_equals_the_reference_file(names):
    known, arrays = facts("hf_videomae")
    state = weights("hf_videomae")
    if names == "v4":
        state = videomae_under_v4_names(state)
    assert state.keys() == known[names]["keys"].keys()
    model = from_videomae(state, known["config"])
    video = torch.from_numpy(arrays["pixel_values"]).transpose(1, 2)
    masked = torch.from_numpy(arrays["bool_masked_pos"])
    visible = (~masked).nonzero()[:, 1].view(len(masked), -1)
    with torch.no_grad():
        tokens = model.encoder(video, visible_tokens=visible).tokens[:, 0]
    expected = torch.from_numpy(arrays["encoder_last_hidden_state"])
    torch.testing.assert_close(tokens, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"qkv_bias": False, "hidden_act": "gelu"}])
def test_vivit_classifier_equals_transformers(transformers, settings):
    config = transformers.VivitConfig(
        **(SIZES | settings), tubelet_size=[2, 4, 4], num_labels=7, layer_norm_eps=1e-3
    )
    config._attn_implementation = "sdpa"
    model = peer(lambda: transformers.VivitForVideoClassification(config))
    ours = from_hf_vivit(model.state_dict(), config)
    video = clips()
    with torch.no_grad():
        expected = model(video.transpose(1, 2)).logits
        torch.testing.assert_close(ours(video), expected, rtol=0, atol=1e-10)


def test_vivit_pooler_equals_transformers(transformers):
    config = transformers.VivitConfig(**SIZES, tubelet_size=[2, 4, 4], pooler_output_size=10)
    config._attn_implementation = "sdpa"
    model = peer(lambda: transformers.VivitModel(config))
    ours = from_hf_vivit(model.state_dict(), config.to_dict())
    video = clips()
    with torch.no_grad():
        expected = model(video.transpose(1, 2))
        out = ours.encoder(video)
    torch.testing.assert_close(ours(video), expected.pooler_output, rtol=0, atol=1e-10)
    last = torch.cat((out.cls, out.tokens.flatten(1, 2)), dim=1)
    torch.testing.assert_close(last, expected.last_hidden_state, rtol=0, atol=1e-10)


@pytest.mark.parametrize("mean", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_videomae_classifier_equals_transformers(transformers, mean, bias):
    config = transformers.VideoMAEConfig(
        **SIZES, patch_size=4, use_mean_pooling=mean, qkv_bias=bias, num_labels=7
    )
    model = peer(lambda: transformers.VideoMAEForVideoClassification(config))
    ours = from_videomae(model.state_dict(), config)
    video = clips()
    with torch.no_grad():
        expected = model(video.transpose(1, 2)).logits
        # transformers keeps its sinusoids in float32.
        torch.testing.assert_close(ours(video), expected, rtol=0, atol=1e-6)


def test_videomae_equals_transformers_to_the_last_digit_on_the_same_sinusoids(transformers):
    config = transformers.VideoMAEConfig(**SIZES, patch_size=4, num_labels=7)
    model = peer(lambda: transformers.VideoMAEForVideoClassification(config))
    table = model.videomae.embeddings.position_embeddings
    position = np.arange(table.shape[1])[:, None]
    angle = position / 10000 ** (2 * (np.arange(24) // 2) / 24)
    exact = np.where(np.arange(24) % 2, np.cos(angle), np.sin(angle))
    np.testing.assert_allclose(table[0].numpy(), exact, atol=1e-6)
    model.videomae.embeddings.position_embeddings = torch.from_numpy(exact)[None]
    ours = from_videomae(model.state_dict(), config)
    video = clips()
    with torch.no_grad():
        expected = model(video.transpose(1, 2)).logits
        torch.testing.assert_close(ours(video), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["VideoMAEModel", "VideoMAEForPreTraining"])
@pytest.mark.parametrize("mean", [True, False])
def test_masked_videomae_equals_transformers(transformers, kind, mean):
    decoder = {"decoder_hidden_size": 12, "decoder_num_attention_heads": 2}
    config = transformers.VideoMAEConfig(**SIZES, **decoder, patch_size=4, use_mean_pooling=mean)
    model = peer(lambda: getattr(transformers, kind)(config))
    ours = from_videomae(model.state_dict(), config.to_dict())
    assert ours.num_classes == 0
    video = clips()
    hidden = torch.rand(2, 12, generator=torch.Generator().manual_seed(0)).argsort(1) < 8
    visible = (~hidden).nonzero()[:, 1].view(2, -1)
    base = model if kind == "VideoMAEModel" else model.videomae
    with torch.no_grad():
        for masked, index in ((hidden, visible), (None, None)):
            expected = base(video.transpose(1, 2), bool_masked_pos=masked).last_hidden_state
            out = ours.encoder(video, visible_tokens=index)
            torch.testing.assert_close(out.tokens.flatten(1, 2), expected, rtol=0, atol=1e-6)
    pooled = expected.mean(1) if mean else expected[:, 0]
    torch.testing.assert_close(ours(video), pooled, rtol=0, atol=1e-6)


def test_the_norm_of_the_head_keeps_its_epsilon_when_saved(transformers, tmp_path):
    config = transformers.VideoMAEConfig(**SIZES, patch_size=4, num_labels=7)
    model = peer(lambda: transformers.VideoMAEForVideoClassification(config))
    ours = from_videomae(model.state_dict(), config)
    ours.save_pretrained(tmp_path / "saved")
    video = clips()
    with torch.no_grad():
        again = VideoClassifier.from_pretrained(tmp_path / "saved").double()(video)
    assert ours.encoder.pooled_norm.eps != ours.encoder.config.norm_eps
    torch.testing.assert_close(again, ours(video), rtol=0, atol=1e-10)


def test_wrong_weights_are_named():
    known, _ = facts("hf_vivit")
    state = weights("hf_vivit")
    name = "layers.1.mlp.fc2.bias"
    fewer = {key: value for key, value in state.items() if key != name}
    with pytest.raises(ValueError, match=f"{name} missing"):
        from_hf_vivit(fewer, known["config"])
    with pytest.raises(ValueError, match=r"adapter\.weight unexpected"):
        from_hf_vivit(state | {"adapter.weight": torch.zeros(2)}, known["config"])
    with pytest.raises(
        ValueError, match=r"embeddings has shape \(1, 37, 48\) instead of \(1, 65, 48\)"
    ):
        from_hf_vivit(state, known["config"] | {"image_size": 16})
    with pytest.raises(ValueError, match=r"layers\.1\.\S+ unexpected"):
        from_hf_vivit(state, known["config"] | {"num_hidden_layers": 1})


def test_a_checkpoint_of_another_architecture_names_at_most_ten_arrays():
    with pytest.raises(ValueError, match=r"missing.* and more") as caught:
        from_videomae(weights("hf_vivit"), facts("hf_videomae")[0]["config"])
    assert str(caught.value).count(" missing") == 10
    assert "\n" not in str(caught.value)


def test_settings_without_an_equal_are_refused():
    known, _ = facts("hf_vivit")
    with pytest.raises(ValueError, match="hidden_act 'relu' is not supported"):
        from_hf_vivit(weights("hf_vivit"), known["config"] | {"hidden_act": "relu"})
    with pytest.raises(ValueError, match="pooler_act 'gelu' is not supported"):
        from_hf_vivit(weights("hf_vivit"), known["config"] | {"pooler_act": "gelu"})
    with pytest.raises(ValueError, match="the config is str"):
        from_hf_vivit(weights("hf_vivit"), "vivit")
