"""Sizes that config.json claims are compared with the weights before memory is allocated."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ssl_vivit import VideoClassifier, load_encoder
from ssl_vivit.errors import ExportError, NeuralModelError
from ssl_vivit.exported.directory import built_from
from ssl_vivit.neural import load_neural_model

WRITTEN = Path(__file__).parent / "written_by_0_1"


def changed(kind, folder, **changes):
    """Return a copy of an export with other values in config.json, given by dotted names."""
    path = folder / kind
    shutil.copytree(WRITTEN / kind, path)
    config = json.loads((path / "config.json").read_text())
    for name, value in changes.items():
        place = config
        *parents, last = name.split("__")
        for parent in parents:
            place = place[parent]
        place[last] = value
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.mark.parametrize(
    ("kind", "changes", "load"),
    [
        ("encoder", {"encoder__embed_dim": 2**22, "encoder__head_dim": 2**21}, load_encoder),
        ("encoder", {"encoder__spatial_depth": 10**9}, load_encoder),
        ("encoder", {"encoder__mlp_ratio": 1e9}, load_encoder),
        ("encoder", {"encoder__image_size": [2**15, 2**15]}, load_encoder),
        ("classifier", {"classifier__num_classes": 10**12}, VideoClassifier.from_pretrained),
        ("classifier", {"classifier__representation_size": 10**12}, VideoClassifier.from_pretrained),
        ("model_of_neurons", {"readouts__mouse/2__neurons": 10**12}, load_neural_model),
        ("model_of_neurons", {"modulator__hidden": 10**9}, load_neural_model),
    ],
)  # fmt: skip
def test_claims_beyond_the_weights_are_refused(kind, changes, load, tmp_path):
    path = changed(kind, tmp_path, **changes)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(
        (ExportError, NeuralModelError),
        match=r"does not fit the .* of config\.json|config\.json: \w+ .* must be .*at most 1,000",
    ):
        load(path)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 1024  # KiB


def test_nothing_is_initialised(monkeypatch):
    """Loading draws no random numbers: all weights come from the file."""
    state = torch.random.get_rng_state()
    for load, kind in ((load_encoder, "encoder"), (load_neural_model, "model_of_neurons")):
        load(WRITTEN / kind)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_mechanism_imports_no_model():
    """ssl_vivit.exported builds any module and imports no encoder."""
    linear = built_from(
        WRITTEN / "classifier" / "classifier.safetensors",
        "two layers",
        lambda: nn.ModuleDict({"representation": nn.Linear(24, 12), "head": nn.Linear(12, 5)}),
    )
    assert not linear["head"].weight.is_meta
    script = (
        "import sys, ssl_vivit.exported.directory, ssl_vivit.exported.hub, ssl_vivit.exported.card\n"
        "print(*(m for m in sys.modules if m.startswith('ssl_vivit.')))"
    )
    found = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    rooms = {name.split(".")[1] for name in found.stdout.split()}
    assert not rooms & {"encoders", "neural", "data", "objectives", "training"}
