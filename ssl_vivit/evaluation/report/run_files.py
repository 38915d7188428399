"""Files of a run's directory that the report reads."""

from __future__ import annotations

import errno
import fcntl
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ssl_vivit.errors import DataError, RunError
from ssl_vivit.files import read_json
from ssl_vivit.nested_text import read_yaml_text
from ssl_vivit.run_lock import LOCK
from ssl_vivit.training.metrics.tracking import read_metrics

# A run's directory has at least one of these files.
_RESULTS = (
    "metrics.jsonl",
    "config.yaml",
    "scores.json",
    "comparison.json",
    "probes.json",
    "trials.csv",
)


@dataclass(frozen=True)
class RunFiles:
    """Access to the files in a run's directory.

    Args:
        folder: the directory.

    Raises:
        RunError: if the directory does not exist or holds no results.
    """

    folder: Path

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise RunError(f"run: {self.folder} is no directory; give a run's directory")
        if not any((self.folder / name).is_file() for name in _RESULTS):
            raise RunError(
                f"run: {self.folder} holds none of {', '.join(_RESULTS)}; give a run's directory"
            )

    @property
    def going_on(self) -> bool:
        """Return whether a process that writes to the directory is still running."""
        try:
            with (self.folder / LOCK).open("rb") as file:
                fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:  # EAGAIN: another process holds the lock
            return error.errno == errno.EAGAIN
        return False

    @cached_property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl; empty without such a file."""
        return read_metrics(self.folder / "metrics.jsonl")

    @property
    def last_step(self) -> int | None:
        """Last training step that was logged or saved in a checkpoint; None if there is none."""
        logged = [line["step"] for line in self.metrics[-1:]]
        names = (path.name.removeprefix("step_") for path in self.folder.glob("checkpoints/step_*"))
        return max([*logged, *(int(name) for name in names if name.isdigit())], default=None)

    @cached_property
    def config_text(self) -> str:
        """Content of config.yaml; empty without such a file."""
        path = self.folder / "config.yaml"
        try:
            return path.read_text()
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            raise DataError(f"{path} cannot be read: {error}; fix or remove it") from None

    @cached_property
    def config(self) -> dict[str, Any]:
        """Settings of the run, as nested dictionaries; empty if unknown."""
        try:
            found = read_yaml_text(self.config_text)
        except ValueError:
            path = self.folder / "config.yaml"
            raise DataError(f"{path} is damaged; remove it to make a report without it") from None
        return found if isinstance(found, dict) else {}

    def setting(self, name: str) -> Any:
        """Return a setting by its dotted name, or None if it is unknown."""
        found: Any = self.config
        for part in name.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found

    def json(self, name: str) -> dict[str, Any] | None:
        """Return the content of a JSON file, or None without such a file."""
        path = self.folder / name
        return read_json(path, "remove it to make a report without it") if path.is_file() else None

    @property
    def model(self) -> Path | None:
        """Directory of the exported model of neurons, or None."""
        path = self.folder / "model"
        return path if (path / "config.json").is_file() else None

    @property
    def exported(self) -> dict[str, Any]:
        """Record of training in config.json of the exported model or encoder; empty if missing."""
        for name in ("model", "encoder"):
            found = self.json(f"{name}/config.json")
            if found is not None and isinstance(found.get("training"), dict):
                return found["training"]
        return {}

    def figures(self) -> list[Path]:
        """Return paths of the run's figures.

        Of a figure that was drawn at several training steps, only the first and the last are
        returned.
        """
        found = [
            *sorted((self.folder / "figures").glob("*.png")),
            *sorted(self.folder.glob("*.png")),
        ]
        series: dict[str, list[Path]] = {}
        for path in found:
            series.setdefault(path.stem.partition("_step_")[0], []).append(path)
        return [path for paths in series.values() for path in dict.fromkeys((paths[0], paths[-1]))]
