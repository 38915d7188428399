"""Sphinx: Markdown pages, and the Python API from the docstrings."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive

project = "ssl_vivit"
release = metadata.version("ssl_vivit")
html_title = project

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
# Indented blocks are shell commands and plain text; blocks of Python say so.
maximum_signature_line_length = 88
highlight_language = "none"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
# Sections named Attributes become fields of the class's own description.
napoleon_use_ivar = True
napoleon_numpy_docstring = False


def leave_out_tuple_fields(
    app: Any, what: str, name: str, value: Any, skip: bool, options: Any
) -> bool | None:
    """Named tuples describe their fields under Attributes; their properties say nothing more."""
    return True if type(value).__name__ == "_tuplegetter" else None


def name_factories(
    app: Any, what: str, name: str, value: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str, Any] | None:
    """Defaults that a dataclass makes anew for each instance, in a form that Python can parse."""
    return (signature.replace("<factory>", "..."), returns) if signature else None


class HelpOf(Directive):
    """Directive that shows the ``--help`` of a command."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Run the command in the root of the repository."""
        words = [sys.executable, *shlex.split(self.arguments[0]), "--help"]
        done = subprocess.run(
            words,
            cwd=Path(__file__).parents[1],
            env={**os.environ, "COLUMNS": "100"},
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise self.error(f"{self.arguments[0]} --help fails: {done.stderr[-500:]}")
        return [nodes.literal_block(done.stdout, done.stdout, language="none")]


def setup(app: Any) -> None:
    app.add_directive("help-of", HelpOf)
    app.connect("autodoc-skip-member", leave_out_tuple_fields)
    app.connect("autodoc-process-signature", name_factories)
