"""Mistakes on the command lines of recipes and evaluations end with one line and status 2.

An expected line that ends with … is only the start; names of settings and presets follow.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest
from session_folders import folder as session_folder

from ssl_vivit.training import run

GROUP = (
    "training is a group of settings and takes neither a value nor a file; give its settings one by "
    "one, such as --training.run_dir, or in a file by --config FILE"
)
NO_TAR = "pack shards with: python -m data_prep.clevrer pack --videos VIDEOS --out shards/"
DEPTH = "damaged/config.json: depth 1000000000 must be a whole number of at most 1,000; export the "
NO_RUN = (
    "holds none of metrics.jsonl, config.yaml, scores.json, comparison.json, probes.json, "
    "trials.csv; give a run's directory"
)
HELP = "see python -m ssl_vivit.evaluation.attention --help"
NO_RESPONSES = (
    "session unanswered has no data/responses; a session needs data/videos, data/responses, "
    "meta/neurons/unit_ids.npy and meta/trials/tiers.npy"
)
NO_MODEL = (
    "model: nowhere is no model of neurons: there is no such directory; give the directory that a "
    "run writes as RUN/model"
)
AN_ENCODER = (
    "model: damaged holds an encoder and no model of neurons; fine-tune it with "
    "recipes/finetune_neural.py --encoder damaged"
)
EMPTY = (
    "model: empty is no model of neurons: config.json is missing; give the directory that a run "
    "writes as RUN/model"
)
NO_FOLDER = "session nowhere is not a folder; give a folder in the Sensorium layout"
PRECISION = "training.precision: expected one of 'auto', 'fp32', 'bf16', 'fp16'; got fp64"
CORE = "core: expected one of 'vivit', 'ln', 'ln_separable', 'energy', 'resnet', 'x3d'; got vit"
DEVICE = (
    "a GPU is used if there is one: set CUDA_VISIBLE_DEVICES=1 in the environment to use GPU 1, or "
    "CUDA_VISIBLE_DEVICES= to use the CPU"
)
UNKNOWN_PRESET = (
    "--config none: there is no such file, and no preset of that name; presets of this …"
)

# Command → words → the line.
TABLE: dict[str, dict[str, str]] = {
    **{
        recipe: {
            "--stepz 3": "unknown setting stepz; did you mean steps? --help lists all settings",
            "--steps many": "training.steps: expected int; got many",
            "--device cuda": f"unknown setting device; {DEVICE}",
            "--precision fp64": PRECISION,
            "--config none": UNKNOWN_PRESET,
            "--config empty": "--config empty is not a valid YAML file: it is not a regular file",
            "--training file.txt": GROUP,
            "--training=file.txt": GROUP,
            "--config names_a_file.yaml": GROUP,
            "--data.shards nowhere/*.tar": f"--data.shards 'nowhere/*.tar' matches no .tar file; {NO_TAR}",
            "--data.shards empty": f"--data.shards 'empty' matches no .tar file; {NO_TAR}",
            "--data.shards file.txt": f"--data.shards 'file.txt' is not a .tar file; {NO_TAR}",
        }
        for recipe in ("recipes.simclr_clevrer", "recipes.mae_clevrer")
    },
    **{
        recipe: {
            "--stepz 3": "unknown setting stepz; did you mean steps? --help lists all settings",
            "--steps many": "training.steps: expected int; got many",
            "--training.device cuda": f"unknown setting training.device; {DEVICE}",
            "--core vit": CORE,
            "--config none": UNKNOWN_PRESET,
            "--training file.txt": GROUP,
            "--sessions nowhere": NO_FOLDER,
            "--sessions unanswered": NO_RESPONSES,
        }
        for recipe in (
            "recipes.finetune_neural", "recipes.compare_neural", "recipes.search_neural",
        )
    },
    "recipes.evaluate_neural": {
        "damaged --stepz 3": "unknown setting stepz; allowed here: …",
        "damaged --batch_size many": "batch_size: expected int; got many",
        "nowhere": NO_MODEL,
        "empty": EMPTY,
        "damaged": AN_ENCODER,
    },
    "recipes.extract_features": {
        "--stepz 3": "unknown setting stepz; allowed here: …",
        "--batch_size many": "batch_size: expected int; got many",
        "--features none": "features: expected one of …",
        "--encoder damaged": f"{DEPTH}encoder again",
        "nowhere": "unexpected argument nowhere; give settings as --name value",
    },
    "recipes.probe_clevrer": {
        "--stepz 3": "unknown setting stepz; allowed here: …",
        "--batch_size many": "batch_size: expected int; got many",
        "--encoders damaged": f"{DEPTH}encoder again",
        "--data.shards empty": f"--data.shards 'empty' matches no .tar file; {NO_TAR}",
        "--encoders nowhere*": "--encoders nowhere* matches no directory; check the pattern",
    },
    "ssl_vivit.evaluation.attention.command": {
        "damaged": f"the following arguments are required: video, out; {HELP}",
        "damaged v.mp4 a.png --stepz 3": f"unknown option --stepz; {HELP}",
        "damaged v.mp4 a.png --columns many": (
            f"argument --columns: invalid int value: 'many'; {HELP}"
        ),
        "damaged v.mp4 a.png --columns 0": f"--columns is 0; it must be 1 or more; {HELP}",
        "damaged v.mp4 a.png": f"{DEPTH}encoder again",
        "empty v.mp4 a.png": (
            "empty is no exported encoder: config.json is missing; give the directory that a run "
            "writes as RUN/encoder"
        ),
    },
    **{
        f"ssl_vivit.evaluation.{command}.command": {
            "damaged --stepz 3": "unknown setting stepz; …",
            "damaged --draw many": "draw: expected int; got many",
            "nowhere --out out": NO_MODEL,
            "empty --out out": EMPTY,
            "damaged --out out": AN_ENCODER,
            "damaged --out file.txt": "--out file.txt is a file; choose another --out",
        }
        for command in ("fields", "stimuli", "tuning")
    },
    "ssl_vivit.evaluation.report.command": {
        "empty --stepz 3": "unknown setting stepz; allowed here: compare, draw, out, run, sessions",
        "empty --draw many": "draw: expected int; got many",
        "nowhere": "run: nowhere is no directory; give a run's directory",
        "file.txt": "run: file.txt is no directory; give a run's directory",
        "empty": f"run: empty {NO_RUN}",
    },
}  # fmt: skip
# Of one command alone.
TABLE["recipes.simclr_clevrer"]["--data.clip.views 3"] = (
    "--data.clip.views is 3; SimCLR contrasts two views: set it to 2"
)
TABLE["recipes.compare_neural"]["--encoder damaged"] = (
    "--encoder damaged: give encoders to compare by --encoders instead"
)
TABLE["recipes.search_neural"]["--trials 0"] = (
    "nothing to search: give --trials above 0, and --space"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with a file of each kind that the table of mistakes names."""
    made = tmp_path_factory.mktemp("mistakes")
    (made / "empty").mkdir()
    (made / "file.txt").write_text("a secret: of the user\n")
    (made / "names_a_file.yaml").write_text("training: file.txt\n")
    (made / "damaged").mkdir()
    settings = {"format": 1, "encoder": {"variant": "joint", "depth": 10**9}}
    (made / "damaged" / "config.json").write_text(json.dumps(settings))
    (made / "damaged" / "model.safetensors").write_bytes(b"no weights")
    answered = session_folder(made, "unanswered")
    (answered / "data" / "responses").rename(made / "responses")
    return made


@pytest.mark.parametrize(
    ("command", "words", "line"),
    [(command, words, line) for command, rows in TABLE.items() for words, line in rows.items()],
)
def test_a_mistake_is_one_line(command, words, line, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    arguments = words.split()
    trains = command.startswith("recipes.") and "--sessions" in arguments
    if trains:
        arguments += ["--run_dir", str(tmp_path / "run"), "--tracker", "none"]
    monkeypatch.setattr(sys, "argv", [f"{command.rpartition('.')[2]}.py", *arguments])
    main = importlib.import_module(command).main
    with pytest.raises(SystemExit) as ended:
        run((lambda: sys.exit(main())) if "attention" in command else main)
    assert ended.value.code == 2
    told = [text for text in capsys.readouterr().err.splitlines() if "config   " not in text]
    assert len(told) == 1, told
    expected = f"error: {line}"
    if line.endswith("…"):
        assert told[0].startswith(expected.removesuffix("…"))
    else:
        assert told[0] == expected
    assert not list(tmp_path.rglob("*.safetensors"))
