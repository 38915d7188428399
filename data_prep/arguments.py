"""A command line whose mistakes are one line."""

from __future__ import annotations

import argparse
from typing import NoReturn


class OneLineParser(argparse.ArgumentParser):
    """argparse's parser, which answers a mistake with one line instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        """Print the mistake and where the options are listed; exit with 2."""
        self.exit(2, f"error: {message}; see {self.prog} --help\n")
