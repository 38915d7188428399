"""Checkpoints on disk, which are written atomically and without pickle.

step_00001000/
    model.safetensors      all parameters and buffers by name
    optimizer.safetensors  optimiser states, ``<parameter>/<key>``
    optimizer.json         parameter groups by name
    state.json             step, data position, schedule, processes, versions
    rng_<rank>.safetensors and rng_<rank>.json, the generators of each process
    encoder/               the exported encoder; the objective's export_name names the directory
    manifest.json          size and CRC-32 of every other file, written last
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ssl_vivit.errors import RunError
from ssl_vivit.files import read_whole, write_json
from ssl_vivit.nested_text import read_json_text
from ssl_vivit.training.checkpoints.state import TrainingState

MANIFEST = "manifest.json"
STATE = "state.json"
_NEEDED = ("model.safetensors", "optimizer.safetensors", "optimizer.json", STATE)
PARTIAL = ".partial-"
_NAME = re.compile(r"step_(\d{8,})")


def write_checkpoint(
    parent: Path,
    step: int,
    training: TrainingState,
    state: dict[str, Any],
    generators: list[dict[str, Any]],
    export: Callable[[Path], None],
    export_name: str = "encoder",
) -> Path:
    """Write ``parent/step_<step>`` under a temporary name, then rename it.

    Args:
        parent: directory of the run's checkpoints.
        step: number of finished steps.
        training: weights and optimiser state.
        state: content of state.json, without the step.
        generators: states of the random generators, a dictionary for each process:
            ``{"tensors": {name: bytes as ints}, "values": JSON}``.
        export: function that exports the model to a directory.
        export_name: name of this directory.

    Raises:
        RunError: if a file cannot be written. The new files are removed; other checkpoints stay.
    """
    final = parent / f"step_{step:08d}"
    partial = parent / f"{PARTIAL}{final.name}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        save_file(training.model, partial / "model.safetensors")
        save_file(training.optimizer, partial / "optimizer.safetensors")
        write_json(partial / "optimizer.json", training.groups)
        write_json(partial / STATE, {"step": step, **state})
        for rank, generator in enumerate(generators):
            tensors = {
                name: torch.tensor(values, dtype=torch.uint8)
                for name, values in generator["tensors"].items()
            }
            save_file(tensors, partial / f"rng_{rank}.safetensors")
            write_json(partial / f"rng_{rank}.json", generator["values"])
        export(partial / export_name)
        files = {str(path.relative_to(partial)): file_fingerprint(path) for path in _files(partial)}
        write_json(partial / MANIFEST, {"step": step, "files": files})
        for path in [*partial.rglob("*"), partial]:
            _flush(path)
        if final.exists():
            _remove(final)
        os.replace(partial, final)
        _flush(parent)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise RunError(_refusal(error, parent, step)) from error
    return final


def read_checkpoint(path: Path) -> tuple[TrainingState, dict[str, Any]]:
    """Return the training state and the content of state.json of a complete checkpoint.

    Raises:
        RunError: if a file cannot be read although its size and checksum match the manifest.
    """
    with _named(path):
        groups = _read_object(path / "optimizer.json")
        if not isinstance(groups["groups"], list) or not isinstance(groups["state"], dict):
            raise ValueError("optimizer.json has no groups and state")
        training = TrainingState(
            load_file(path / "model.safetensors"), load_file(path / "optimizer.safetensors"), groups
        )
        return training, _read_object(path / STATE)


def read_generators(path: Path, rank: int) -> dict[str, Any]:
    """Return the state of the random generators of one process.

    Args:
        path: the checkpoint.
        rank: rank of the process.

    Returns:
        A dictionary ``{"tensors": {name: bytes as ints}, "values": JSON}``.

    Raises:
        RunError: if a file cannot be read.
    """
    with _named(path):
        tensors = load_file(path / f"rng_{rank}.safetensors")
        return {
            "tensors": {name: tensor.tolist() for name, tensor in tensors.items()},
            "values": _read_object(path / f"rng_{rank}.json"),
        }


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Context manager that turns errors of reading a checkpoint into RunErrors that name it."""
    try:
        yield
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise RunError(
            f"checkpoint {path} cannot be read ({error}); remove it to continue from an earlier one"
        ) from error


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json_text(read_whole(path))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} does not contain a JSON object")
    return content


