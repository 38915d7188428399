"""The command line of this process: in words that can be run again, and a parser of one-line errors."""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Sequence
from typing import Any, NoReturn

# First line of the config.yaml of a run, before the script that wrote it.
WRITTEN_BY = "# written by "

# Set by `parse` once it has read the arguments of this process; None in a program of one's own.
script: str | None = None
started_by: str | None = None
continued_by: str | None = None


class OneLineParser(argparse.ArgumentParser):
    """``ArgumentParser`` that names ``--help`` in place of printing its usage.

    Options must be written in full.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def without_resume(words: Sequence[str]) -> list[str]:
    """Return the words of a command without ``--resume`` and its value."""
    kept, rest = [], iter(words)
    for word in rest:
        option, equals, _ = word.partition("=")
        if option not in ("--resume", "--training.resume"):
            kept.append(word)
        elif not equals:
            next(rest, None)
    return kept


def starting(words: Sequence[str]) -> str:
    """Return the command that starts a run.

    Args:
        words: the script and its arguments.
    """
    launcher = "python"
    if "LOCAL_RANK" in os.environ:
        launcher = f"accelerate launch --num_processes {os.environ.get('WORLD_SIZE', '1')}"
    return f"{launcher} {shlex.join(without_resume(words))}"


def continuing(words: Sequence[str], run_dir: str) -> str:
    """Return the command that continues a run.

    Args:
        words: the script and its arguments.
        run_dir: where the run lies, in case the arguments do not say it.
    """
    kept = without_resume(words)
    if not any(word.partition("=")[0] in ("--run_dir", "--training.run_dir") for word in kept):
        kept += ["--run_dir", run_dir]
    command = shlex.join([*kept, "--resume", "auto"])
    return f"the same launcher and {command}" if "LOCAL_RANK" in os.environ else f"python {command}"
