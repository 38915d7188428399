"""The command that started this process, and an argument parser with one-line errors."""

from __future__ import annotations

import argparse
import difflib
import itertools
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

# Start of the first line of a run's config.yaml. The name of the script follows.
WRITTEN_BY = "# written by "

# Script of this process, and the commands that start and continue its run. `parse` sets them after
# it has read the arguments. None if `parse` was not called.
script: str | None = None
started_by: str | None = None
continued_by: str | None = None


class OneLineParser(argparse.ArgumentParser):
    """``ArgumentParser`` whose errors are one line that refers to ``--help``.

    Abbreviated options are not accepted. The error for an unknown option names the option with the
    most similar name.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **settings})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse the arguments; an unknown option is an error.

        Options of a command with subcommands are checked by the subcommand's parser.
        """
        if self._subparsers is None:
            self._refuse_unknown_options(sys.argv[1:] if args is None else args)
        return super().parse_known_args(args, namespace)

    def _refuse_unknown_options(self, words: Sequence[str]) -> None:
        """Exit at the first unknown option.

        ``argparse`` reports missing arguments first, although a misspelt option is often the reason
        why an argument is missing.
        """
        known = [name[2:] for name in self._option_string_actions if name.startswith("--")]
        for word in itertools.takewhile(lambda word: word != "--", words):
            # Words with a space are values, as in argparse.
            if not word.startswith("--") or " " in word:
                continue
            name = word[2:].partition("=")[0]
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
                hint = f" (did you mean --{near[0]}?)" if near else ""
                self.error(f"unknown option --{name}{hint}")

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")


def writer_of(config: Path) -> str | None:
    """Return the script whose run wrote a config file; None if the file does not name one."""
    # A damaged file must not raise here: its reader reports the damage.
    first = config.read_text(errors="replace").partition("\n")[0]
    return first.removeprefix(WRITTEN_BY) if first.startswith(WRITTEN_BY) else None


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
        run_dir: directory of the run, added as ``--run_dir`` if the arguments do not name one.
    """
    kept = without_resume(words)
    if not any(word.partition("=")[0] in ("--run_dir", "--training.run_dir") for word in kept):
        kept += ["--run_dir", run_dir]
    command = shlex.join([*kept, "--resume", "auto"])
    return f"the same launcher and {command}" if "LOCAL_RANK" in os.environ else f"python {command}"
