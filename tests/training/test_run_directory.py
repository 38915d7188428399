"""What is put into a run's directory, and what stays there."""

from ssl_vivit.training.run_directory import place


def test_a_placed_directory_replaces_its_own_files_and_keeps_others(tmp_path):
    source, target = tmp_path / "checkpoint" / "encoder", tmp_path / "encoder"
    source.mkdir(parents=True)
    (source / "model.safetensors").write_text("new")
    place(source, target)
    assert [path.name for path in target.iterdir()] == ["model.safetensors"]
    (target / "encoder.onnx").write_text("mine")
    (source / "model.safetensors").write_text("newer")
    place(source, target)
    assert (target / "model.safetensors").read_text() == "newer"
    assert (target / "encoder.onnx").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "encoder"]
