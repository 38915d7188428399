"""Exported graphs equal the module: torch.export bit for bit, ONNX in onnxruntime up to rounding."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_encoders import MODEL1, MODEL2, MODEL3, MODEL4, PARALLEL, ROTARY, clip, make

from ssl_vivit import VideoClassifier
from ssl_vivit.encoders import onnx as graph
from ssl_vivit.encoders.onnx import TensorEncoder, export_graph, export_onnx

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

ROOT = Path(__file__).parents[2]
SHALLOW = {"depth": 1}
SHALLOW2 = {"spatial_depth": 1, "temporal_depth": 1}
SINUSOIDAL = {"spatial_positions": "sinusoidal", "temporal_positions": "sinusoidal"}
CAUSAL = {"temporal_causal": True}
OVERLAPPING = {
    "tubelet_size": (4, 8, 8),
    "tubelet_stride": (2, 4, 8),
    "temporal_padding": "causal",
}
# Each pair of model, positions, causality and block occurs, and every option that is a way through
# the code of its own.
CASES = {
    "1, learned, causal": MODEL1 | SHALLOW | CAUSAL | {"register_tokens": 2},
    "1, rotary, parallel": MODEL1 | SHALLOW | ROTARY | PARALLEL,
    "2, rotary, causal, overlapping": MODEL2 | SHALLOW2 | ROTARY | CAUSAL | OVERLAPPING,
    "2, sinusoidal, parallel, temporal class": MODEL2
    | SHALLOW2
    | SINUSOIDAL
    | PARALLEL
    | {"pooling": "temporal_cls", "register_tokens": 1},
    "3, learned, parallel, causal": MODEL3
    | SHALLOW
    | PARALLEL
    | CAUSAL
    | {"register_tokens": 1, "activation": "swiglu"},
    "3, rotary, attention pooling, uniform frames": MODEL3
    | SHALLOW
    | ROTARY
    | {"pooling": "attention", "tubelet_embedding": "uniform_frames"},
    "4, sinusoidal, causal": MODEL4 | SHALLOW | SINUSOIDAL | CAUSAL | {"qk_norm": True},
    "4, rotary, parallel, causal": MODEL4
    | SHALLOW
    | ROTARY
    | PARALLEL
    | CAUSAL
    | {"register_tokens": 1, "layer_scale": 0.5},
}


def small(**settings):
    return make(**settings).float()


@torch.no_grad()
@pytest.mark.parametrize("case", CASES)
def test_onnx_gives_the_modules_numbers_for_any_batch(case, tmp_path):
    encoder = small(**CASES[case])
    path = tmp_path / "encoder.onnx"
    export_onnx(encoder, path, check=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for batch in (1, 3, 5):
        video = clip(batch).float()
        expected = TensorEncoder(encoder)(video)
        got = session.run(["pooled", "tokens"], {"video": video.numpy()})
        for own, other in zip(expected, got, strict=True):
            scale = own.abs().max().item()
            torch.testing.assert_close(torch.from_numpy(other), own, rtol=0, atol=1e-5 * scale)


@torch.no_grad()
@pytest.mark.parametrize(
    "settings",
    [MODEL1 | SHALLOW, MODEL2 | SHALLOW2 | ROTARY, MODEL3 | SHALLOW | CAUSAL, MODEL4 | SHALLOW],
    ids=["1", "2", "3", "4"],
)
def test_programs_give_the_modules_numbers_to_the_bit(settings):
    encoder = small(**settings)
    program = export_graph(encoder).module()
    for batch in (1, 3, 5):
        video = clip(batch).float()
        for own, other in zip(TensorEncoder(encoder)(video), program(video), strict=True):
            torch.testing.assert_close(other, own, rtol=0, atol=0)


def test_programs_are_of_the_eval_mode_and_leave_the_encoder_in_its_own():
    encoder = small(**MODEL1 | SHALLOW, patch_dropout=0.5, mlp_dropout=0.5, drop_path=0.5)
    encoder.train()
    encoder.trunk.norm.eval()
    program = export_graph(encoder, dynamic_batch=False).module()
    assert encoder.training
    assert encoder.trunk.blocks[0].training
    assert not encoder.trunk.norm.training
    video = clip(1).float()
    with torch.no_grad():
        pooled = program(video)[0]
        torch.testing.assert_close(pooled, encoder.eval()(video).pooled, rtol=0, atol=0)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return an exported directory, and the graph that the command makes from it."""
    folder = tmp_path_factory.mktemp("exported")
    encoder = small(**MODEL3 | SHALLOW)
    encoder.save_pretrained(folder / "encoder", preprocessing={"mean": [0.5], "fps": 25.0})
    done = subprocess.run(
        [sys.executable, "-m", "ssl_vivit.encoders.onnx", "encoder", "out/e.onnx"],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return encoder, folder, done.stdout


def test_the_command_names_inputs_and_outputs_and_keeps_the_settings(exported):
    encoder, folder, said = exported
    model = onnx.load(folder / "out" / "e.onnx")
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes == {
        "video": ["batch", 3, 8, 16, 24],
        "pooled": ["batch", 24],
        "tokens": ["batch", 4, 6, 24],
    }
    kept = {entry.key: json.loads(entry.value) for entry in model.metadata_props}
    assert kept["config"] == encoder.config.to_dict()
    assert kept["preprocessing"] == {"mean": [0.5], "fps": 25.0}
    assert said == "out/e.onnx: video (batch, 3, 8, 16, 24) → pooled, tokens\n"
    assert [file.name for file in (folder / "out").iterdir()] == ["e.onnx"]


def test_graphs_contain_no_local_paths_and_are_reproducible(exported, tmp_path):
    encoder, folder, _ = exported
    encoder.preprocessing = {"mean": [0.5], "fps": 25.0}
    written = (folder / "out" / "e.onnx").read_bytes()
    assert str(ROOT).encode() not in written
    assert sys.prefix.encode() not in written
    export_onnx(encoder, tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == written


@torch.no_grad()
@pytest.mark.parametrize("settings", [MODEL1 | SHALLOW, MODEL2 | SHALLOW2], ids=["1", "2"])
def test_a_classifier_gives_its_logits_as_a_program_and_as_a_graph(settings, tmp_path):
    model = VideoClassifier(small(**settings), 5, representation_size=7, drop_rate=0.5).train()
    program = export_graph(model).module()
    export_onnx(model, tmp_path / "c.onnx")
    assert model.training
    session = onnxruntime.InferenceSession(tmp_path / "c.onnx")
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", ["batch", 5])]
    model.eval()
    for batch in (1, 3):
        video = clip(batch).float()
        hidden = model.representation(model.encoder(video).pooled).tanh()
        logits = hidden @ model.head.weight.T + model.head.bias
        torch.testing.assert_close(program(video), logits, rtol=0, atol=1e-5)
        (got,) = session.run(None, {"video": video.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_command_exports_logits_of_a_classifier(tmp_path, capsys):
    model = VideoClassifier(small(**MODEL1 | SHALLOW), num_classes=5).eval()
    model.save_pretrained(tmp_path / "classifier")
    assert graph.main([str(tmp_path / "classifier"), str(tmp_path / "c.onnx")]) == 0
    assert capsys.readouterr().out.endswith("video (batch, 3, 8, 16, 24) → logits\n")
    video = clip(2).float()
    session = onnxruntime.InferenceSession(tmp_path / "c.onnx")
    got = torch.from_numpy(session.run(["logits"], {"video": video.numpy()})[0])
    torch.testing.assert_close(got, model(video), rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_classifier_without_classes_gives_features_and_one_of_zeros_is_written(tmp_path):
    model = VideoClassifier(small(**MODEL1 | SHALLOW), num_classes=0)
    export_onnx(model, tmp_path / "f.onnx")
    assert [o.name for o in onnxruntime.InferenceSession(tmp_path / "f.onnx").get_outputs()] == [
        "features"
    ]
    model.reset_classifier(3)
    model.head.weight.zero_()
    export_onnx(model, tmp_path / "zeros.onnx")


def test_other_models_are_refused_in_a_line(tmp_path):
    for export in (export_graph, lambda model: export_onnx(model, tmp_path / "e.onnx")):
        with pytest.raises(
            TypeError, match=r"a Linear cannot be exported.*ViViT or a VideoClassif"
        ):
            export(torch.nn.Linear(2, 2))


@torch.no_grad()
def test_weights_in_a_second_file(tmp_path):
    encoder = small(**MODEL1 | SHALLOW)
    path = tmp_path / "e.onnx"
    path.write_text("an older one")
    export_onnx(encoder, path, external_data=True)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["e.onnx", "e.onnx.data"]
    assert (tmp_path / "e.onnx.data").stat().st_size > path.stat().st_size / 2
    video = clip(3).float()
    pooled = onnxruntime.InferenceSession(path).run(["pooled"], {"video": video.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(pooled), encoder(video).pooled, rtol=0, atol=1e-5)


def test_a_graph_with_other_numbers_is_not_written(tmp_path, monkeypatch):
    encoder = small(**MODEL1 | SHALLOW)
    program = export_graph(small(**MODEL1 | SHALLOW | {"norm_eps": 0.1}))
    monkeypatch.setattr(graph, "export_graph", lambda encoder: program)
    path = tmp_path / "e.onnx"
    path.write_text("an older one")
    with pytest.raises(RuntimeError, match=r"pooled of 1 clips differ .* nothing was written"):
        export_onnx(encoder, path)
    assert [file.name for file in tmp_path.iterdir()] == ["e.onnx"]
    assert path.read_text() == "an older one"


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (
            lambda e: e.bfloat16(),
            {},
            r"weights are bfloat16, .* pass model\.float\(\)",
        ),
        (lambda e: e.double(), {}, r"weights are float64"),
        (lambda e: e, {"opset": 5}, r"opset 5 cannot be written; use 18 to \d+"),
        (lambda e: e, {"path": ""}, r"is a directory; give the name of a file"),
    ],
)
def test_what_cannot_be_written_is_refused(change, options, message, tmp_path):
    encoder = change(small(**MODEL1 | SHALLOW))
    path = tmp_path / options.pop("path", "e.onnx")
    with pytest.raises(ValueError, match=message):
        export_onnx(encoder, path, **options)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named_with_the_extra_that_brings_them(tmp_path, monkeypatch, capsys):
    small(**MODEL1 | SHALLOW).save_pretrained(tmp_path / "encoder")
    found = graph.importlib.util.find_spec
    monkeypatch.setattr(
        graph.importlib.util, "find_spec", lambda name: None if name == "onnx" else found(name)
    )
    assert graph.main([str(tmp_path / "encoder"), str(tmp_path / "e.onnx")]) == 2
    expected = "error: ONNX export needs onnx; run `pip install 'ssl_vivit[onnx]'`\n"
    assert capsys.readouterr().err == expected


def test_mistakes_of_the_command_are_one_line(tmp_path, capsys):
    assert graph.main([str(tmp_path), str(tmp_path / "e.onnx")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "no exported encoder" in error
    assert error.count("\n") == 1
    with pytest.raises(SystemExit) as status:
        graph.main([str(tmp_path)])
    assert status.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
