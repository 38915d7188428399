"""Recordings at 240 Hz: rates for every recorded frame, also with an encoder at 30 Hz."""

import numpy as np
import pytest
import torch
from small_models import encoder

from data_prep.session_writer import SessionWriter
from ssl_vivit.data.sessions.files import Session
from ssl_vivit.data.sessions.loader import NeuralDataConfig, build_sessions
from ssl_vivit.encoders import save_pretrained
from ssl_vivit.errors import NeuralModelError
from ssl_vivit.neural import build_neural_model, load_neural_model, save_neural_model
from ssl_vivit.neural.config import BaselineConfig, NeuralEncoderChoice, NeuralModelConfig

FRAMES = 96


@pytest.mark.parametrize("encoder_rate", [240.0, 30.0])
def test_a_session_at_240_hz_is_predicted_frame_by_frame(tmp_path, encoder_rate):
    draw = np.random.default_rng(0)
    facts = {"frames_per_second": 240, "kind": "spikes", "unit_ids": [3, 7]}
    with SessionWriter(tmp_path / "fast", **facts) as session:
        for tier in ("train", "train", "oracle", "live_test_main"):
            video = draw.integers(0, 256, (FRAMES, 8, 12), np.uint8)
            session.add(tier, video, draw.poisson(8 / 240, (FRAMES, 2)))
    prepared = {"mean": [0.5], "std": [0.2], "fps": encoder_rate, "frame_stride": 1}
    torch.manual_seed(0)
    save_pretrained(encoder(), tmp_path / "encoder", preprocessing=prepared)
    sessions = build_sessions(NeuralDataConfig(sessions=str(tmp_path / "fast"), window=FRAMES))
    assert sessions.facts[0].frames_per_second == 240

    built = build_neural_model(
        "vivit", NeuralEncoderChoice(path=str(tmp_path / "encoder")), NeuralModelConfig(),
        BaselineConfig(), sessions.facts, longest=FRAMES,
    )  # fmt: skip
    seen = []
    built.model.encoder.tubelets.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].shape[2])
    )
    save_neural_model(built.model, tmp_path / "model", sessions.facts)
    video = torch.from_numpy(Session(tmp_path / "fast").video(3))[None]
    standard = sessions.facts[0].standardised_video(video.float())[:, None]
    standard.requires_grad_(True)
    rates = built.model.eval()(standard)
    # 96 frames last 0.4 s: an encoder of 30 frames a second sees 12 of them.
    assert seen == [round(FRAMES * encoder_rate / 240)]
    assert rates.shape == (1, FRAMES, 2)
    rates[:, 50].sum().backward()
    by_frame = standard.grad.abs().amax((0, 1, 3, 4))
    assert bool((by_frame[51:] == 0).all())
    assert by_frame[50] > 0

    model = load_neural_model(tmp_path / "model")
    predicted = model.predict(video, frames_per_second=240.0)
    torch.testing.assert_close(predicted, rates.detach(), rtol=0, atol=1e-5)
    with pytest.raises(NeuralModelError, match="240"):
        model.predict(video, frames_per_second=30.0)
