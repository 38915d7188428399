"""Configs from files and dotted options; mistakes end with one line that names the allowed values."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ssl_vivit import command
from ssl_vivit.errors import RunError
from ssl_vivit.training import TrainingConfig, parse, run, to_plain


@dataclass
class EncoderChoice:
    """Which encoder.

    Args:
        name: a named size.
        overrides: fields of its config.
    """

    name: str = "vivit_tiny"
    overrides: dict[str, Any] = field(default_factory=dict)


@dataclass
class Recipe:
    """A job.

    Args:
        encoder: the model.
        training: the run.
    """

    encoder: EncoderChoice = field(default_factory=EncoderChoice)
    training: TrainingConfig = field(default_factory=TrainingConfig)


def test_defaults() -> None:
    assert parse(Recipe, []) == Recipe()


def test_dotted_options_and_dictionary_entries() -> None:
    recipe = parse(
        Recipe,
        [
            "--encoder.name=vivit_small",
            "--encoder.overrides.variant=factorized_self_attention",
            "--encoder.overrides.image_size=[36, 64]",
            "--training.optimizer.learning_rate=1e-3",
            "--training.clip_grad_norm=null",
            "--training.optimizer.betas=[0.9, 0.95]",
        ],
    )
    assert recipe.encoder == EncoderChoice(
        "vivit_small", {"variant": "factorized_self_attention", "image_size": [36, 64]}
    )
    assert recipe.training.optimizer.learning_rate == 1e-3
    assert recipe.training.optimizer.betas == (0.9, 0.95)
    assert recipe.training.clip_grad_norm is None


def test_settings_of_training_need_no_prefix() -> None:
    short = ["--resume", "auto", "--tracker=none", "--optimizer.name", "lars"]
    full = ["--training.resume", "auto", "--training.tracker=none",
            "--training.optimizer.name", "lars"]  # fmt: skip
    assert parse(Recipe, short) == parse(Recipe, full) != Recipe()


def test_lists_may_be_several_words() -> None:
    @dataclass
    class Lists:
        """Lists.

        Args:
            names: any.
            shards: one or several.
            sizes: numbers.
        """

        names: list[str] | None = None
        shards: str | list[str] | None = None
        sizes: list[float] = field(default_factory=list)

    told = ["--names", "a", "--shards", "b", "c", "--sizes", "0.5", "1"]
    assert parse(Lists, told) == Lists(["a"], ["b", "c"], [0.5, 1.0])
    told = ["--names", '["a", "b"]', "--shards", "b", "--sizes", "[2]"]
    assert parse(Lists, told) == Lists(["a", "b"], "b", [2.0])
    assert parse(Lists, ["--names", "null"]) == Lists()


def test_a_preset_is_used_without_a_config(tmp_path: Path) -> None:
    preset, other = tmp_path / "preset.yaml", tmp_path / "other.yaml"
    preset.write_text("training: {steps: 7, seed: 3}\n")
    other.write_text("training: {steps: 8}\n")
    assert parse(Recipe, ["--seed", "4"], preset=preset).training.steps == 7
    named = parse(Recipe, [f"--config={other}"], preset=preset).training
    assert (named.steps, named.seed) == (8, TrainingConfig().seed)


def test_options_override_files_at_any_position(tmp_path: Path) -> None:
    file, later = tmp_path / "a.yaml", tmp_path / "b[1].yaml"
    file.write_text("training: {steps: 7, seed: 3}\n")
    later.write_text("training: {seed: 4}\n")
    for words in (
        ["--steps", "9", "--config", str(file)],
        ["--config", str(file), "--steps", "9"],
        ["--training.steps=9", f"--config={file}"],
    ):
        assert parse(Recipe, words).training == TrainingConfig(steps=9, seed=3)
    words = ["--config", str(file), "--steps", "9", "--config", str(later)]
    assert parse(Recipe, words).training == TrainingConfig(steps=9, seed=4)


@pytest.fixture
def presets(tmp_path: Path) -> Path:
    folder = tmp_path / "configs"
    folder.mkdir()
    for name, steps in (("job_sample", 7), ("job_small", 8), ("other_small", 9)):
        (folder / f"{name}.yaml").write_text(f"training: {{steps: {steps}}}\n")
    return folder / "job_sample.yaml"


@pytest.mark.parametrize("name", ["job_small", "job_small.yaml", "configs/job_small.yaml"])
def test_presets_are_found_by_name(presets: Path, name: str) -> None:
    assert parse(Recipe, ["--config", name], preset=presets).training.steps == 8


def test_a_missing_file_lists_the_presets(presets: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parse(Recipe, ["--config", "job_smal"], preset=presets)
    (line,) = capsys.readouterr().err.splitlines()
    assert "did you mean job_small? presets of this recipe: job_sample, job_small" in line
    assert "other_small" not in line
    with pytest.raises(SystemExit):
        parse(Recipe, ["--config", "--steps", "3"], preset=presets)
    assert "--config names no file" in capsys.readouterr().err


def test_a_preset_of_another_recipe_names_that_recipe(
    presets: Path, capsys: pytest.CaptureFixture
) -> None:
    for script in ("try_other", "job"):
        (presets.parent.parent / f"{script}.py").touch()
    with pytest.raises(SystemExit):
        parse(Recipe, ["--config", "other_small"], preset=presets)
    (line,) = capsys.readouterr().err.splitlines()
    folder = presets.parent.parent.name
    assert line == (
        f"error: --config other_small is a preset of {folder}/try_other.py; presets of this recipe: "
        "job_sample, job_small"
    )


@pytest.mark.parametrize(
    ("option", "meant"),
    [
        ("--lr", "optimizer.learning_rate"),
        ("--training.lr", "optimizer.learning_rate"),
        ("--weight_decay", "optimizer.weight_decay"),
        ("--warmup", "optimizer.warmup_steps"),
        ("--batch_size", "total_batch_size"),
    ],
)
def test_common_names_of_settings_get_a_hint(
    capsys: pytest.CaptureFixture, option: str, meant: str
) -> None:
    with pytest.raises(SystemExit):
        parse(Recipe, [option, "1"])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith(f"; did you mean {meant}? --help lists all settings")
    assert parse(Recipe, [f"--{meant}", "1"]) != Recipe()


def test_help_shows_what_a_bare_call_uses(presets: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("docstring_parser", reason="of jsonargparse's extra signatures")
    for words, steps in (([], 7), (["--config", "job_small"], 8)):
        with pytest.raises(SystemExit):
            parse(Recipe, [*words, "--help"], preset=presets)
        text = " ".join(capsys.readouterr().out.split())
        assert f"optimisation steps. (type: int, default: {steps})" in text


def test_help_describes_a_short_form(capsys: pytest.CaptureFixture) -> None:
    @dataclass
    class Short:
        """Short forms.

        Args:
            encoder: the model.
        """

        encoder: EncoderChoice = field(
            default_factory=EncoderChoice, metadata={"--encoder": "name"}
        )

    with pytest.raises(SystemExit):
        parse(Short, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "--encoder NAME short for --encoder.name" in text
    assert "--encoder CONFIG" not in text
    assert parse(Short, ["--encoder", "vivit_base"]).encoder.name == "vivit_base"


def test_a_config_that_another_recipe_wrote_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("# written by recipes/other.py\nsize: 3\n")
    mistake = "unknown setting size"
    for script, line in (
        (
            "recipes/job.py",
            f"--config {file} was written by recipes/other.py, which has other settings "
            f"({mistake}); start recipes/other.py with it, or give another --config",
        ),
        ("elsewhere/other.py", f"{mistake}; allowed here: encoder, training"),
    ):
        monkeypatch.setattr(sys, "argv", [script])
        with pytest.raises(SystemExit):
            parse(Recipe, ["--config", str(file)])
        assert capsys.readouterr().err == f"error: {line}\n"


def test_the_first_line_names_the_config(
    presets: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["job.py"])
    parse(Recipe, preset=presets)
    line = "config   job_sample, the preset for the sample data (no --config given)\n"
    assert capsys.readouterr().err == line
    monkeypatch.setattr(sys, "argv", ["job.py", "--config", "job_small"])
    parse(Recipe, preset=presets)
    assert capsys.readouterr().err == f"config   {presets.parent / 'job_small.yaml'}\n"


def test_entries_of_dictionaries_and_tuples_may_be_several_words() -> None:
    words = ["--encoder.overrides.image_size", "36", "64", "--encoder.overrides.depth", "3",
             "--training.optimizer.betas", "0.5", "0.6"]  # fmt: skip
    recipe = parse(Recipe, words)
    assert recipe.encoder.overrides == {"image_size": [36, 64], "depth": 3}
    assert recipe.training.optimizer.betas == (0.5, 0.6)


def test_files_then_options_and_round_trip(tmp_path: Path) -> None:
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text("encoder: {name: vivit_base, overrides: {depth: 3}}\ntraining: {steps: 7}\n")
    second.write_text("training: {seed: 5, optimizer: {name: lars}}\n")
    options = ["--config", str(first), "--config", str(second), "--training.steps", "9"]
    recipe = parse(Recipe, options)
    assert recipe.encoder == EncoderChoice("vivit_base", {"depth": 3})
    assert (recipe.training.steps, recipe.training.seed) == (9, 5)
    assert recipe.training.optimizer.name == "lars"
    whole = tmp_path / "whole.yaml"
    whole.write_text(yaml.safe_dump(to_plain(recipe)))
    assert parse(Recipe, ["--config", str(whole)]) == recipe


def test_print_config_is_a_config(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(Recipe, ["--training.steps", "3", "--print_config"])
    assert ended.value.code == 0
    path = tmp_path / "printed.yaml"
    path.write_text(capsys.readouterr().out)
    assert parse(Recipe, ["--config", str(path)]).training.steps == 3


def test_help_explains_every_option(capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("docstring_parser", reason="of jsonargparse's extra signatures")
    with pytest.raises(SystemExit):
        parse(Recipe, ["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert "micro-batches per process and step" in text
    assert "peak learning rate at total_batch_size 256" in text


@pytest.mark.parametrize(
    ("options", "file", "words"),
    [
        (["--stepz", "4"], None, ["unknown setting stepz; did you mean steps? --help lists all"]),
        (["--steps", "-5"], None, ["training.steps is -5", "at least 1"]),
        (["--training.seed", "-1"], None, ["training.seed is -1", "at least 0"]),
        (["--training.stepz", "4"], None, ["training.stepz", "mean training.steps?", "log_every"]),
        (["--bogus=4"], None, ["bogus", "allowed here: encoder, training"]),
        (
            ["--training.optimizer.lr=1"],
            None,
            [
                "did you mean training.optimizer.learning_rate? allowed here: training.optimizer.betas"
            ],
        ),
        ([], "encoder: {nam: x}", ["encoder.nam", "encoder.name", "encoder.overrides"]),
        ([], "enkoder: {name: x}", ["enkoder", "encoder, training"]),
        ([], "training: {optimizer: {lr: 1}}", ["training.optimizer.lr", "learning_rate"]),
        ([], "training: {steps: many}", ["training.steps", "int", "many"]),
        ([], "training: [1,", ["config"]),
        (
            ["--training.optimizer.name=sgd"],
            None,
            ["training.optimizer.name", "adamw", "lars", "sgd"],
        ),
        (["--training.precision=fp64"], None, ["training.precision", "auto", "bf16", "fp64"]),
        (
            ["--training.clip_grad_norm=no"],
            None,
            ["training.clip_grad_norm", "float", "null", "no"],
        ),
        (["--training.steps"], None, ["--training.steps", "expected one argument"]),
        (["--config", "absent.yaml"], None, ["config", "absent.yaml"]),
        (["steps=4"], None, ["steps=4", "--name value"]),
        (
            [],
            f"training: {{steps: {list(range(99))}}}",
            ["expected int; got [0, 1, 2", "20, 21, 2 …"],
        ),
    ],
)
def test_mistakes_are_one_line(
    options: list[str],
    file: str | None,
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
) -> None:
    if file is not None:
        path = tmp_path / "given.yaml"
        path.write_text(file)
        options = ["--config", str(path)]
    with pytest.raises(SystemExit) as ended:
        parse(Recipe, options)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    lines = captured.err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize("error", [RunError("mend\nthis"), ValueError("mend this")])
def test_run_turns_mistakes_into_a_line_and_a_status(
    error: Exception, capsys: pytest.CaptureFixture
) -> None:
    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as ended:
        run(main)
    assert ended.value.code == 2
    assert capsys.readouterr().err == "error: mend this\n"


def test_run_does_not_catch_errors_of_the_program() -> None:
    with pytest.raises(ZeroDivisionError):
        run(lambda: 1 / 0)
    run(lambda: None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "settings.yaml cannot be read: No such file"),
        ("no settings", "settings.yaml contains no settings"),
        ("", "settings.yaml contains no settings"),
        ("[1, 2", "settings.yaml is not a valid YAML file"),
    ],
)
def test_config_file_that_is_none(tmp_path, capsys, content, message) -> None:
    path = tmp_path / "settings.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SystemExit) as end:
        parse(Recipe, ["--config", str(path)])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_a_stopped_run_names_the_command_that_continues_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    def stop() -> None:
        parse(Recipe)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "continued_by", None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    for words, rest in (
        (["--steps", "3"], "--steps 3 --run_dir runs/job --resume auto"),
        (["--resume", "runs/a b", "--run_dir", "x y"], "--run_dir 'x y' --resume auto"),
        (["--training.resume=auto", "--training.run_dir=x"], "--training.run_dir=x --resume auto"),
    ):
        monkeypatch.setattr(sys, "argv", ["recipes/job.py", *words])
        with pytest.raises(SystemExit):
            run(stop)
        line = (
            f"interrupted; files saved before are kept; continue with python recipes/job.py {rest}"
        )
        assert capsys.readouterr().err == f"error: {line}\n"
    monkeypatch.setenv("LOCAL_RANK", "0")
    parse(Recipe)
    assert str(command.continued_by).startswith("the same launcher and recipes/job.py --training")


def test_the_command_of_a_run_leaves_out_that_it_was_continued(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(command, "started_by", None)
    monkeypatch.setattr(command, "continued_by", None)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    words = ["recipes/job.py", "--steps", "3", "--resume", "auto", "--run_dir", "runs/a b"]
    monkeypatch.setattr(sys, "argv", words)
    parse(Recipe)
    assert command.started_by == "python recipes/job.py --steps 3 --run_dir 'runs/a b'"
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    parse(Recipe)
    assert command.started_by == (
        "accelerate launch --num_processes 4 recipes/job.py --steps 3 --run_dir 'runs/a b'"
    )


def test_a_config_without_the_run_directory_is_refused_on_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "checkpoints").mkdir()
    file = tmp_path / "config.yaml"
    file.write_text("training: {steps: 7}\n")
    words = ["--config", str(file)]
    with pytest.raises(SystemExit):
        parse(Recipe, [*words, "--resume", "auto"])
    (line,) = capsys.readouterr().err.splitlines()
    assert f"add --run_dir {tmp_path} to continue that run, or another --run_dir" in line
    named = parse(Recipe, [*words, "--resume", "auto", "--run_dir", str(tmp_path)]).training
    assert (named.steps, named.run_dir) == (7, str(tmp_path))
    assert parse(Recipe, words).training.steps == 7  # the run is repeated elsewhere


@pytest.mark.parametrize(
    ("words", "content", "group"),
    [
        (["--training=secret"], None, "training"),
        (["--training", "secret"], None, "training"),
        (["--training.optimizer", "secret"], None, "training.optimizer"),
        (["--optimizer.name", "lars", "--training", "null"], None, "training"),
        ([], "training: secret", "training"),
        ([], "training: {optimizer: secret}", "training.optimizer"),
        ([], "training.optimizer: secret", "training.optimizer"),
        ([], "training:", "training"),
    ],
)
def test_a_group_of_settings_is_not_read_as_a_file(
    words: list[str],
    content: str | None,
    group: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("steps: 17\n")  # jsonargparse would take it
    if content is not None:
        (tmp_path / "given.yaml").write_text(content)
        words = ["--config", "given.yaml"]
    with pytest.raises(SystemExit) as ended:
        parse(Recipe, words)
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {group} is a group of settings and takes neither a value nor a")
    assert "17" not in line


def test_a_config_opens_no_other_file_and_imports_no_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret").write_text("steps: 17\n")
    for content, name in (
        ("config: secret", "config"),
        ("training: {class_path: antigravity.Config}", "training.class_path"),
    ):
        (tmp_path / "given.yaml").write_text(content)
        with pytest.raises(SystemExit):
            parse(Recipe, ["--config", "given.yaml"])
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: unknown setting {name}")
    assert "antigravity" not in sys.modules
    assert parse(Recipe, ["--training", "{steps: 3}"]).training.steps == 3


def test_settings_do_not_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JSONARGPARSE_DEFAULT_ENV", "true")
    for prefix in ("PYTEST", "PYTEST_", "__MAIN__", "__MAIN___"):
        monkeypatch.setenv(f"{prefix}TRAINING", "/etc/passwd")
        monkeypatch.setenv(f"{prefix}TRAINING__STEPS", "3")
    assert parse(Recipe, []) == Recipe()


@pytest.mark.parametrize("kind", ["pipe", "directory", "binary", "huge"])
def test_a_config_of_another_kind(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "given"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "binary":
        path.write_bytes(b"\x7fELF\xff\x00")
    else:
        with path.open("wb") as file:
            file.truncate(2**40)
    with pytest.raises(SystemExit) as ended:
        parse(Recipe, ["--config", str(path)])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: --config {path} is not a valid YAML file: ")
