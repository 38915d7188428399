"""Log the metrics of a run to metrics.jsonl, and optionally to wandb."""

from __future__ import annotations

import json
import math
import netrc
import os
import secrets
import ssl
import sys
import threading
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse

from tqdm import tqdm

from ssl_vivit.errors import DataError, RunError
from ssl_vivit.files import read_json, write_json, write_text
from ssl_vivit.nested_text import read_json_text


class Tracking:
    """Appends one JSON line per call to ``run_dir/metrics.jsonl`` and passes it to the tracker.

    Args:
        run_dir: the run's directory.
        tracker: "wandb" or "none".
        project: the tracker's project; None is the value of WANDB_PROJECT, or ssl_vivit.
        run_config: settings of the run, shown by the tracker.
        first_step: step that the run starts or continues from. Lines of later steps, which a killed
            run wrote after its last checkpoint, are removed.

    Raises:
        RunError: if the tracker cannot be started.
        DataError: if tracker.json is damaged.
    """

    def __init__(
        self,
        run_dir: Path,
        tracker: Literal["wandb", "none"],
        project: str | None,
        run_config: dict[str, Any],
        first_step: int,
    ) -> None:
        self.path = run_dir / "metrics.jsonl"
        if damaged := cut_off(self.path, first_step):
            numbers = ", ".join(map(str, damaged))
            tqdm.write(f"{self.path}: damaged lines were removed: {numbers}", file=sys.stderr)
        self._file = self.path.open("a")
        self._wandb = _start_wandb(run_dir, project, run_config) if tracker == "wandb" else None

    def log(self, step: int, values: dict[str, float]) -> None:
        """Write the metrics of a step; values that are not finite become null.

        Raises:
            RunError: if metrics.jsonl cannot be written.
        """
        line = {name: _json_number(value) for name, value in values.items()}
        try:
            self._file.write(json.dumps({"step": step, **line}) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._unwritable(error) from error
        self._refuse_lost()
        self._call_wandb(lambda wandb: wandb.log(values, step=step))

    def flush(self) -> None:
        """Write all lines to disk, so that they survive a crash of the machine.

        Raises:
            RunError: if the file is no longer in the run's directory, or cannot be written.
        """
        self._refuse_lost()
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> RunError:
        return RunError(
            f"{self.path} cannot be written: {error.strerror}; fix the cause and continue with "
            "--training.resume auto"
        )

    def _refuse_lost(self) -> None:
        """Raise RunError if metrics.jsonl was removed or replaced."""
        try:
            if os.path.samestat(os.stat(self.path), os.fstat(self._file.fileno())):
                return
        except OSError:
            pass
        raise RunError(
            f"{self.path} was removed, moved or replaced while the run was going on; restore the "
            "run's directory and continue with --training.resume auto, or start a new run"
        )

    def close(self) -> None:
        with suppress(OSError):  # log() has already reported a full disk
            self._file.close()
        self._call_wandb(lambda wandb: wandb.finish())

    def _call_wandb(self, what: Callable[[Any], object]) -> None:
        """Call ``what`` with the wandb run; after an error, log only to metrics.jsonl."""
        if self._wandb is None:
            return
        try:
            what(self._wandb)
        except Exception as error:
            self._wandb = None
            tqdm.write(
                f"wandb failed ({type(error).__name__}: {error}); metrics are logged only to "
                f"{self.path}",
                file=sys.stderr,
            )


def cut_off(path: Path, step: int) -> list[int]:
    """Remove damaged lines and lines of steps after ``step`` from a metrics file.

    If ``step`` is 0, all lines are removed.

    Returns:
        Numbers of the damaged lines, from 1. An unfinished last line is not reported: a killed
        process was writing it.
    """
    if not path.exists():
        return []
    lines = path.read_bytes().splitlines(keepends=True)
    rows = [_row(line) for line in lines]
    kept = [
        line.decode().rstrip("\n") + "\n"
        for line, row in zip(lines, rows, strict=True)
        if row is not None and step > 0 and row["step"] <= step
    ]
    write_text(path, "".join(kept))
    torn = bool(lines) and not lines[-1].endswith(b"\n")
    return [number for number, row in enumerate(rows[: len(rows) - torn], 1) if row is None]


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a run's metrics.jsonl without damaged lines; empty if there is no such file."""
    if not path.is_file():
        return []
    rows = map(_row, path.read_bytes().splitlines())
    return [row for row in rows if row is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    """Parse a line of metrics.jsonl; None if it is damaged."""
    try:
        row = read_json_text(line.decode())
        return row if row["step"] >= 0 else None
    except (ValueError, KeyError, TypeError):
        return None


def wandb_mode() -> Literal["online", "offline", "disabled"]:
    """Return wandb's mode: as set in the environment, else online with an account, else offline.

    Raises:
        RunError: if WANDB_MODE is not online, offline or disabled.
    """
    asked = os.environ.get("WANDB_MODE", "").lower()
    off = os.environ.get("WANDB_DISABLED", "").lower() in ("1", "true", "yes", "on")
    if off or asked == "disabled":
        return "disabled"
    if asked not in ("", "online", "run", "offline", "dryrun"):
        raise RunError(f"WANDB_MODE is {asked}; it must be online, offline or disabled")
    if asked in ("offline", "dryrun"):
        return "offline"
    if os.environ.get("WANDB_API_KEY") or asked in ("online", "run"):
        return "online"
    host = urlparse(_wandb_address()).hostname or ""
    try:
        known = netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        known = False
    return "online" if known else "offline"


def unreachable(address: str, seconds: float = 5.0) -> str | None:
    """Return why a server does not answer; None if it answers, with any status.

    Args:
        address: an http or https URL.
        seconds: timeout.
    """
    outcome: list[str | None] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(address, timeout=seconds).close()
        except HTTPError:
            outcome.append(None)
        except (OSError, ValueError, HTTPException) as error:
            reason = error.reason if isinstance(error, URLError) else error
            # wandb may trust a certificate that Python does not.
            outcome.append(None if isinstance(reason, ssl.SSLError) else str(reason))
        else:
            outcome.append(None)

    # A name lookup has no timeout, so the request runs in a thread.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    return outcome[0] if outcome else "timed out"


def _wandb_address() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def _start_wandb(run_dir: Path, project: str | None, run_config: dict[str, Any]) -> Any:
    mode = wandb_mode()
    if mode == "disabled":
        return None
    try:
        import wandb
    except ImportError:
        raise RunError(
            "training.tracker is wandb, which is not installed: run pip install wandb, or set "
            "--training.tracker none"
        ) from None
    # A continued run stays one run in wandb.
    identity = run_dir / "tracker.json"
    if identity.exists():
        mend = "remove it to start a new run in wandb"
        run_id = read_json(identity, mend).get("wandb")
        if not isinstance(run_id, str):
            raise DataError(f"{identity} is damaged (it names no wandb run); {mend}")
    else:
        run_id = secrets.token_hex(4)
        write_json(identity, {"wandb": run_id}, indent=None)
    folder = os.environ.get("WANDB_DIR") or str(run_dir)
    if mode == "online" and (reason := unreachable(_wandb_address())):
        mode = "offline"
        tqdm.write(
            f"wandb: {_wandb_address()} does not answer ({reason}); this run is logged offline; "
            f"`wandb sync {folder}/wandb/offline-run-*-{run_id}` uploads it later",
            file=sys.stderr,
        )
    try:
        return wandb.init(
            project=project or os.environ.get("WANDB_PROJECT") or "ssl_vivit",
            name=os.environ.get("WANDB_NAME") or run_dir.name,
            id=run_id,
            resume="allow",
            dir=folder,
            config=run_config,
            mode=mode,
            settings=wandb.Settings(silent=True),
        )
    except wandb.Error as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RunError(
            f"wandb does not start ({reason}); set --training.tracker none to train without it"
        ) from None


def _json_number(value: float) -> float | None:
    return value if math.isfinite(value) else None
