"""The coverage page equals the output of its script; the names, options and tests in it exist."""

from __future__ import annotations

import ast
import dataclasses
import functools
import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("coverage_page", ROOT / "docs/published/coverage.py")
TABLE = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(TABLE)
ROWS = [row for found in TABLE.rows().values() for row in found]
NAMES = sorted({name for row in ROWS for name in row.names})
COMMANDS = sorted({name.partition(" ")[0] for name in NAMES if " " in name})


def found(name: str) -> bool:
    """Return whether ``module:attribute.attribute`` exists; fields of dataclasses count."""
    module, _, path = name.partition(":")
    value: object = importlib.import_module(module)
    *above, last = path.split(".")
    for part in above:
        value = getattr(value, part)
    fields = {f.name for f in dataclasses.fields(value)} if dataclasses.is_dataclass(value) else ()
    return hasattr(value, last) or last in fields


@functools.cache
def options(command: str) -> set[str]:
    """Return the options in a command's --help."""
    shown = subprocess.run(
        [sys.executable, command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(re.findall(r"(?<![\w-])--[\w.]+", shown.stdout))


def test_the_page_equals_the_output_of_its_script():
    assert (ROOT / "docs/reference/coverage.md").read_text() == TABLE.page()


@pytest.mark.parametrize("name", [name for name in NAMES if " " not in name])
def test_code_is_there(name):
    assert found(name)


@pytest.mark.parametrize("command", COMMANDS)
def test_options_are_in_help(command):
    named = {name.partition(" ")[2] for name in NAMES if name.startswith(f"{command} ")}
    assert named - options(command) == set()


def test_tests_are_there():
    missing = []
    for row in ROWS:
        if row.test is not None:
            file, _, function = row.test.partition("::")
            body = ast.parse((ROOT / file).read_text()).body
            if function not in {node.name for node in body if isinstance(node, ast.FunctionDef)}:
                missing.append(row.test)
    assert missing == []


def test_every_row_has_a_status_and_what_works_has_a_test():
    for row in ROWS:
        assert re.match(r"works|differs: |not measured", row.status), row
        renamed = row.names and all("ViViTConfig." in name for name in row.names)
        if row.status == "works" and not renamed:
            assert row.test is not None, row


def test_names_that_are_not_there_are_seen():
    assert not found("ssl_vivit:ViViTConfig.mha_dropout")
    assert "--flash_attention" not in options("recipes/finetune_neural.py")
