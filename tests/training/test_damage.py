"""Damaged checkpoints and run directories are reported in one line, and nothing is overwritten."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from toy_objective import toy, toy_batches

from ssl_vivit.errors import RunError
from ssl_vivit.training import Periodic, fit
from ssl_vivit.training.checkpoints.files import fault, file_fingerprint
from ssl_vivit.training.metrics.tracking import Tracking, cut_off, read_metrics


def contents(run_dir: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}


def refused(config, run_dir: Path, **changes) -> str:
    """Return the one line of a refused run, and check that its directory is unchanged."""
    before = contents(run_dir)
    with pytest.raises(RunError) as caught:
        fit(toy(), toy_batches(), config(**{"steps": 12, "resume": "auto", **changes}))
    assert contents(run_dir) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def run_dir(config) -> Path:
    """Return a run directory with checkpoints of steps 4 and 8."""
    return fit(toy(), toy_batches(), config(steps=8)).run_dir


def test_any_flipped_bit_of_a_manifest_is_detected_or_has_no_effect(run_dir: Path) -> None:
    checkpoint = run_dir / "checkpoints" / "step_00000008"
    manifest = checkpoint / "manifest.json"
    whole = manifest.read_bytes()
    harmless = 0
    for place in range(len(whole)):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        manifest.write_bytes(damaged)
        harmless += fault(checkpoint) is None
    # Space between words, the step, and the last file's name where it is not needed.
    assert 0 < harmless < 0.3 * len(whole)
    manifest.write_bytes(whole)
    assert fault(checkpoint) is None


@pytest.mark.parametrize("processes", [0, -1, 100, "2"])
def test_a_state_of_more_processes_than_files_is_damaged(processes, run_dir: Path) -> None:
    """The stated number of processes must not become the length of a list."""
    checkpoint = run_dir / "checkpoints" / "step_00000008"
    state, manifest = (checkpoint / name for name in ("state.json", "manifest.json"))
    state.write_text(json.dumps(json.loads(state.read_text()) | {"world_size": processes}))
    facts = json.loads(manifest.read_text())
    facts["files"]["state.json"] = file_fingerprint(state)
    manifest.write_text(json.dumps(facts))
    assert fault(checkpoint) == "state.json is damaged"


MANIFESTS = {
    "no files": ({"step": 8, "files": {}}, "does not name model.safetensors"),
    "a list": ([], "manifest is missing or damaged"),
    "a number": ({"files": 3}, "manifest is missing or damaged"),
    "files without facts": ({"files": {"state.json": None}}, "manifest is missing or damaged"),
    "another key": ({"files": {"state.json": {"bytez": 1, "crc32": 2}}}, "missing or damaged"),
    "no name": ({"files": {"a\0b": {"bytes": 1, "crc32": 2}}}, "does not name model.safetensors"),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_an_incomplete_manifest_is_refused(run_dir: Path, name: str) -> None:
    content, told = MANIFESTS[name]
    checkpoint = run_dir / "checkpoints" / "step_00000008"
    (checkpoint / "manifest.json").write_text(json.dumps(content))
    assert told in str(fault(checkpoint))


def test_a_manifest_without_the_generators_or_with_a_name_that_no_file_has(run_dir: Path) -> None:
    checkpoint = run_dir / "checkpoints" / "step_00000008"
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    names = manifest["files"]
    (checkpoint / "manifest.json").write_text(
        json.dumps({"files": {k: v for k, v in names.items() if k != "rng_0.json"}})
    )
    assert fault(checkpoint) == "its manifest does not name rng_0.json"
    names["a\0b"] = names["state.json"]
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))
    assert fault(checkpoint) == "a\0b is missing"


def test_a_run_whose_checkpoints_are_all_damaged_is_refused_and_kept(config, run_dir) -> None:
    for checkpoint in (run_dir / "checkpoints").iterdir():
        with (checkpoint / "model.safetensors").open("r+b") as file:
            file.truncate(100)
    line = refused(config, run_dir)
    assert (
        f"no checkpoint in {run_dir / 'checkpoints'} is complete (step_00000008: model.saf" in line
    )
    assert "step_00000004: model.safetensors has 100 of" in line
    assert len(read_metrics(run_dir / "metrics.jsonl")) == 8
    shutil.rmtree(run_dir / "checkpoints")
    assert fit(toy(), toy_batches(), config(steps=4, resume="auto")).step == 4


def test_a_checkpoint_under_the_name_of_another_step_is_skipped(config, run_dir, capfd) -> None:
    checkpoints = run_dir / "checkpoints"
    shutil.copytree(checkpoints / "step_00000004", checkpoints / "step_00000012")
    fit(toy(), toy_batches(), config(steps=9, resume="auto"))
    assert "step_00000012 is skipped: its state.json is of step 4" in capfd.readouterr().err


@pytest.mark.parametrize(("setting", "own", "others"), [("seed", 0, 7), ("total_batch_size", 4, 8)])
def test_a_checkpoint_of_another_run_is_refused(config, run_dir, setting, own, others) -> None:
    size = others if setting == "total_batch_size" else 4
    other = fit(toy(), toy_batches(size=size), config("other", steps=10, **{setting: others}))
    shutil.copytree(other.checkpoint, run_dir / "checkpoints" / other.checkpoint.name)
    line = refused(config, run_dir)
    assert "step_00000010 belongs to another run" in line
    assert f"its state.json has training.{setting} {others}, this run has {own}" in line
    named = config("third", resume=str(other.checkpoint))
    (other.run_dir / "config.yaml").unlink()
    with pytest.raises(RunError, match="belongs to another run"):
        fit(toy(), toy_batches(), named)


TORN = {
    "config.yaml": ["training: {seed: 0", "", "- 1", "a: \x00", "\xff"],
    "contents.json": ['{"data.shards": "a', "", "[]", "\xff"],
}


@pytest.mark.parametrize(
    ("name", "text"), [(n, text) for n, texts in TORN.items() for text in texts]
)
def test_torn_files_of_a_run_are_named(config, run_dir: Path, name: str, text: str) -> None:
    (run_dir / name).write_bytes(text.encode("latin-1"))
    line = refused(config, run_dir)
    assert f"{run_dir / name} is damaged (" in line
    assert "remove it" in line
    os.remove(run_dir / name)
    assert fit(toy(), toy_batches(), config(steps=9, resume="auto")).step == 9


def test_settings_that_a_torn_config_file_lacks_are_named(config, run_dir: Path) -> None:
    path = run_dir / "config.yaml"
    path.write_text(
        "".join(line for line in path.read_text().splitlines(True) if "seed" not in line)
    )
    assert "training.seed (not in config.yaml → 0)" in refused(config, run_dir)


@pytest.mark.parametrize("text", ['{"wandb": "a', "[]", "{}", '{"wandb": 3}'])
def test_a_torn_tracker_file_is_named(config, run_dir: Path, text: str, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    (run_dir / "tracker.json").write_text(text)
    with pytest.raises(RunError) as caught:
        fit(toy(), toy_batches(), config(steps=12, resume="auto", tracker="wandb"))
    assert f"{run_dir / 'tracker.json'} is damaged (" in str(caught.value)
    assert "remove it to start a new run in wandb" in str(caught.value)
    assert len(read_metrics(run_dir / "metrics.jsonl")) == 8


def test_damaged_lines_of_metrics_are_left_out_and_reported(tmp_path: Path, capsys) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = [b'{"step": 0, "a": 1.5}', b'{"step": 2}', b'{"step": 3}']
    damaged = [b'{"step": 1, "a', b"\xff{}", b"7", b'{"stfp": 1}', b'{"step": "1"}', b""]
    lines = [whole[0], *damaged, *whole[1:], b'{"step": 4, "tr']
    path.write_bytes(b"\n".join(lines))
    assert [row["step"] for row in read_metrics(path)] == [0, 2, 3]
    Tracking(tmp_path, "none", "p", {}, first_step=2).close()
    assert path.read_bytes() == b"\n".join(whole[:2]) + b"\n"
    told = f"{path}: damaged lines were removed: 2, 3, 4, 5, 6, 7"
    assert capsys.readouterr().err.strip() == told
    # The line that a killed process was writing is nothing to tell of.
    path.write_bytes(b"\n".join([*whole, b'{"step": 4, "tr']))
    assert cut_off(path, 3) == []
    assert path.read_bytes() == b"\n".join(whole) + b"\n"


@pytest.mark.parametrize("what", ["removed", "moved", "metrics replaced"])
@pytest.mark.parametrize("log_every", [1, 100])
def test_a_run_directory_that_disappears_during_the_run(config, what: str, log_every: int) -> None:
    settings = config(log_every=log_every)
    run_dir = Path(settings.run_dir)

    def disturb(moment) -> None:
        if what == "removed":
            shutil.rmtree(run_dir)
        elif what == "moved":
            os.rename(run_dir, run_dir.with_name("moved"))
        else:
            text = (run_dir / "metrics.jsonl").read_text()
            os.remove(run_dir / "metrics.jsonl")
            (run_dir / "metrics.jsonl").write_text(text)

    with pytest.raises(RunError, match=r"metrics\.jsonl was removed, moved or replaced"):
        fit(toy(), toy_batches(), settings, periodic=[Periodic(6, disturb, at_end=False)])
    if what == "moved":
        os.rename(run_dir.with_name("moved"), run_dir)
        settings.resume = "auto"
        assert fit(toy(), toy_batches(), settings).step == 12
