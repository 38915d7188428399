"""Sphinx: Markdown pages, and the Python API from the docstrings."""

from __future__ import annotations

from importlib import metadata
from typing import Any

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


def setup(app: Any) -> None:
    app.connect("autodoc-skip-member", leave_out_tuple_fields)
    app.connect("autodoc-process-signature", name_factories)
