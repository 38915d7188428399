"""Files for contributors: they parse, and the commands, files and names in them exist."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def test_make_targets_that_are_named_exist():
    named = set(re.findall(r"(?:`|^    )make ([\w-]+)", TEXT, re.MULTILINE))
    assert {"lint", "test", "test-slow", "docs"} <= named <= TARGETS


def test_files_and_folders_that_are_named_exist():
    named = re.findall(r"`((?:ssl_vivit|recipes|tests|\.github)/[\w./]+)`", TEXT)
    assert len(named) > 15
    assert [name for name in named if not (ROOT / name).exists()] == []
    links = re.findall(r"\]\(([^):]+?)(?:#[\w-]+)?\)", TEXT)
    assert [link for link in links if not (ROOT / link).is_file()] == []


def test_classes_that_are_named_exist():
    from ssl_vivit.neural import config
    from ssl_vivit.neural.cores.vivit_core import Core
    from ssl_vivit.objectives import Objective

    assert {"forward", "export"} <= vars(Objective).keys()
    assert {"dense", "to_config"} <= vars(Core).keys()
    assert {"channels", "temporal_stride"} == Core.__annotations__.keys()
    assert hasattr(config, "CoreKind")
    assert hasattr(config, "BaselineConfig")


def test_the_table_of_markers_is_that_of_pytest():
    markers = {m.partition(":")[0] for m in PROJECT["tool"]["pytest"]["ini_options"]["markers"]}
    assert set(re.findall(r"^\| `(\w+)` \|", TEXT, re.MULTILINE)) == markers


def test_the_workflow_runs_make_on_the_oldest_and_newest_python():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    job = workflow["jobs"]["check"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    (command,) = [command for command in commands if command.startswith("make ")]
    targets = [word for word in command.split()[1:] if word in TARGETS]
    assert targets == ["lint", "test", "docs"]
    assert job["strategy"]["matrix"]["python"] == ["3.11", "3.13"]
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.14"
    # YAML 1.1 reads the key "on" as true.
    assert "pull_request" in workflow[True]


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_an_issue_template_is_a_form(name):
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    assert {"name", "description", "body"} <= form.keys()
    ids = [part["id"] for part in form["body"]]
    assert len(set(ids)) == len(ids) >= 2
    for part in form["body"]:
        assert part["type"] in ("textarea", "input", "dropdown", "checkboxes")
        assert part["attributes"]["label"]


def test_the_citation_names_the_project_and_no_invented_people():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
    assert cited["authors"] == [{"name": "The ssl_vivit authors"}]
    assert "the ssl_vivit authors" in (ROOT / "LICENSE").read_text()
    assert cited["version"] == PROJECT["project"]["version"]
    assert cited["license"] == PROJECT["project"]["license"]


def test_the_changelog_has_the_version():
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "Unreleased"
    assert PROJECT["project"]["version"] in heads


def test_hooks_run_from_the_environment_and_fetch_nothing():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert [repo["repo"] for repo in hooks["repos"]] == ["local"]
    for hook in hooks["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        python, *words = hook["entry"].split()
        assert python == "python"
        subprocess.run([sys.executable, *words, "tests/test_contributing.py"], cwd=ROOT, check=True)


def test_formats_on_the_page_of_compatibility_are_those_of_the_code():
    from ssl_vivit.data.video.shards.index import FORMAT, VERSION
    from ssl_vivit.encoders.vivit import ENCODER
    from ssl_vivit.neural.prediction import MODEL_OF_NEURONS

    page = (ROOT / "docs/reference/compatibility.md").read_text()
    assert ENCODER.version == MODEL_OF_NEURONS.version
    assert f'`"format": {ENCODER.version}` in `config.json`' in page
    assert f'`"format": "{FORMAT}", "version": {VERSION}`' in page
    named = re.findall(r"`(tests/[\w/]+\.py)`", page)
    assert len(named) >= 7
    assert [name for name in named if not (ROOT / name).is_file()] == []
