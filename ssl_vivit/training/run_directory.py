"""The directory of a run: its config, and the checkpoint that the run continues from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

from ssl_vivit import command
from ssl_vivit.errors import RunError
from ssl_vivit.files import read_json, replaced_directory, write_json, write_text
from ssl_vivit.nested_text import read_yaml_text
from ssl_vivit.run_lock import LOCK, refuse_locked
from ssl_vivit.training.checkpoints.files import (
    STATE,
    fault,
    file_fingerprint,
    later_than,
    newest_whole,
    step_of,
    sweep,
)
from ssl_vivit.training.config import TrainingConfig, run_directory

# Settings that only name a run. Two configs that differ only in these describe one run.
NAMES = ("name", "training.run_dir", "training.resume")
FREE_ON_RESUME = (
    "training.steps",
    "training.accumulation",
    "training.compile",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.log_every",
    "training.profile",
    "training.tracker",
    "training.project",
    "tuning.feature_cache",
)
FREE_ENDINGS = ("workers", "num_workers", "cache_dir", "stall_timeout")
# File with a digest of the run's data and initial weights for each setting that names them.
CONTENTS = "contents.json"
ENCODER = "encoder.path"
CORE = "core_from"
DATA = ("data.shards", "data.sessions")
# Settings that earlier versions lacked and that do not affect the runs of those versions.
NEWER = ("data.short_videos",)
# Setting that earlier versions lacked → the value that describes their behaviour.
EARLIER = {"data.session_weights": "responses"}


def open_run(
    config: TrainingConfig,
    run_config: dict[str, Any],
    warn: Callable[[str], None],
    contents: Mapping[str, str] | None = None,
) -> Path | None:
    """Check that the run may use its directory, and write config.yaml and contents.json there.

    The caller must hold the lock of the directory.

    Args:
        config: settings of training.
        run_config: the recipe's full resolved config.
        warn: called with a line about each newer checkpoint that is incomplete.
        contents: for each setting that names data, a digest of the data. When a run is continued,
            such a setting may change as long as the digest does not.

    Returns:
        The checkpoint to continue from; None for a new run.

    Raises:
        RunError: if the directory holds another run, files in it are damaged, or the requested
            checkpoint is incomplete or belongs to another run.
    """
    contents = {**_weights_contents(run_config), **(contents or {})}
    checkpoint, run_dir = _claimable(config, run_config, warn, contents), run_directory(config)
    try:
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        sweep(run_dir / "checkpoints")
        text = yaml.safe_dump(without_names(run_config), sort_keys=False)
        header = "" if command.script is None else f"{command.WRITTEN_BY}{command.script}\n"
        write_text(run_dir / "config.yaml", header + text)
        write_json(run_dir / CONTENTS, contents)
    except OSError as error:
        raise RunError(
            f"--training.run_dir {run_dir} cannot be written: {error.strerror}"
        ) from error
    return checkpoint


def check_claim(config: TrainingConfig, run_config: dict[str, Any]) -> None:
    """Make the checks of :func:`open_run` before data and encoder are opened, without writing.

    Settings that name data or an encoder are not compared.

    Raises:
        RunError: as :func:`open_run`, or if another process is writing in the directory.
    """
    refuse_locked(run_directory(config), "--training.run_dir")
    _claimable(
        config,
        run_config,
        lambda line: None,
        _weights_contents(run_config),
        unknown=(*DATA, ENCODER, CORE),
    )


def _claimable(
    config: TrainingConfig,
    run_config: dict[str, Any],
    warn: Callable[[str], None],
    contents: Mapping[str, str],
    unknown: Collection[str] = (),
) -> Path | None:
    """Check that the run may use its directory, and return the checkpoint; see :func:`open_run`."""
    run_dir = run_directory(config)
    if run_dir.exists() and not run_dir.is_dir():
        raise RunError(f"{run_dir} is a file; choose another --training.run_dir")
    checkpoint = first_checkpoint(config, warn)
    if config.resume != "never":
        continued = run_dir if checkpoint is None else checkpoint.parent.parent
        _same_settings(continued, run_config, contents, unknown)
    if checkpoint is not None:
        _refuse_foreign(checkpoint, config)
    inside = checkpoint is not None and checkpoint.parent.parent.resolve() == run_dir.resolve()
    if inside and config.resume != "auto" and checkpoint is not None:
        whole = [path for path in later_than(checkpoint) if fault(path) is None]
        if whole:
            raise RunError(
                f"{run_dir} has checkpoints after {checkpoint.name}, up to {whole[-1].name}; "
                "choose another --training.run_dir, or continue the run with --training.resume auto"
            )
    continues_here = inside or config.resume == "auto"
    held = run_dir.is_dir() and any(entry.name != LOCK for entry in run_dir.iterdir())
    if held and not continues_here:
        if not (run_dir / "config.yaml").exists():
            raise RunError(f"{run_dir} holds other files; choose another --training.run_dir")
        _refuse_run_of_another_recipe(run_dir)
        raise RunError(
            f"{run_dir} already holds a run; continue it with --training.resume auto, or choose "
            "another --training.run_dir"
        )
    return checkpoint


def _refuse_run_of_another_recipe(run_dir: Path) -> None:
    """Raise RunError if another recipe wrote the directory's config.yaml."""
    script = command.writer_of(run_dir / "config.yaml")
    if script and command.script and Path(script).name != Path(command.script).name:
        raise RunError(f"{run_dir} holds a run of {script}; choose another --training.run_dir")


