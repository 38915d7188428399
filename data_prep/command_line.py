"""Shared parts of all commands: argument types, and one-line errors and interruptions."""

from __future__ import annotations

import argparse
import functools
import io
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from ssl_vivit.errors import UserError

Main = Callable[[Sequence[str] | None], int]
_ONE_REQUEST = 2.0


def command(stopped: str, *, shards: str = "SHARDS") -> Callable[[Main], Callable[..., int]]:
    """Decorate ``main(argv) → exit status`` so that errors and Ctrl-C print one line.

    An error that users can fix gives status 2, Ctrl-C gives 130.

    Args:
        stopped: line to print after Ctrl-C.
        shards: name of this command's argument for shards, which replaces ``--data.shards`` in
            messages.
    """

    def decorated(main: Main) -> Callable[..., int]:
        @functools.wraps(main)
        def run(argv: Sequence[str] | None = None) -> int:
            try:
                return main(argv)
            except UserError as error:
                print(f"error: {str(error).replace('--data.shards', shards)}", file=sys.stderr)
                return 2
            except KeyboardInterrupt:
                print(stopped, file=sys.stderr)
                return 130

        return run

    return decorated


def start(main: Callable[[], int]) -> None:
    """Run a command and exit with its status; SIGTERM acts like Ctrl-C.

    A second signal ends the process at once. Signals within two seconds of the first are ignored,
    since process groups and tools such as ``timeout`` deliver one signal twice.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may be invalid UTF-8
            stream.reconfigure(errors="backslashreplace")
    first: list[float] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not first:
            first.append(time.monotonic())
            raise KeyboardInterrupt
        if time.monotonic() - first[0] > _ONE_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # ignored under nohup
            signal.signal(number, interrupt)
    status = main()
    # Ignore signals during the interpreter's exit, which would restore the default handlers.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.exit(status)


def option(setting: str) -> str:
    """Return the command-line option of a setting: ``--mean-rate`` for ``mean_rate``."""
    return "--fps" if setting == "frames_per_second" else f"--{setting.replace('_', '-')}"


def frame_size(text: str) -> tuple[int, int]:
    """Parse an argument such as 36x64 to (height, width)."""
    height, _, width = text.lower().partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} must be height and width, such as 36x64")
    return int(height), int(width)


class FrameSize(argparse.Action):
    """Parse an argument such as 36x64 or 36 64 to (height, width); needs nargs "+"."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        try:
            setattr(namespace, self.dest, frame_size("x".join(values)))
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentError(self, str(error)) from None


def png_file(text: str) -> Path:
    """Parse an argument that names a PNG file."""
    if Path(text).suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text} must end in .png")
    return Path(text)
