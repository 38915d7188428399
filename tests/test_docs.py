"""Links in README and docs resolve, and the files and names that they mention exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import ssl_vivit

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
DOCS = sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts)
PAGES = [README, *DOCS]


def relative_links(text: str) -> list[str]:
    """Return the targets of links and images to files, without anchors."""
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    inside = [t for t in targets if not re.match(r"[a-z]+:|#", t)]
    return [target.partition("#")[0] for target in inside]


def test_relative_links_are_found():
    text = "[a](b.md#c) [d](https://e.org) [f](#g) ![h](../i.png)"
    assert relative_links(text) == ["b.md", "../i.png"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_point_to_files(page):
    links = relative_links(page.read_text())
    assert [link for link in links if not (page.parent / link).is_file()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    names = r"\b(?:ssl_vivit|recipes|examples|docs|tests|data_prep)/[\w/]+\.(?:py|yaml|md|png)\b"
    found = re.findall(names, page.read_text())
    assert [name for name in found if not (ROOT / name).is_file()] == []


def test_the_readme_is_short_and_leads_to_pages():
    text = README.read_text()
    assert len(text.splitlines()) <= 150
    linked = {(ROOT / link).resolve() for link in relative_links(text)}
    assert {page for page in DOCS if "api" not in page.parts} <= linked


def names_of(file: Path) -> set[str]:
    """Return functions and classes of a module, and methods as Class.method."""
    found = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{d.name}" for d in node.body if isinstance(d, ast.FunctionDef)}
    return found


def test_the_path_of_a_batch_names_what_is_there():
    text = (ROOT / "docs/explanation/path_of_a_batch.md").read_text()
    stops = re.findall(r"^File: `([^`]+)`; start at (.+)\.$", text, re.MULTILINE)
    assert len(stops) == text.count("File: ") > 6
    for file, names in stops:
        assert set(re.findall(r"`([^`]+)`", names)) <= names_of(ROOT / file), file


def test_the_command_line_page_has_every_command():
    text = (ROOT / "docs/reference/command_line.md").read_text()
    shown = set(re.findall(r"^```\{help-of\} (.+)$", text, re.MULTILINE))
    recipes = {
        f"recipes/{path.name}"
        for path in (ROOT / "recipes").glob("*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    }
    packages = {
        "-m " + ".".join(path.parent.relative_to(ROOT).parts)
        for room in ("ssl_vivit", "data_prep")
        for path in (ROOT / room).rglob("__main__.py")
    }
    assert recipes | packages <= shown


def test_the_metrics_page_has_every_key():
    text = (ROOT / "docs/reference/metrics.md").read_text()
    code = "\n".join(path.read_text() for path in (ROOT / "ssl_vivit").rglob("*.py"))
    keys = set(re.findall(r'"((?:train|val|system)/[a-z0-9_]+)"', code))
    assert len(keys) > 15
    stated = set(re.findall(r"`([a-z]+/[a-z0-9_]+)(?:_[A-Z]+)?`", text))
    assert keys - stated == set()


def test_the_reference_covers_the_public_names():
    api = ROOT / "docs/reference/api"
    root = (api / "ssl_vivit.md").read_text()
    assert [name for name in ssl_vivit.__all__ if name not in root] == []
    for package in ("encoders", "objectives", "neural", "training"):
        text = (api / f"{package}.md").read_text()
        # Without names behind it, :members: takes all of the package's __all__.
        assert re.search(rf"automodule:: ssl_vivit\.{package}\n   :members:\n", text)


@pytest.mark.parametrize("page", [README, *DOCS], ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_are_without_placeholders(page):
    words = re.findall(r"^(?:[A-Z]{3,}|@@\w+|TODO.*)$", page.read_text(), re.MULTILINE)
    assert words == []