def step_of(path: Path) -> int:
    """Return the step in the name of a checkpoint directory."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise RunError(f"{path} is not a checkpoint: the name must be step_<number>")
    return int(match[1])


def fault(path: Path) -> str | None:
    """Return the reason why a checkpoint directory is incomplete; None if it is complete."""
    try:
        manifest = read_json_text(read_whole(path / MANIFEST))
        files = {
            name: {"bytes": told["bytes"], "crc32": told["crc32"]}
            for name, told in manifest["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return "its manifest is missing or damaged"
    if unnamed := [name for name in _NEEDED if name not in files]:
        return f"its manifest does not name {unnamed[0]}"
    for name, expected in files.items():
        try:
            found = file_fingerprint(path / name)
        except (OSError, ValueError):  # a damaged manifest may contain an invalid file name
            return f"{name} is missing"
        if found["bytes"] != expected["bytes"]:
            return f"{name} has {found['bytes']} of {expected['bytes']} bytes"
        if found != expected:
            return f"{name} is damaged"
    return _misfit(path, files)


def _misfit(path: Path, files: Collection[str]) -> str | None:
    """Return how state.json contradicts the checkpoint's name or files; None if it fits them.

    Args:
        path: the checkpoint.
        files: names of the files in the manifest.
    """
    try:
        state = _read_object(path / STATE)
        step, world_size = state["step"], state["world_size"]
        if not 1 <= world_size <= len(files):  # every process has files of its own
            raise ValueError("there are fewer files than processes")
        ranks = range(world_size)
    except (ValueError, KeyError, TypeError):
        return f"{STATE} is damaged"
    if step != step_of(path):
        return f"its {STATE} is of step {step}"
    generators = [f"rng_{rank}.{kind}" for rank in ranks for kind in ("safetensors", "json")]
    if unnamed := [name for name in generators if name not in files]:
        return f"its manifest does not name {unnamed[0]}"
    return None


def newest_whole(parent: Path, warn: Callable[[str], None]) -> Path | None:
    """Return the newest complete checkpoint; None if there is no checkpoint at all.

    Args:
        parent: directory of a run's checkpoints.
        warn: function that is called with a line for each newer checkpoint that is damaged.

    Raises:
        RunError: if there are checkpoints and all are damaged.
    """
    faults: dict[Path, str] = {}
    for path in reversed(_checkpoints(parent)):
        reason = fault(path)
        if reason is None:
            for damaged, why in faults.items():
                warn(f"checkpoint {damaged} is skipped: {why}")
            return path
        faults[path] = reason
    if faults:
        told = ", ".join(f"{path.name}: {why}" for path, why in faults.items())
        raise RunError(
            f"no checkpoint in {parent} is complete ({told}); restore one from a copy, choose "
            f"another --training.run_dir, or remove {parent} to start at step 0"
        )
    return None


def prune(newest: Path, keep: int) -> None:
    """Remove old checkpoints of a run.

    Args:
        newest: the newest complete checkpoint. Later ones are damaged: they are neither removed nor
            counted, since a damaged checkpoint must not take the place of a complete one.
        keep: number of checkpoints to keep, ``newest`` and those before it; 0 keeps all.
    """
    upto = [path for path in _checkpoints(newest.parent) if step_of(path) <= step_of(newest)]
    for path in upto[:-keep] if keep else []:
        _remove(path)


def sweep(parent: Path) -> None:
    """Remove the directories of checkpoints that killed runs did not finish writing."""
    for leftover in parent.glob(f"{PARTIAL}*"):
        shutil.rmtree(leftover, ignore_errors=True)


def later_than(path: Path) -> list[Path]:
    """Return the run's checkpoints after the checkpoint ``path``."""
    return [other for other in _checkpoints(path.parent) if step_of(other) > step_of(path)]


def _checkpoints(parent: Path) -> list[Path]:
    found = [path for path in parent.glob("step_*") if _NAME.fullmatch(path.name)]
    return sorted(found, key=step_of)


def _remove(path: Path) -> None:
    """Rename a checkpoint and then remove it, so that no damaged checkpoint can remain."""
    doomed = path.with_name(f"{PARTIAL}old-{path.name}")
    os.replace(path, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.rglob("*")) if path.is_file())


def file_fingerprint(path: Path) -> dict[str, int]:
    """Return the size and the CRC-32 of a file, as ``bytes`` and ``crc32``."""
    size, crc = 0, 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            size += len(block)
            crc = zlib.crc32(block, crc)
    return {"bytes": size, "crc32": crc}


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refusal(error: Exception, parent: Path, step: int) -> str:
    text = str(error)
    full = getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in text
    reason = f"no space left in {parent}" if full else f"{parent} cannot be written ({text})"
    kept = _checkpoints(parent)
    last = f"the last complete checkpoint is {kept[-1]}" if kept else "no checkpoint exists yet"
    mend = "free space or lower training.keep_checkpoints" if full else "fix the cause"
    return f"{reason} while saving step {step}; {last}: {mend} and continue with --training.resume auto"
