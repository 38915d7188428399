"""Directories written by version 0.1 can be loaded and give the outputs of version 0.1."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssl_vivit import VideoClassifier, ViViT, load_encoder, load_pretrained
from ssl_vivit.errors import ExportError
from ssl_vivit.neural import NeuralPredictor, load_neural_model

WRITTEN = Path(__file__).parent / "written_by_0_1"
EXPECTED = load_file(WRITTEN / "expected.safetensors")


@torch.no_grad()
def test_encoder():
    encoder = load_encoder(WRITTEN / "encoder")
    # Kernels of other CPUs round differently.
    torch.testing.assert_close(
        encoder(EXPECTED["clip"]).pooled, EXPECTED["pooled"], rtol=0, atol=1e-5
    )
    assert encoder.preprocessing == {
        "pixel_range": [0.0, 1.0],
        "channels": "rgb",
        "mean": [0.4, 0.5, 0.6],
        "std": [0.2, 0.25, 0.3],
        "fps": 25.0,
        "frame_stride": 2,
        "resize": [16, 24],
    }
    assert encoder.provenance == {
        "objective": "SimCLR",
        "data": {"videos": 3, "contents": ["a", "b"]},
    }


@torch.no_grad()
def test_classifier():
    classifier = VideoClassifier.from_pretrained(WRITTEN / "classifier")
    assert classifier.head_drop.p == 0.1
    logits = classifier(EXPECTED["clip"])
    torch.testing.assert_close(logits, EXPECTED["logits"], rtol=0, atol=1e-5)


def test_the_kind_of_a_directory_is_found():
    kinds = {"encoder": ViViT, "classifier": VideoClassifier, "model_of_neurons": NeuralPredictor}
    assert {kind: type(load_pretrained(WRITTEN / kind)) for kind in kinds} == kinds
    with pytest.raises(FileNotFoundError, match=r"is no exported model: config\.json is missing"):
        load_pretrained(WRITTEN)


@pytest.mark.parametrize(("session", "name"), [("mouse.1", "rates_1"), ("mouse/2", "rates_2")])
def test_model_of_neurons(session, name):
    model = load_neural_model(WRITTEN / "model_of_neurons")
    recorded = {key: EXPECTED[key] for key in ("video", "behaviour", "pupil_centre")}
    rates = model.predict(**recorded, session=session)
    torch.testing.assert_close(rates, EXPECTED[name], rtol=0, atol=1e-5)


def test_settings_that_earlier_versions_saved_are_left_out_with_a_warning(tmp_path):
    shutil.copytree(WRITTEN / "encoder", tmp_path / "encoder")
    file = tmp_path / "encoder" / "config.json"
    config = json.loads(file.read_text())
    config["preprocessing"] |= {"note": "mine", "fps": None}
    file.write_text(json.dumps(config))
    with pytest.warns(
        UserWarning, match="config.json: preprocessing setting note is unknown and ignored"
    ):
        encoder = load_encoder(tmp_path / "encoder")
    assert encoder.preprocessing["fps"] is None
    assert encoder.preprocessing.get("fps", 25.0) == 25.0
    assert encoder.preprocessing["mean"] == [0.4, 0.5, 0.6]
    config["preprocessing"] = {"mean": [None]}
    file.write_text(json.dumps(config))
    with pytest.raises(ExportError, match=r"config\.json"):
        load_encoder(tmp_path / "encoder")
