"""Write docs/reference/coverage.md from coverage.yaml.

python docs/published/coverage.py > docs/reference/coverage.md
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import yaml

ROWS = Path(__file__).with_suffix(".yaml")
HEAD = """# Coverage of earlier descriptions

This page shows where each feature of the project's earlier descriptions is found. There are five descriptions: a Model 2 trained with SimCLR and compared with google-research/scenic, a guide and a quick start for a ViViT as the core of a model of neurons, notes on the ViViT paper, and a public Model 3. The tables list each feature, size, shape, option and number of these descriptions, its name in this project, the test that checks it, and its status: *works*; *differs*, with the difference; or *not measured*. Recipes take settings of `ViViTConfig` as `--encoder.overrides.NAME`. `python docs/published/coverage.py` prints this page from `docs/published/coverage.yaml`. A test imports every name, looks up every option and test, and compares the page.
"""


class Row(NamedTuple):
    """One row of the table.

    Attributes:
        wanted: what a description names.
        ours: its name here.
        names: ``module:attribute`` of code, or ``COMMAND --option``.
        test: ``file::function``, or None.
        status: begins with works, differs or not measured.
    """

    wanted: str
    ours: str
    names: list[str]
    test: str | None
    status: str


def rows() -> dict[str, list[Row]]:
    """Rows by section."""
    read = yaml.safe_load(ROWS.read_text())
    return {title: [Row(*row) for row in found] for title, found in read.items()}


def where(name: str) -> str:
    """Code or option in Markdown, without the module that the reference finds it in."""
    command, _, option = name.partition(" ")
    return f"`{option or name.partition(':')[2]}`" if not option else f"`{command} {option}`"


def page() -> str:
    """The page in Markdown."""
    text = [HEAD]
    for title, found in rows().items():
        text += [f"## {title}\n", "| description | here | class or command | test | status |"]
        text += ["|---|---|---|---|---|"]
        for row in found:
            names = ", ".join(dict.fromkeys(map(where, row.names)))
            test = "" if row.test is None else f"`{row.test.replace('::', ' ')}`"
            text += [f"| {row.wanted} | {row.ours} | {names} | {test} | {row.status} |"]
        text += [""]
    return "\n".join(text)


if __name__ == "__main__":
    print(page(), end="")
