"""An argument parser whose errors are one line, as all other mistakes of a command are."""

from __future__ import annotations

import argparse
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """``ArgumentParser`` that names ``--help`` in place of printing its usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}; see {self.prog} --help\n")
