"""Exported directories: weights as safetensors, settings as JSON, and a model card.

DIRECTORY/
  model.safetensors   weights
  config.json         format version, settings of the model, facts about the run that made it
  README.md           model card

Each class of models describes its directories by a :class:`Format`, and supplies a function that
builds a model from the settings.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ssl_vivit.errors import ExportError, MissingError, UserError
from ssl_vivit.files import read_whole, replaced_directory, write_json, write_text
from ssl_vivit.nested_text import read_json_text

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_SHOWN = 10

Module = TypeVar("Module", bound=nn.Module)
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Format:
    """One kind of exported directory.

    Args:
        name: name of the kind in messages, such as ``exported encoder``.
        key: entry of config.json that marks a directory of this kind.
        version: format version; a directory of another version is refused.
        inside_runs: paths at which a run writes such a directory, relative to the run directory.
        files: further files that an export may contain.
        parts: subdirectories that are themselves exports.
    """

    name: str
    key: str
    version: int = 1
    inside_runs: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()

    @property
    def own(self) -> tuple[str, ...]:
        """Names of the files and directories that an export may contain."""
        return (WEIGHTS, CONFIG, CARD, *self.files, *self.parts)

    @property
    def all_files(self) -> list[str]:
        """Paths of the files that an export may contain, including the files of its parts."""
        names = (WEIGHTS, CONFIG, CARD)
        return [*names, *self.files, *(f"{part}/{name}" for part in self.parts for name in names)]


def check_place(directory: str | Path, kind: Format) -> None:
    """Check that an export to a directory would overwrite nothing except an earlier export.

    Raises:
        ExportError: if the directory exists and is not an export of this kind, or if it cannot be
            written.
    """
    place = Path(directory).resolve()
    parent = next((folder for folder in place.parents if folder.exists()), place)
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ExportError(
            f"{directory} cannot be created: {parent} is not writable; choose another directory"
        )
    if not place.exists() or (place.is_dir() and not any(place.iterdir())):
        return
    if not is_kind(place, kind):
        raise ExportError(f"{directory} exists and is no {kind.name}; choose another directory")


def is_kind(directory: Path, kind: Format) -> bool:
    """Return True if a directory contains the config.json of an export of this kind."""
    try:
        saved = read_json_text(read_whole(directory / CONFIG))
    except (OSError, ValueError):
        return False
    return isinstance(saved, dict) and kind.key in saved and "format" in saved


def write_directory(
    directory: str | Path,
    kind: Format,
    settings: Mapping[str, Any],
    weights: Mapping[str, Mapping[str, Tensor]],
    card: str,
    parts: Mapping[str, Callable[[Path], None]] | None = None,
) -> None:
    """Write an export atomically.

    An older export in the directory is replaced. Other files in the directory are kept.

    Args:
        directory: the directory; missing parents are created.
        kind: the kind of export.
        settings: entries of config.json, to which the format version is added.
        weights: dictionary from the name of each weights file to its tensors by name.
        card: text of the model card.
        parts: dictionary from the name of each subdirectory to a function that writes it.

    Raises:
        ExportError: if :func:`check_place` raises it.
    """
    check_place(directory, kind)
    with replaced_directory(directory, kind.own) as staging:
        for name, write in (parts or {}).items():
            write(staging / name)
        for name, state in weights.items():
            tensors = {key: value.detach().cpu().contiguous() for key, value in state.items()}
            save_file(tensors, staging / name, metadata={"format": "pt"})
        write_json(staging / CONFIG, {"format": kind.version, **settings})
        write_text(staging / CARD, card)


def find_directory(path: Path, kind: Format) -> Path:
    """Return ``path`` if it is a directory of an export.

    Raises:
        MissingError: if config.json or the weights are missing. If ``path`` is a run directory, or
            would be the export of a run that has not ended, the message names an export of the run.
    """
    missing = [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]
    if not missing:
        return path
    run = path if path.exists() else path.parent
    final = _exports([run], kind)
    # Exports of a run that was stopped or is still training: the best step, and checkpoints.
    checkpoints = sorted(run.glob("checkpoints/step_*"), key=lambda p: (len(p.name), p.name))
    earlier = _exports([run / "best", *reversed(checkpoints)], kind)
    mend = f"give the directory that a run writes as RUN/{kind.inside_runs[0]}"
    if inside := final or earlier:
        mend = f"give {inside[0]} instead"
    if not final and (run / "config.yaml").is_file():
        mend += f"; the run writes {run / kind.inside_runs[0]} when it ends"
    why = f"there is no such directory{similar_entry(path)}"
    if path.exists():
        why = f"{missing[0]} is missing" if path.is_dir() else "it is a file, not a directory"
    raise MissingError(f"{path} is no {kind.name}: {why}; {mend}")


def _exports(parents: Iterable[Path], kind: Format) -> list[Path]:
    """Return the existing exports in run directories, checkpoints or similar directories.

    Args:
        parents: the directories.
        kind: the kind of export. Its ``inside_runs`` are the paths below each directory that are
            searched.
    """
    places = [parent / place for parent in parents for place in kind.inside_runs]
    return [place for place in places if (place / CONFIG).is_file()]


def similar_entry(path: Path) -> str:
    """Return a hint that names an existing path similar to the missing ``path``; "" if none."""
    names = [entry.name for entry in path.parent.glob("*")]
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.6)
    return f" (did you mean {path.parent / near[0]}?)" if near else ""


def read_config(path: Path, kind: Format) -> dict[str, Any]:
    """Read config.json of an export.

    Raises:
        MissingError: if :func:`find_directory` raises it.
        ExportError: if the file is not valid JSON, or if it was written by another program or
            describes another kind or format version.
    """
    find_directory(path, kind)
    file = path / CONFIG
    try:
        saved = read_json_text(read_whole(file))
    except (OSError, ValueError) as error:
        raise ExportError(f"{file} is not valid JSON: {error}; export the model again") from None
    if isinstance(saved, dict) and ("model_type" in saved or "architectures" in saved):
        raise ExportError(
            f"{file} is a config of Hugging Face transformers (model_type "
            f"{saved.get('model_type', 'missing')}); convert the checkpoint to an encoder "
            "directory with `python -m ssl_vivit.encoders.imports`"
        )
    if not isinstance(saved, dict) or saved.get("format") != kind.version or kind.key not in saved:
        raise ExportError(
            f"{file} does not have {kind.name} format {kind.version}; it was written by another "
            "program or a newer version of ssl_vivit; update ssl_vivit, or export the model again"
        )
    return saved


def read_shapes(file: Path) -> Shapes:
    """Read the shapes of a safetensors file's tensors from its header.

    Raises:
        MissingError: if there is no such file.
        ExportError: if the file is damaged.
    """
    if not file.is_file():
        raise MissingError(f"{file} is missing; export the model again")
    try:
        with safe_open(file, framework="pt") as content:
            return {name: tuple(content.get_slice(name).get_shape()) for name in content.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ExportError(f"{file} is damaged ({error}); export the model again") from None


def check_shapes(expected: Shapes, found: Shapes, file: Path | str, described: str) -> None:
    """Check that the tensors in a file have the names and shapes of a model.

    Args:
        expected: shapes of the model's tensors by name.
        found: shapes of the file's tensors by name.
        file: name of the file, for the message.
        described: name of the model, for the message, such as ``encoder of config.json``.

    Raises:
        ExportError: if tensors are missing, unexpected or of another shape; the message names at
            most ten.
    """
    wrong = [
        f"{name} has shape {found[name]} instead of {shape}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    wrong += [f"{name} missing" for name in expected if name not in found]
    wrong += [f"{name} unexpected" for name in found if name not in expected]
    if wrong:
        more = f" and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
        raise ExportError(f"{file} does not fit the {described}: {', '.join(wrong[:_SHOWN])}{more}")


def check_blocks(expected: Mapping[str, int], found: Shapes, file: Path, described: str) -> None:
    """Check that the weights in a file have as many blocks as a model.

    Args:
        expected: dictionary from each prefix of tensor names, such as ``trunk.blocks.``, to the
            number of blocks with this prefix in the model.
        found: shapes of the file's tensors by name.
        file: name of the file, for the message.
        described: name of the model, for the message, such as ``encoder of config.json``.

    Raises:
        ExportError: if the numbers differ; the message names both.
    """
    for prefix, count in expected.items():
        numbers = {name[len(prefix) :].split(".")[0] for name in found if name.startswith(prefix)}
        if len(numbers) != count:
            raise ExportError(
                f"{file} does not fit the {described}: {prefix.rstrip('.')} has {len(numbers)} "
                f"blocks instead of {count}"
            )


@contextmanager
def _size_limit(tensors: int) -> Iterator[None]:
    """Context manager that stops the building of a module that is far too large.

    Args:
        tensors: number of tensors in the weights file.

    Raises:
        ExportError: as soon as the module has far more parameters and submodules than ``tensors``.
    """
    left = 1000 + 20 * tensors

    def count(*registered: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise ExportError(
                f"config.json describes a model with far more parameters than the {tensors} "
                "tensors in its weights file; export the model again"
            )

    registering = torch.nn.modules.module
    handles = [
        registering.register_module_parameter_registration_hook(count),
        registering.register_module_module_registration_hook(count),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def built_from(
    file: Path, described: str, make: Callable[[], Module], outside: Collection[str] = ()
) -> Module:
    """Build a module on the meta device and load its weights from a file.

    No memory is allocated for weights until all names and shapes have been compared. Weights keep
    the precision of the file.

    Args:
        file: a safetensors file.
        described: name of the model, for messages, such as ``encoder of config.json``.
        make: function that builds the module.
        outside: prefixes of tensor names that are not in the file; ``make`` loads these tensors.

    Returns:
        The module in eval mode.

    Raises:
        MissingError: if there is no such file.
        ExportError: if the file is damaged, does not fit the module, or has weights that are NaN or
            infinite.
    """
    found = read_shapes(file)
    try:
        with torch.device("meta"), _size_limit(len(found)):
            module = make()
    except (RuntimeError, ArithmeticError, TypeError) as error:  # sizes are too large for torch
        if isinstance(error, UserError):
            raise
        raise ExportError(f"{file} does not fit the {described}: {error}") from None
    own = {
        name: tuple(value.shape)
        for name, value in module.state_dict().items()
        if not name.startswith(tuple(outside))
    }
    check_shapes(own, found, file, described)
    # Tensors are cloned, since their memory alignment affects the rounding of products.
    weights = {name: value.clone() for name, value in load_file(file).items()}
    broken = [name for name, value in weights.items() if not value.isfinite().all()]
    if broken:
        more = f" and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        raise ExportError(
            f"{file} holds weights that are NaN or infinite: {', '.join(broken[:_SHOWN])}{more}; "
            "export the model of an earlier checkpoint"
        )
    module.load_state_dict(weights, strict=False, assign=True)
    return module.eval()
