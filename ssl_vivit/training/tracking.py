"""Numbers of a run: always to metrics.jsonl, to wandb if wanted."""

from __future__ import annotations

import json
import math
import netrc
import os
import secrets
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from tqdm import tqdm

from ssl_vivit.errors import RunError
from ssl_vivit.files import write_json, write_text


class Tracking:
    """Appends one JSON line a call to ``run_dir/metrics.jsonl`` and passes it to the tracker.

    Args:
        run_dir: the run's directory.
        tracker: "wandb" or "none".
        project: the tracker's project.
        run_config: what the tracker shows as the run's settings.
        first_step: the step that the run starts or continues from. Lines of later steps, which a
            killed run had written after its last checkpoint, are cut off.

    Raises:
        RunError: if the tracker cannot be started.
    """

    def __init__(
        self,
        run_dir: Path,
        tracker: Literal["wandb", "none"],
        project: str,
        run_config: dict[str, Any],
        first_step: int,
    ) -> None:
        self.path = run_dir / "metrics.jsonl"
        cut_off(self.path, first_step)
        self._file = self.path.open("a")
        self._wandb = _start_wandb(run_dir, project, run_config) if tracker == "wandb" else None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the values of a step; a number that is not finite becomes null."""
        line = {name: _json_number(value) for name, value in values.items()}
        try:
            self._file.write(json.dumps({"step": step, **line}) + "\n")
            self._file.flush()
        except OSError as error:
            raise RunError(
                f"{self.path} cannot be written: {error.strerror}; mend that and continue with "
                "--training.resume auto"
            ) from error
        self._tell_wandb(lambda wandb: wandb.log(values, step=step))

    def flush(self) -> None:
        """Make sure that the lines outlive a crash of the machine."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # what a full disk did not take was reported when it was logged
            self._file.close()
        self._tell_wandb(lambda wandb: wandb.finish())

    def _tell_wandb(self, what: Callable[[Any], object]) -> None:
        """A tracker that fails is left behind; the run goes on, its numbers are in metrics.jsonl."""
        if self._wandb is None:
            return
        try:
            what(self._wandb)
        except Exception as error:
            self._wandb = None
            tqdm.write(
                f"wandb failed ({type(error).__name__}: {error}); numbers go to {self.path} alone",
                file=sys.stderr,
            )


def cut_off(path: Path, step: int) -> None:
    """Keep the lines of ``path`` up to and including ``step``; at step 0 none."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # the line that a killed process was writing
            continue
        if step > 0 and row["step"] <= step:
            kept.append(line + "\n")
    write_text(path, "".join(kept))


def wandb_mode() -> Literal["online", "offline", "disabled"]:
    """What the user asked for; without an account offline, so that nothing prompts."""
    asked = os.environ.get("WANDB_MODE", "").lower()
    if asked in ("offline", "dryrun"):
        return "offline"
    if asked == "disabled":
        return "disabled"
    if os.environ.get("WANDB_API_KEY") or asked in ("online", "run"):
        return "online"
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    return "online" if known else "offline"


def _start_wandb(run_dir: Path, project: str, run_config: dict[str, Any]) -> Any:
    try:
        import wandb
    except ImportError:
        raise RunError(
            "training.tracker is wandb, which is not installed: pip install wandb, or --training.tracker none"
        ) from None
    # One run for the tracker too, however often it was continued.
    identity = run_dir / "tracker.json"
    if identity.exists():
        run_id = json.loads(identity.read_text())["wandb"]
    else:
        run_id = secrets.token_hex(4)
        write_json(identity, {"wandb": run_id}, indent=None)
    try:
        return wandb.init(
            project=project,
            name=run_dir.name,
            id=run_id,
            resume="allow",
            dir=str(run_dir),
            config=run_config,
            mode=wandb_mode(),
            settings=wandb.Settings(silent=True),
        )
    except wandb.Error as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"wandb does not start ({reason}); --training.tracker none goes without"
        ) from None


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