def first_checkpoint(config: TrainingConfig, warn: Callable[[str], None]) -> Path | None:
    """Return the checkpoint that ``training.resume`` selects; None for a new run.

    Args:
        config: settings of training.
        warn: called with a line about each newer checkpoint that is incomplete.

    Raises:
        RunError: if the named checkpoint does not exist or is incomplete, or if there are
            checkpoints but all are incomplete.
    """
    if config.resume == "never":
        return None
    if config.resume == "auto":
        return newest_whole(run_directory(config) / "checkpoints", warn)
    return _named_checkpoint(Path(config.resume), warn)


def reached_step(config: TrainingConfig) -> int:
    """Return the step that a run would continue from; 0 for a new run."""
    checkpoint = first_checkpoint(config, warn=lambda line: None)
    return 0 if checkpoint is None else step_of(checkpoint)


def without_names(run_config: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a config without the run's name, directory and ``resume``."""

    def copy(part: dict[str, Any], prefix: str) -> dict[str, Any]:
        return {
            key: copy(value, f"{prefix}{key}.") if isinstance(value, dict) else value
            for key, value in part.items()
            if f"{prefix}{key}" not in NAMES
        }

    return copy(run_config, "")


def saved_settings(path: Path) -> dict[str, Any]:
    """Read the config.yaml of a run.

    Raises:
        RunError: if the file is damaged; the message names it.
    """
    reason = "it contains no settings"
    try:
        settings = read_yaml_text(path.read_text())
        if isinstance(settings, dict):
            return settings
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
    raise RunError(
        f"{path} is damaged ({reason}); restore it from a copy, or remove it to continue without a "
        "check that the settings are unchanged"
    )


def changed_settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return ``NAME (BEFORE → NOW)`` of each setting that differs, for messages.

    Args:
        before: settings of a run, as they were read from its file.
        now: present settings, nested like ``before``.
    """
    old, new = _flat(dict(before)), _flat(json.loads(json.dumps(now)))
    return [
        f"{name} ({old.get(name, 'not set')} → {new.get(name, 'not set')})"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def place(source: Path, target: Path) -> None:
    """Copy a directory to ``target`` atomically; other files in ``target`` stay.

    Raises:
        RunError: if ``target`` cannot be written.
    """
    try:
        with replaced_directory(target) as staging:
            shutil.copytree(source, staging, dirs_exist_ok=True)
    except OSError as error:
        raise RunError(
            f"{target} cannot be written ({error}); copy its files from {source}"
        ) from error


def _named_checkpoint(path: Path, warn: Callable[[str], None]) -> Path:
    if not path.is_dir():
        raise RunError(
            f"--training.resume {path}: no such directory; give never, auto, or a checkpoint's path"
        )
    if (path / "checkpoints").is_dir():
        newest = newest_whole(path / "checkpoints", warn)
        if newest is None:
            raise RunError(
                f"--training.resume {path}: that run has no complete checkpoint; start a new run "
                "without --training.resume"
            )
        return newest
    step_of(path)
    if reason := fault(path):
        raise RunError(
            f"--training.resume {path}: the checkpoint is incomplete: {reason}; name another one, "
            "or use --training.resume auto"
        )
    return path


def _weights_contents(run_config: dict[str, Any]) -> dict[str, str]:
    """Return digests of the weights that training starts from, if they are local files.

    Keys are the settings that name the weights: the path of the encoder, or of the fitted core.
    """
    found = {}
    settings = _flat(run_config)
    for setting in (ENCODER, CORE):
        if not settings.get(setting):
            continue
        for place in (".", "model"):
            folder = Path(settings[setting]) / place
            needed = [folder / "model.safetensors", folder / "config.json"]
            if all(file.is_file() for file in needed):
                # The directory of a model of neurons contains its encoder.
                files = [*needed, *folder.glob("encoder/model.safetensors")]
                crcs = [f"{file_fingerprint(file)['crc32']:08x}" for file in files]
                found[setting] = " ".join(crcs)
                break
    return found


def _refuse_foreign(checkpoint: Path, config: TrainingConfig) -> None:
    """Refuse a checkpoint of a run with another seed or total batch size."""
    facts = read_json(checkpoint / STATE, "remove the checkpoint")
    for name in ("seed", "total_batch_size"):
        own = getattr(config, name)
        if facts.get(name, own) != own:
            raise RunError(
                f"checkpoint {checkpoint} belongs to another run: its {STATE} has training.{name} "
                f"{facts[name]}, this run has {own}; remove the checkpoint, or set training.{name} "
                f"to {facts[name]} to continue that run"
            )


def _same_settings(
    continued: Path,
    run_config: dict[str, Any],
    contents: Mapping[str, str],
    unknown: Collection[str],
) -> None:
    """Raise RunError if settings differ from those of the run that is continued.

    Args:
        continued: directory of the run that is continued.
        run_config: the recipe's full resolved config.
        contents: digests of data and weights, by the settings that name them. For these settings
            only the digests must be equal.
        unknown: settings that are not compared if they have no digest in ``contents``.
    """
    path = continued / "config.yaml"
    if not path.exists():
        return
    saved = _flat(saved_settings(path))
    current = _flat(yaml.safe_load(yaml.safe_dump(without_names(run_config))))
    saved = {key: value for key, value in EARLIER.items() if key in current} | saved
    known: dict[str, str] = {}
    if (continued / CONTENTS).exists():  # runs of older versions lack the file
        mend = "restore it from a copy, or remove it to compare the names of data instead"
        known = read_json(continued / CONTENTS, mend)
    changes = []
    for key in sorted(saved.keys() | current.keys() | (known.keys() & contents.keys())):
        if key in FREE_ON_RESUME or key.rsplit(".", 1)[-1] in FREE_ENDINGS:
            continue
        if key in unknown and key not in contents:
            continue
        if key in NEWER and key not in saved:
            continue
        moved = saved.get(key) != current.get(key)
        if key in known and key in contents:
            if known[key] != contents[key]:
                names = f"{saved.get(key)} → {current.get(key)}, " if moved else ""
                changes.append(f"{key} ({names}the contents have changed)")
        elif moved:
            before = saved.get(key, f"not in {path.name}")
            changes.append(f"{key} ({before} → {current.get(key)})")
    if changes:
        _refuse_run_of_another_recipe(continued)
        raise RunError(
            f"the run in {continued} had other settings: {', '.join(changes)}; "
            "restore them to continue, or start a new run in another --training.run_dir"
        )


def _flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
