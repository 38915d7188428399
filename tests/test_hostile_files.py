"""Readers accept changed files or refuse them in one line, in bounded time and memory."""

from __future__ import annotations

import json

import pytest
from hostile_files import Outcome, Reader, attack
from hostile_readers import READERS, encoder, neural_model

from ssl_vivit import load_encoder
from ssl_vivit.errors import DataError, ExportError, NeuralModelError
from ssl_vivit.neural.checkpoint import load_neural_model

by_reader = pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)


@by_reader
def test_readers(reader: Reader, tmp_path):
    check(attack(reader, tmp_path, reader.quick))


@pytest.mark.slow
@by_reader
def test_readers_with_thousands(reader: Reader, tmp_path):
    check(attack(reader, tmp_path, 15 * reader.quick, first=reader.quick))


SIZES = {"depth": 10**9, "layer_scale": 10**400, "embed_dim": 10**12, "num_heads": -1, "mlp_ratio": float("nan"),
         "num_frames": "4", "tubelet_size": [2] * 100_000, "image_size": [10**9, 10**9]}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_sizes_in_the_config_of_an_encoder(name, tmp_path):
    encoder(tmp_path / "encoder")
    path = tmp_path / "encoder" / "config.json"
    saved = json.loads(path.read_text())
    saved["encoder"][name] = SIZES[name]
    path.write_text(json.dumps(saved))
    with pytest.raises(ExportError, match=f"config.json: {name} ") as caught:
        load_encoder(tmp_path / "encoder")
    assert len(str(caught.value)) <= 2000


@pytest.mark.parametrize(
    ("core", "setting", "value"), [("x3d", "depths", [10**9]), ("resnet", "depths", [10**9, 2, 2])]
)
def test_sizes_in_the_config_of_a_model_of_neurons(core, setting, value, tmp_path):
    neural_model(core)(tmp_path)
    path = tmp_path / "model" / "config.json"
    saved = json.loads(path.read_text())
    assert setting in saved["core"]
    saved["core"][setting] = value
    path.write_text(json.dumps(saved))
    with pytest.raises(NeuralModelError):
        load_neural_model(tmp_path / "model")


def test_a_message_is_one_line_without_control_characters():
    error = DataError("a\nb \x1b[2J" + "x" * 10_000 + "; mend it")
    assert str(error).startswith("a b \\x1b[2Jxxx")
    assert str(error).endswith("xxx; mend it")
    assert len(str(error)) == 2000


def check(found: Outcome) -> None:
    assert not found.faults, "\n".join(found.faults[:20])
    # A reader that refuses everything, or nothing, was not given what it reads.
    assert found.accepted
    assert found.refused
